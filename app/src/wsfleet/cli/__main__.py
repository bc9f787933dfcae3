"""``python -m wsfleet.cli``."""

from wsfleet.cli import app

app()

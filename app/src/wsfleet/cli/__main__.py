"""Run the command line: ``python -m wsfleet.cli``."""

from wsfleet.cli.main import app

app()

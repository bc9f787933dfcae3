"""``wsfleet serve``: run one node."""

from typing import Annotated

import typer


def command(
    check: Annotated[
        bool, typer.Option("--check", help="Check the settings and exit without serving.")
    ] = False,
) -> None:
    """Run one node in the foreground; WSFLEET_* environment variables configure it."""
    from wsfleet.server.server import run

    run(check=check)

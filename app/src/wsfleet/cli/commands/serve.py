"""``wsfleet serve``: run one node."""

from typing import Annotated

import typer


def command(
    application: Annotated[
        str,
        typer.Argument(
            metavar="[MODULE:NAME]",
            help="ASGI application that gets the paths of the client port; default: WSFLEET_APP.",
            show_default=False,
        ),
    ] = "",
    app_dir: Annotated[
        str,
        typer.Option("--app-dir", help="Folder with MODULE; default: WSFLEET_APP_DIR."),
    ] = "",
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Check the settings, import MODULE, and exit without serving."
        ),
    ] = False,
) -> None:
    """Run one node in the foreground.

    Environment variables WSFLEET_* configure it.
    """
    from wsfleet.server.server import run

    given = {"app": application, "app_dir": app_dir}
    run(check=check, **{name: value for name, value in given.items() if value})

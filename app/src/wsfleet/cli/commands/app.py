"""``wsfleet app``: run an application's handlers in a process of their own."""

from typing import Annotated

import typer


def command(
    application: Annotated[
        str, typer.Argument(metavar="MODULE:NAME", help="The `Realtime` of an application.")
    ],
    listen: Annotated[
        str,
        typer.Option(
            "--listen",
            metavar="ADDRESS",
            help="Path of a unix socket, or HOST:PORT, where nodes ask the handlers; default: the "
            "sockets that systemd passes.",
        ),
    ] = "",
    app_dir: Annotated[
        str, typer.Option("--app-dir", help="Folder with MODULE; default: WSFLEET_APP_DIR.")
    ] = "",
) -> None:
    """Run an application's handlers in a process of their own, which nodes call.

    Environment variables WSFLEET_* configure Redis, the log and the file with the channels, as for
    a node. docs/proxy.md has the node's configuration.
    """
    from wsfleet.server.handler_process import run

    run(application, app_dir, listen)

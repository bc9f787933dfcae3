"""``wsfleet dev``: run an application while it is written."""

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from wsfleet.cli.errors import CannotRun

CONFIG = "wsfleet.yml"
"""The configuration of an application, beside its code."""

MOST = 64_535
"""The highest port: the console's is 1000 above it."""

Application = Annotated[
    str, typer.Argument(metavar="MODULE:NAME", help="ASGI application, or a Realtime.")
]
Host = Annotated[str, typer.Option("--host", help="Address to listen on.")]
Port = Annotated[
    int,
    typer.Option(
        "--port", min=1, max=MOST, help="Port to listen on; the console is on PORT + 1000."
    ),
]
AppDir = Annotated[
    Path, typer.Option("--app-dir", metavar="FOLDER", help="Folder with MODULE.", file_okay=False)
]
ReloadDirs = Annotated[
    list[Path] | None,
    typer.Option(
        "--reload-dir",
        metavar="FOLDER",
        exists=True,
        file_okay=False,
        help="Folder whose changes restart the node; may be repeated. Default: --app-dir.",
        show_default=False,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help=f"Configuration file. Default: WSFLEET_CONFIG, else {CONFIG} in --app-dir if it "
        "exists.",
        show_default=False,
    ),
]


def command(
    application: Application,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    app_dir: AppDir = Path(),
    reload_dir: ReloadDirs = None,
    config: ConfigFile = None,
) -> None:
    """Run an application in one node without Redis, and restart it when a file changes.

    Clients reconnect and recover after a restart. Ctrl-C ends it. Environment variables WSFLEET_*
    configure the node as for `wsfleet serve`.
    """
    from wsfleet.dev.defaults import SETTINGS
    from wsfleet.dev.run import PortError, develop
    from wsfleet.server.server import read_settings

    given: dict[str, Any] = {name: value for name, value in SETTINGS.items() if not _is_set(name)}
    given |= {"app": application, "app_dir": str(app_dir.resolve()), "host": host, "port": port}
    beside = app_dir / CONFIG
    if config is None and not _is_set("config") and beside.exists():
        config = beside
    if config is not None:
        given["config"] = config.resolve()
    settings = read_settings(**given)
    folders = reload_dir or [app_dir]
    if settings.config is not None:
        folders = [*folders, settings.config.parent]
    try:
        asyncio.run(
            develop(settings, _outermost(folders), not _is_set("redis_url"), say=typer.echo)
        )
    except PortError as error:
        raise CannotRun(f"{error}; choose another port with --port") from None
    except OSError as error:
        raise CannotRun(f"the files cannot be watched: {error}") from None


def _is_set(name: str) -> bool:
    return f"WSFLEET_{name.upper()}" in os.environ


def _outermost(folders: list[Path]) -> list[Path]:
    """Return the folders that are in no other one of them."""
    resolved = {folder.resolve() for folder in folders}
    return sorted(each for each in resolved if not resolved.intersection(each.parents))

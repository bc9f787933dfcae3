"""The tree of commands, and how the program ends.

A command's module is imported when the command runs or its help is shown, not before: `wsfleet
serve` must not load the libraries of the other commands (Rich, httpx, picows), because every node
would pay for them with memory.
"""

import os
import sys
import traceback
from collections import UserDict
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperGroup

from wsfleet.cli.errors import EXIT_CANNOT_RUN, EXIT_FAILED, EXIT_OK, CannotRun


class Commands(UserDict[str, Any]):
    """The commands of a group by name; a command is a module's name until it is looked up.

    A module of `wsfleet.cli.commands` has a function `command`, whose parameters are the options.
    """

    def __getitem__(self, name: str) -> Any:
        """Return a command, importing its module the first time."""
        command = self.data[name]
        if isinstance(command, str):
            module = import_module(f"wsfleet.cli.commands.{command}")
            alone = typer.Typer(rich_markup_mode=None, add_completion=False)
            alone.command(name)(module.command)
            command = self.data[name] = typer.main.get_command(alone)
        return command


class Group(TyperGroup):
    """A group of commands that are imported late; a module has its command's name and a prefix."""

    names: ClassVar[tuple[str, ...]]
    prefix = ""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Commands(self.modules() | dict(self.commands))

    @classmethod
    def modules(cls) -> dict[str, Any]:
        """Return the module of each command."""
        return {name: cls.prefix + name.replace("-", "_") for name in cls.names}


class Check(Group):
    """The group `wsfleet check`."""

    names = ("stickiness", "node", "state")
    prefix = "check_"


class Program(Group):
    """The root command: an error ends it with one line on stderr and exit code 2."""

    names = (
        *("serve", "dev", "app", "status", "logs", "drain", "undrain", "forget", "autoscale"),
        *("rebalance", "load", "verify-delivery", "monitor"),
    )

    def main(  # type: ignore[override]  # the signature of Click's main is wider than is used here
        self, args: Sequence[str] | None = None, prog_name: str | None = "wsfleet", **extra: Any
    ) -> None:
        """Run a command, and exit with its exit code: 0, 1 or 2 (130 after Ctrl-C)."""
        args = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        try:
            code = super().main(args=args, prog_name=prog_name, **extra)
        except typer.TyperException as error:
            sys.exit(_report_error(error, args))
        except (typer.Abort, KeyboardInterrupt):
            sys.exit(130)
        except BrokenPipeError:
            # The reader of stdout (head, a pager) has gone: it needs no message.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_FAILED)
        except Exception:  # a defect of this program: 1 would read as "checked and found wrong"
            traceback.print_exc()
            sys.exit(EXIT_CANNOT_RUN)
        sys.exit(code or EXIT_OK)


def _report_error(error: typer.TyperException, args: list[str]) -> int:
    """Print the error on one line; with --json, print the one JSON object on stdout as well."""
    message = " ".join(error.format_message().split())
    if not isinstance(error, CannotRun):
        context = getattr(error, "ctx", None)
        message += f" See `{context.command_path if context else 'wsfleet'} --help`."
    print(f"wsfleet: {message}", file=sys.stderr)
    if "--json" in args:
        import orjson

        print(orjson.dumps({"ok": False, "error": message}).decode())
    return EXIT_CANNOT_RUN


app = typer.Typer(
    cls=Program,
    help="Run a node of a WebSocket cluster, and check, load, watch and drain the cluster. "
    "Exit codes: 0 no problem, 1 a problem was found, 2 the command could not run.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(
    typer.Typer(cls=Check, help="Check one property of a running cluster.", rich_markup_mode=None),
    name="check",
)


def _version(asked: bool) -> None:
    if asked:
        from wsfleet import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""

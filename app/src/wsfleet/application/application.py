"""The ASGI application that a node serves, imported from `MODULE:NAME`."""

import importlib
import inspect
import sys
import traceback
from types import ModuleType
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wsfleet.application.realtime.realtime import Realtime
from wsfleet.channels.permissions import Channels


class ApplicationError(Exception):
    """An application that cannot be served.

    Of an import that failed the text is one line, then the application's own frames.
    """


class Application:
    """An ASGI application around another one, which it imports while the event loop runs.

    uvicorn imports an application at the same time. Errors in the lifespan of the imported
    application are written to standard error.
    """

    def __init__(self, target: str, directory: str) -> None:
        self._target = target
        self._directory = directory
        self._app: ASGIApp | None = None

    def load(self) -> None:
        """Import the application.

        Raises:
            ApplicationError: the import fails, or its result is not an ASGI 3 application.
        """
        sys.path.insert(0, self._directory)
        module, _, name = self._target.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except (Exception, SystemExit) as error:
            raise ApplicationError(self._report("cannot be imported", error)) from None
        if not _is_asgi(found):
            raise ApplicationError(
                f"{self._target} is not an ASGI 3 application (an async callable that takes scope, "
                f"receive and send): it is {found!r}"
            )
        if (outer := _realtime_around(found, sys.modules[module])) is not None:
            raise ApplicationError(
                f"{self._target} is inside of a Realtime, whose handlers would be ignored: "
                f"serve {module}:{outer}"
            )
        self._app = found

    @property
    def realtime(self) -> Realtime | None:
        """The application, if it is a `Realtime`."""
        return self._app if isinstance(self._app, Realtime) else None

    def check(self, channels: Channels) -> None:
        """Check the handlers of a `Realtime` against the channels of the configuration.

        Raises:
            ApplicationError: a handler's namespace is unknown.
        """
        if self.realtime is not None:
            mistakes = self.realtime.mistakes(channels.namespaces)
            if mistakes:
                raise ApplicationError("\n".join(mistakes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application."""
        if self._app is None:
            raise RuntimeError("the application is not loaded")
        if scope["type"] == "lifespan":
            await self._live(self._app, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the lifespan; an error before the application's first event means "not supported".

        Source: https://asgi.readthedocs.io/en/latest/specs/lifespan.html#scope
        """
        stage, explanation = "", ""

        async def note(message: Message) -> None:
            nonlocal stage, explanation
            stage = message["type"].removeprefix("lifespan.")
            explanation = message.pop("message", "")  # uvicorn would log it, often a traceback
            await send(message)

        try:
            await app(scope, receive, note)
        except Exception as error:
            if stage:
                print(self._report(f"raised after {stage}", error), file=sys.stderr)
            raise
        if stage.endswith(".failed"):
            print(f"{self._target}: {stage}: {explanation}", file=sys.stderr)

    def _report(self, what: str, error: BaseException) -> str:
        package = self._target.partition(":")[0].partition(".")[0]
        *context, line = traceback.format_exception_only(error)
        frames = _frames_from(package, error).format()
        return f"{self._target} {what}: {line}{''.join(frames)}{''.join(context)}".rstrip()


def _is_asgi(found: Any) -> bool:
    """Return whether an object is an async callable or has an async `__call__`."""
    return inspect.iscoroutinefunction(found) or (
        not inspect.isclass(found) and inspect.iscoroutinefunction(type(found).__call__)
    )


def _realtime_around(app: Any, module: ModuleType) -> str | None:
    """Return the name of the `Realtime` of a module that is around an application."""
    for name, value in vars(module).items():
        if isinstance(value, Realtime) and value.app is app:
            return name
    return None


def _frames_from(package: str, error: BaseException) -> traceback.StackSummary:
    """Return the frames of an exception from the first one that is in a package."""
    frames = list(traceback.walk_tb(error.__traceback__))
    names = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in frames]
    first = names.index(package) if package in names else len(names)
    return traceback.StackSummary.extract(iter(frames[first:]))

"""Log events as JSON lines on standard output, for systemd's journal."""

import atexit
import logging
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime

import orjson
import structlog

from wsfleet.telemetry.log_output import Output

#: Signals that end a process that does not handle them, without `atexit`.
FATAL_SIGNALS = (signal.SIGTERM, signal.SIGHUP)

Encode = Callable[[structlog.typing.EventDict, str, str], bytes]
"""Returns the line of an event, given also its logger and level."""

_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z


class Encoder:
    """An encoder of events as lines; every event becomes a line.

    A value that JSON has no type for becomes its `repr`.
    """

    def __init__(self, node: str) -> None:
        self._node = node

    def __call__(self, event: structlog.typing.EventDict, logger: str, level: str) -> bytes:
        """Return an event as a line, with its exception if it has an `exc_info`."""
        if "exc_info" in event:
            event = structlog.processors.format_exc_info(None, level, event)
        event["node"] = self._node  # one place may collect the logs of all nodes
        event["logger"] = logger
        event["level"] = level
        event["timestamp"] = datetime.now(UTC)
        try:
            return orjson.dumps(event, default=repr, option=_OPTIONS)
        except orjson.JSONEncodeError:
            event = {name: _encodable(value) for name, value in event.items()}
            return orjson.dumps(event, option=_OPTIONS)


def _encodable(value: object) -> object:
    """Return text for a value that JSON cannot encode: half a surrogate pair, 2**64, a cycle."""
    try:
        return orjson.Fragment(orjson.dumps(value, default=repr, option=orjson.OPT_UTC_Z))
    except orjson.JSONEncodeError:
        pass
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:  # its __repr__ fails
        text = f"<{type(value).__name__}>"
    return text.encode(errors="backslashreplace").decode()


class Logger:
    """The logger of one module, beneath structlog's bound logger."""

    def __init__(self, name: str, output: Output) -> None:
        self.name = name
        self.debug = self.info = output.write
        self.warning = self.error = self.critical = output.write_urgent


class LogHandler(logging.Handler):
    """A handler for the records of the standard library's loggers."""

    def __init__(self, encode: Encode, output: Output) -> None:
        super().__init__()
        self._encode = encode
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record as a line."""
        event: structlog.typing.EventDict
        try:
            event = {"event": record.getMessage()}
        except Exception:  # its arguments do not fit
            event = {"event": record.msg, "arguments": record.args}
        if record.exc_info:
            event["exc_info"] = record.exc_info
        line = self._encode(event, record.name, record.levelname.lower())
        if record.levelno < logging.WARNING:
            self._output.write(line)
        else:
            self._output.write_urgent(line)


def configure(level: str, node: str, encode: Encode | None = None) -> None:
    """Send structlog's and the standard library's (uvicorn's) events to standard output.

    They are JSON, unless `encode` is given.

    Lines of `debug` and `info` are written at the end of the event loop's turn, lines of `warning`
    and above at once. Waiting lines are written when the process ends, except after SIGKILL or a
    crash in C.
    """
    encode = encode or Encoder(node)

    def report(lines: int) -> bytes:
        return encode({"lines": lines, "event": "log_lines_dropped"}, __name__, "warning")

    # Without a standard output, descriptor 1 may belong to another file.
    stdout = sys.__stdout__
    output = Output(stdout.fileno() if stdout else os.open(os.devnull, os.O_WRONLY), report)
    atexit.register(output.drain)
    for number in FATAL_SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, output.end_by_signal)

    def render(logger: Logger, method: str, event: structlog.typing.EventDict) -> bytes:
        return encode(event, logger.name, method)

    structlog.configure(
        processors=[render],
        # An event below the level costs only the call of an empty method.
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda name="": Logger(name, output),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=level.upper(), handlers=[LogHandler(encode, output)], force=True)
    # This stops the search for the caller's frame, which no line contains.
    logging._srcfile = None
    # The node logs each connection; uvicorn would log each handshake again.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)

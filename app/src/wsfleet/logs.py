"""JSON lines on standard output, one event a line; systemd's journal does the rest."""

import logging
import sys

import orjson
import structlog


def _json(event: structlog.typing.EventDict, **_: object) -> str:
    """A line comes out whatever is put in: what JSON has no word for is written as Python does."""
    return orjson.dumps(event, default=repr).decode()


def configure(level: str, node: str) -> None:
    """Send structlog's and the standard library's (uvicorn's) events the same way."""

    def add_node(
        _: object, __: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        event["node"] = node  # the logs of all nodes may be read in one place
        return event

    shared: list[structlog.typing.Processor] = [
        add_node,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        # What is not logged costs a call that does nothing.
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.PositionalArgumentsFormatter()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(_json),
            ],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # One line a connection is ours to write; uvicorn would add a second for each handshake.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)

"""Log events as text for a person at a terminal."""

import time

import structlog


class TextEncoder:
    """An encoder of events as lines; values of several lines, such as a stack, follow indented."""

    def __call__(self, event: structlog.typing.EventDict, logger: str, level: str) -> bytes:
        """Return an event as text, with its exception if it has an `exc_info`."""
        if "exc_info" in event:
            event = structlog.processors.format_exc_info(None, level, event)
        fields = {name: str(value) for name, value in event.items() if name != "event"}
        short = [f"{name}={text}" for name, text in fields.items() if "\n" not in text]
        head = f"{time.strftime('%H:%M:%S')} {level:<7} {event.get('event')}"
        lines = ["  ".join([head, *short])]
        for text in fields.values():
            if "\n" in text:
                lines += [f"    {line}" for line in text.rstrip().split("\n")]
        return ("\n".join(lines) + "\n").encode(errors="backslashreplace")

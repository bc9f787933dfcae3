"""Log events as a person reads them."""

import re

from wsfleet.telemetry.text_encoder import TextEncoder


def test_an_event_is_a_line() -> None:
    """Time, level, event and fields; values of several lines follow, indented."""
    text = TextEncoder()({"event": "blocked", "stack": "one\n two\n", "at": "x.py:3"}, "a", "error")
    first, *rest = text.decode().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d error   blocked  at=x\.py:3", first)
    assert rest == ["    one", "     two"]


def test_an_exception_has_its_traceback() -> None:
    """As Python prints it."""
    error = ValueError("no\nway")
    text = TextEncoder()({"event": "failed", "exc_info": error}, "a", "error").decode()
    assert text.endswith("    ValueError: no\n    way\n")


def test_text_that_is_not_unicode_is_written() -> None:
    """Half a surrogate pair as an escape."""
    assert TextEncoder()({"event": "\ud800"}, "a", "info").endswith(b"\\ud800\n")

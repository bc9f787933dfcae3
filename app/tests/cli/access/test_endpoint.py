"""URLs of a fleet: accepted forms, and errors that show the right one."""

import pytest

from wsfleet.cli.access.endpoint import parse_url
from wsfleet.cli.errors import CannotRun


@pytest.mark.parametrize(
    ("text", "websocket", "http"),
    [
        ("http://host", "ws://host/ws", "http://host"),
        ("http://host:8080/", "ws://host:8080/ws", "http://host:8080"),
        ("https://host", "wss://host/ws", "https://host"),
        ("ws://host/other", "ws://host/other", "http://host"),
        ("wss://host:443/ws?a=1", "wss://host:443/ws?a=1", "https://host:443"),
        ("http://[::1]:8001", "ws://[::1]:8001/ws", "http://[::1]:8001"),
        (" http://host ", "ws://host/ws", "http://host"),
    ],
)
def test_urls_are_completed(text: str, websocket: str, http: str) -> None:
    """Both worlds' schemes are taken; without a path, /ws is meant."""
    endpoint = parse_url(text)
    assert (endpoint.websocket, endpoint.http) == (websocket, http)
    assert endpoint.secure is websocket.startswith("wss")


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:80", "ftp://host", "http://", "http://a:b", "http://a:99999", "ws:/a"],
)
def test_an_invalid_url_is_refused(text: str) -> None:
    """The error shows what was given and how it should look."""
    with pytest.raises(CannotRun, match=r"write http://HOST"):
        parse_url(text)

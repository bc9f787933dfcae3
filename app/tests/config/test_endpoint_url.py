"""URLs of endpoints: their parts, and what is refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfleet.config.endpoint_url import EndpointURL


def url(host: str, port: int, authority: str, target: str, *, tls: bool = False) -> EndpointURL:
    """Return an endpoint on a host."""
    return EndpointURL(host, port, tls, "", authority, target)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("http://localhost:3000/a/b?c=d", url("localhost", 3000, "localhost:3000", "/a/b?c=d")),
        ("http://app", url("app", 80, "app", "/")),
        ("HTTP://App?x", url("app", 80, "App", "/?x")),
        ("https://app/x", url("app", 443, "app", "/x", tls=True)),
        ("http://[::1]:80/", url("::1", 80, "[::1]:80", "/")),
        (
            "http+unix://%2Frun%2Fmy%20app.sock/centrifugo/connect?a",
            EndpointURL("", 0, False, "/run/my app.sock", "localhost", "/centrifugo/connect?a"),
        ),
        ("http+unix://%2Fa", EndpointURL("", 0, False, "/a", "localhost", "/")),
    ],
)
def test_parts(text: str, wanted: EndpointURL) -> None:
    """Of each form."""
    assert EndpointURL.parse(text) == wanted


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("grpc://backend:9000", "gRPC"),
        ("localhost:9000", "gRPC"),
        ("ftp://app/", "ftp://"),
        ("http:///path", "no host"),
        ("http://app:99999/", "not a URL"),
        ("http://[::1/", "not a URL"),
        ("http://user:secret@app/", "static_headers"),
        ("http://app/#part", "fragment"),
        ("http://app/a b", "%XX"),
        ("http://app/\r\nX: y", "%XX"),
        ("http://äpp/", "%XX"),
        ("http+unix:///run/app.sock", "%2F"),
        ("http+unix://app.sock/x", "%2F"),
        (f"http+unix://%2F{'a' * 120}/x", "107 bytes"),
        ("http+unix://%2Fa%00b/x", "NUL"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    """With a hint, and without the secret in it."""
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        EndpointURL.parse(text)
    assert "secret" not in str(caught.value)


@given(st.text() | st.text().map(lambda text: f"http://{text}"))
def test_any_text_is_an_endpoint_or_a_clear_error(text: str) -> None:
    """And what is one fits into a request's first lines."""
    try:
        found = EndpointURL.parse(text)
    except ValueError:
        return
    assert not set("\r\n \0") & set(found.target + found.authority)

"""The URL of a backend's endpoint: http://, https://, or http+unix:// for a unix socket."""

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator

FORMS = (
    "write http://HOST:PORT/PATH, https://HOST:PORT/PATH, or http+unix://SOCKET/PATH with each / "
    "of the socket's path as %2F"
)
LONGEST_SOCKET = 107
"""Bytes of a unix socket's path (unix(7))."""


@dataclass(frozen=True, slots=True)
class EndpointURL:
    """An endpoint in its parts; `socket` is the path of a unix socket, or "".

    `target` and `authority` are what a request has in its first line and in `Host`
    (RFC 9112, section 3).
    """

    host: str
    port: int
    tls: bool
    socket: str
    authority: str
    target: str

    @classmethod
    def parse(cls, text: str) -> "EndpointURL":
        """Parse a URL.

        Raises:
            ValueError: it is invalid; the message tells how to correct it.
        """
        try:
            url = urlsplit(text)
            port = url.port
        except ValueError as error:
            raise ValueError(f"is not a URL: {error}; {FORMS}") from None
        if url.scheme == "grpc" or "://" not in text:
            raise ValueError(f"backends with gRPC are not supported: {FORMS}")
        if url.scheme not in ("http", "https", "http+unix"):
            raise ValueError(f"the scheme {url.scheme}:// is not supported: {FORMS}")
        if not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("has characters other than ASCII's: write them as %XX")
        if url.fragment:
            raise ValueError("has a fragment (#…), which is never sent: remove it")
        if url.username is not None:
            raise ValueError(
                "has a user: give it to http.static_headers instead, such as Authorization: Basic …"
            )
        target = f"{url.path or '/'}{'?' if url.query else ''}{url.query}"
        if url.scheme == "http+unix":
            return cls("", 0, False, _socket(url.netloc), "localhost", target)
        if not url.hostname:
            raise ValueError(f"has no host: {FORMS}")
        tls = url.scheme == "https"
        return cls(url.hostname, port or (443 if tls else 80), tls, "", url.netloc, target)


def _socket(netloc: str) -> str:
    path = unquote(netloc)
    if not path.startswith("/"):
        raise ValueError(f"has no absolute path of a socket: {FORMS}")
    if len(path.encode()) > LONGEST_SOCKET or "\0" in path:
        raise ValueError(f"is not a socket's path: at most {LONGEST_SOCKET} bytes, without NUL")
    return path


def _checked(text: str) -> str:
    if text:
        EndpointURL.parse(text)
    return text


CheckedEndpoint = Annotated[str, AfterValidator(_checked), "URL"]

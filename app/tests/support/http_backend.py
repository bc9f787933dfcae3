"""A backend whose answers a test gives: an HTTP server, byte for byte."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ReceivedRequest:
    """A request as a backend received it; names of header fields are in lower case."""

    method: str
    target: str
    fields: list[tuple[str, str]]
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    def all(self, name: str) -> list[str]:
        """Return all values of a header field."""
        return [value for each, value in self.fields if each == name]


Reply = Callable[[ReceivedRequest], Awaitable[bytes]]
"""Returns the bytes to write; a connection is closed after an answer with `Connection: close`."""


@dataclass
class HTTPBackend:
    """A server that answers as `reply` says, and notes what it received."""

    reply: Reply
    url: str = ""
    requests: list[ReceivedRequest] = field(default_factory=list)
    accepted: int = 0
    open: int = 0
    most: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        self.accepted += 1
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while await self._answer(reader, writer):
                    pass
        finally:
            self.open -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        method, target, _ = first.split(" ")
        fields = [(name.lower(), value) for name, _, value in (x.partition(": ") for x in lines)]
        body = await reader.readexactly(int(dict(fields)["content-length"]))
        request = ReceivedRequest(method, target, fields, body)
        self.requests.append(request)
        answer = await self.reply(request)
        writer.write(answer)
        await writer.drain()
        return b"connection: close" not in answer.lower()


def answer(body: bytes | str | dict[str, Any], status: int = 200, *fields: str) -> bytes:
    """Return an answer with a length."""
    if isinstance(body, dict):
        body = json.dumps(body)
    content = body.encode() if isinstance(body, str) else body
    head = "".join(f"{line}\r\n" for line in (*fields, f"Content-Length: {len(content)}"))
    return f"HTTP/1.1 {status} Any\r\n{head}\r\n".encode() + content


def always(content: bytes) -> Reply:
    """Return a reply that is always the same."""

    async def reply(request: ReceivedRequest) -> bytes:
        return content

    return reply


def by_path(answers: dict[str, Any]) -> Reply:
    """Return a reply with a JSON document, or the result of a function of the request, by path."""

    async def reply(request: ReceivedRequest) -> bytes:
        found = answers.get(request.target)
        if found is None:
            return answer("not found", 404)
        return answer(found(request.json) if callable(found) else found)

    return reply


@asynccontextmanager
async def running_backend(
    reply: Reply, socket: str = "", tls: ssl.SSLContext | None = None
) -> AsyncIterator[HTTPBackend]:
    """Run a backend on the loopback, or on a unix socket."""
    backend = HTTPBackend(reply)
    if socket:
        server = await asyncio.start_unix_server(backend.serve, socket)
        backend.url = f"http+unix://{socket.replace('/', '%2F')}"
    else:
        server = await asyncio.start_server(backend.serve, "127.0.0.1", 0, ssl=tls, backlog=512)
        port = server.sockets[0].getsockname()[1]
        backend.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    try:
        yield backend
    finally:
        server.close()

"""The API over HTTP, an ASGI application without FastAPI, since publishing is a hot path.

A method answers 200 with `result` or `error`; in the error mode `transport` each error has its own
status. Other statuses: 400 and 422 for an invalid body, 405 for a method other than POST, 401 for a
missing or wrong key, 403 if no key is configured.
"""

import orjson
from msgspec import Struct
from starlette.types import Receive, Scope, Send

from wsfleet.api.key_check import KeyCheck
from wsfleet.api.methods import Api, Call, Result, failure
from wsfleet.api.requests import OldCommand, Reader, RequestError, batch_of, documents
from wsfleet.node.node import Node
from wsfleet.protocol.centrifuge.codes import ErrorCode
from wsfleet.transports.handshake import Request
from wsfleet.transports.http import KEYLESS_BODY_LIMIT

PREFIX = "/api"
ERROR_MODE = b"x-centrifugo-error-mode"
STATUS = {
    ErrorCode.UNKNOWN_CHANNEL.code: 404,
    ErrorCode.METHOD_NOT_FOUND.code: 404,
    ErrorCode.BAD_REQUEST.code: 400,
    ErrorCode.NOT_AVAILABLE.code: 400,
    ErrorCode.UNRECOVERABLE_POSITION.code: 416,
}
"""HTTP statuses of errors in the mode `transport`; other errors have 500.

Source: MapErrorToHTTPCode in internal/apiproto/errors.go of github.com/centrifugal/centrifugo.
"""
OLD_METHODS = (
    *("publish", "broadcast", "unsubscribe", "disconnect", "presence", "presence_stats"),
    *("history", "history_remove", "channels", "info", "rpc", "subscribe", "refresh"),
)
"""Methods that old clients name by their index: internal/api/handler_legacy.go, as above."""

Answer = tuple[int, bytes]
"""Status and JSON of a response."""


class Endpoint:
    """The ASGI application of `/api/METHOD` and of `/api` itself."""

    def __init__(self, node: Node, api: Api) -> None:
        self._api = api
        self._keys = KeyCheck(node.config.http_api.accepted)
        self._max_size = node.settings.max_request_size
        self._transport_errors = node.config.http_api.error_mode == "transport"
        self._readers = {name: Reader(kind) for name, (_, kind) in api.methods.items()}
        self._batches = Reader(batch_of(api.requests))
        self._old_commands = Reader(OldCommand)

    def body_limit(self, request: Request) -> int:
        """Return the limit of a request's body in bytes; it is lower without a valid key."""
        refused = self._keys.refusal(request.headers.raw, request.query.encode("latin-1"))
        return KEYLESS_BODY_LIMIT if refused else self._max_size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; its body is read after the check of its key."""
        name = scope["path"].removeprefix(PREFIX).removeprefix("/") or None
        refusal = self._refusal(scope, name)
        if refusal is not None:
            await respond(send, *refusal)
            return
        body = await read_body(receive)
        if body is None:
            return
        try:
            status, answer = await self._answer(name, body, scope)
        except RequestError as error:
            status, answer = _refused(error.status, str(error))
        await respond(send, status, answer)

    def _refusal(self, scope: Scope, name: str | None) -> Answer | None:
        if name is not None and name != "batch" and name not in self._readers:
            return _refused(404, f"there is no method {name}")
        if scope["method"] != "POST":
            return _refused(405, "methods of the API are called with POST")
        refusal = self._keys.refusal(scope["headers"], scope["query_string"])
        return _refused(*refusal) if refusal is not None else None

    async def _answer(self, name: str | None, body: bytes, scope: Scope) -> Answer:
        if name is None:
            answers = await self._old(body)
            return 200, b"\n".join(map(orjson.dumps, answers))
        if name == "batch":
            return 200, orjson.dumps({"replies": await self._batch(body)})
        answer = await self._api.answer(name, self._readers[name].read(body))
        error = answer.get("error")
        if error is not None and self._wants_status(scope):
            return STATUS.get(error["code"], 500), orjson.dumps(error)
        return 200, orjson.dumps(answer)

    def _wants_status(self, scope: Scope) -> bool:
        return self._transport_errors or (ERROR_MODE, b"transport") in scope["headers"]

    async def _batch(self, body: bytes) -> list[Result]:
        batch = self._batches.read(body)
        commands = batch.commands or []
        calls = [self._call(command) for command in commands]
        answers = await self._api.answer_all(calls, parallel=bool(batch.parallel))
        return [
            answer if isinstance(call, dict) or "error" in answer else {call[0]: answer["result"]}
            for call, answer in zip(calls, answers, strict=True)
        ]

    def _call(self, command: Struct | None) -> Call:
        if command is None:
            return failure(ErrorCode.BAD_REQUEST, "the command is null")
        for name in self._readers:
            if (request := getattr(command, name)) is not None:
                return name, request
        return failure(ErrorCode.METHOD_NOT_FOUND, "the command has no known method")

    async def _old(self, body: bytes) -> list[Result]:
        """Run the commands of a body, one JSON document each."""
        commands = [self._old_commands.read(each) for each in documents(body)]
        answers = await self._api.answer_all([self._old_call(each) for each in commands])
        return [
            {"id": each.id} | answer if each.id else answer
            for each, answer in zip(commands, answers, strict=True)
        ]

    def _old_call(self, command: OldCommand) -> Call:
        method = command.method or 0
        if isinstance(method, int):
            method = OLD_METHODS[method] if method < len(OLD_METHODS) else str(method)
        name = method.lower()
        if name not in self._readers:
            return failure(ErrorCode.METHOD_NOT_FOUND, f"there is no method {name}")
        params = bytes(command.params)
        try:
            return name, self._readers[name].read(b"{}" if params in (b"", b"null") else params)
        except RequestError as error:
            return failure(ErrorCode.BAD_REQUEST, str(error))


async def read_body(receive: Receive) -> bytes | None:
    """Read and return a request's body; return None if the client is gone."""
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


async def respond(send: Send, status: int, body: bytes) -> None:
    """Send a response with a JSON body."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 405:
        headers.append((b"allow", b"POST"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _refused(status: int, message: str) -> Answer:
    return status, orjson.dumps({"detail": message})

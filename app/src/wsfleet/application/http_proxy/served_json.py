"""The other side of a proxy: requests that are read, and answers that are written."""

from collections.abc import Mapping
from typing import Any

import msgspec
import orjson
from msgspec import Raw, Struct

from wsfleet.application.port import (
    BackendError,
    Client,
    ConnectCall,
    Connected,
    Disconnect,
    DisconnectedCall,
    Error,
    Published,
    Renewed,
    Subscribed,
)
from wsfleet.auth.tokens import Grant
from wsfleet.protocol import strict_json
from wsfleet.protocol.payload import NULL, payload, payload_fields


class ServedRequest(Struct):
    """A request of a node, for any event: an event's own fields are at their default in others.

    `address`, `headers`, `emulated_headers` and `info` come from nodes that serve the same
    application, see `CompleteBodies`.
    """

    client: str
    transport: str = "websocket"
    protocol: str = "json"
    user: str = ""
    meta: Raw = NULL
    channel: str = ""
    method: str = ""
    name: str = ""
    version: str = ""
    channels: list[str] = []
    data: Raw = NULL
    b64data: str = ""
    code: int = 0
    reason: str = ""
    address: str = ""
    headers: dict[str, str] | None = None
    emulated_headers: dict[str, str] | None = None
    info: Raw = NULL
    b64info: str = ""

    def known_client(self, headers: Mapping[str, str]) -> Client:
        """Return the client; `headers` are those of the request, which a node forwards.

        Without header fields in the body, those of the request are both the handshake's and the
        emulated ones, which cannot be told apart.
        """
        return Client(
            self.client,
            user=self.user,
            info=payload(self.info, self.b64info) or b"",
            meta=payload(self.meta, None) or b"",
            transport=self.transport,
            encoding=self.protocol,
            address=self.address,
            headers=headers if self.headers is None else self.headers,
            emulated_headers=headers if self.emulated_headers is None else self.emulated_headers,
        )

    def payload(self) -> bytes:
        """Return the client's payload; empty if there is none.

        Raises:
            ValueError: it is not valid.
        """
        return payload(self.data, self.b64data) or b""

    def connect(self, client: Client, data: bytes) -> ConnectCall:
        """Return the call of a connect."""
        return ConnectCall(client, data, self.name, self.version, tuple(self.channels))

    def disconnected(self, client: Client) -> DisconnectedCall:
        """Return the call of a disconnect."""
        return DisconnectedCall(client, self.code, self.reason)


_REQUEST = msgspec.json.Decoder(ServedRequest)


def read(body: bytes) -> ServedRequest:
    """Read a request.

    Raises:
        ValueError: it is not valid.
    """
    strict_json.loads(body)
    return _REQUEST.decode(body)


def answer(result: Connected | Renewed | Subscribed | Published | bytes | None) -> bytes:
    """Return the answer with a result: of a call if it is bytes, of a disconnect if it is None.

    Raises:
        BackendError: the result has a session.
    """
    return orjson.dumps({"result": None if result is None else _result(result)})


def refusal(refused: Error | Disconnect) -> bytes:
    """Return the answer with an error or a disconnect."""
    if isinstance(refused, Disconnect):
        return orjson.dumps({"disconnect": {"code": refused.code, "reason": refused.reason}})
    error = {"code": refused.code, "message": refused.message, "temporary": refused.temporary}
    return orjson.dumps({"error": error})


def _result(result: Connected | Renewed | Subscribed | Published | bytes) -> dict[str, Any]:
    match result:
        case Connected(session=name) if name:
            raise BackendError(
                "on_connect returned a session, which the HTTP proxy does not have: serve the "
                "handlers in the node's own process, or leave Accept(session=...) out",
                reason="invalid",
            )
        case Connected():
            return {
                "user": result.user,
                "expire_at": result.expire_at,
                "subs": {channel: _grant(grant) for channel, grant in result.subs.items()},
                **payload_fields("info", result.info),
                **payload_fields("data", result.data),
                **payload_fields("meta", result.meta),
            }
        case Renewed():
            return {
                "expired": result.expired,
                "expire_at": result.expire_at,
                **payload_fields("info", result.info),
                **payload_fields("meta", result.meta),
            }
        case Subscribed():
            return {"expire_at": result.expire_at, **_grant(result.grant)}
        case Published():
            return {
                "skip_history": result.skip_history,
                "tags": dict(result.tags),
                "idempotency_key": result.idempotency_key,
                "version": result.version,
                "version_epoch": result.version_epoch,
                **payload_fields("data", result.data),
            }
        case bytes():
            return payload_fields("data", result)


def _grant(grant: Grant) -> dict[str, Any]:
    return {
        **payload_fields("info", grant.info),
        **payload_fields("data", grant.data),
        "override": {name: {"value": on} for name, on in grant.override.items()},
    }

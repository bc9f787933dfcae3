"""The requests to a backend: header fields, and bodies in JSON.

Source: internal/proxyproto/proxy.proto and internal/proxy/http.go of
github.com/centrifugal/centrifugo.
"""

import base64
import re
from collections.abc import Mapping
from typing import Any

import orjson

from wsfleet import __version__
from wsfleet.application.port import (
    BackendError,
    Client,
    ConnectCall,
    DisconnectedCall,
    PublishCall,
    RefreshCall,
    RpcCall,
    SubRefreshCall,
    SubscribeCall,
)
from wsfleet.config.proxy import Proxy
from wsfleet.protocol import strict_json
from wsfleet.protocol.payload import payload_fields

CONTENT_TYPE = b"application/json"
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class HeaderFields:
    """The header fields of one proxy's requests.

    A field of the handshake takes precedence over one of the connect command, that over a static
    one, and `Content-Type` is always JSON.
    """

    def __init__(self, options: Proxy) -> None:
        self._static = {"user-agent": f"wsfleet/{__version__}".encode()}
        for name, value in options.http.static_headers.items():
            self._static[name.lower()] = value.get_secret_value().encode()
        self._emulated = frozenset(name.lower() for name in options.emulated_headers)
        self._forwarded = sorted({name.lower() for name in options.http_headers})

    def encode(self, transport: Mapping[str, str], emulated: Mapping[str, str]) -> bytes:
        """Return the lines for the fields of the handshake and those of the connect command.

        A forwarded field is left out if its value has control characters (RFC 9110, section 5.5).
        """
        fields = dict(self._static)
        if self._emulated:
            for name, value in emulated.items():
                if (listed := name.lower()) in self._emulated and not _CONTROL.search(value):
                    fields[listed] = value.encode()
        for name in self._forwarded:
            if (found := transport.get(name)) is not None and not _CONTROL.search(found):
                fields[name] = found.encode("latin-1")
        fields["content-type"] = CONTENT_TYPE
        return b"".join(b"%b: %b\r\n" % (name.encode(), fields[name]) for name in fields)


class Bodies:
    """The bodies of one proxy's requests."""

    def __init__(self, options: Proxy) -> None:
        self._binary = options.binary_encoding
        self._encoding = "binary" if options.binary_encoding else "json"
        self._with_meta = options.include_connection_meta

    def connect(self, call: ConnectCall) -> bytes:
        """Return the body for a connect."""
        optional = {"name": call.name, "version": call.version, "channels": list(call.channels)}
        return orjson.dumps(
            self._connection(call.client)
            | {key: value for key, value in optional.items() if value}
            | self._payload(call.client, call.data)
        )

    def refresh(self, call: RefreshCall) -> bytes:
        """Return the body for a refresh."""
        return orjson.dumps(self._user(call.client))

    def subscribe(self, call: SubscribeCall) -> bytes:
        """Return the body for a subscribe."""
        return orjson.dumps(
            self._user(call.client)
            | {"channel": call.channel}
            | self._payload(call.client, call.data)
        )

    def sub_refresh(self, call: SubRefreshCall) -> bytes:
        """Return the body for a sub_refresh."""
        return orjson.dumps(self._user(call.client) | {"channel": call.channel})

    def publish(self, call: PublishCall) -> bytes:
        """Return the body for a publish."""
        return orjson.dumps(
            self._user(call.client)
            | {"channel": call.channel}
            | self._payload(call.client, call.data)
        )

    def rpc(self, call: RpcCall) -> bytes:
        """Return the body for a call."""
        method = {"method": call.method} if call.method else {}
        return orjson.dumps(
            self._user(call.client) | method | self._payload(call.client, call.data)
        )

    def disconnect(self, call: DisconnectedCall) -> bytes:
        """Return the body for a disconnect."""
        return orjson.dumps(self._user(call.client) | {"code": call.code, "reason": call.reason})

    def _connection(self, client: Client) -> dict[str, Any]:
        return {
            "client": client.id,
            "transport": client.transport,
            "protocol": client.encoding,
            "encoding": self._encoding,
        }

    def _user(self, client: Client) -> dict[str, Any]:
        body = self._connection(client) | {"user": client.user}
        if self._with_meta and client.meta:
            body["meta"] = orjson.Fragment(client.meta)
        return body

    def _payload(self, client: Client, data: bytes) -> dict[str, Any]:
        """Return the field for a payload; none for an empty one.

        Raises:
            BackendError: the payload is not JSON, and the proxy has no `binary_encoding`.
        """
        if not data:
            return {}
        if self._binary:
            return {"b64data": base64.b64encode(data).decode()}
        if client.encoding != "json" and not strict_json.is_json(data):
            raise BackendError(
                "the client's payload is not JSON: set the proxy's binary_encoding",
                reason="invalid",
            )
        return {"data": orjson.Fragment(data)}


class CompleteBodies(Bodies):
    """The bodies of requests to the node's own application in other processes.

    Its handlers know as much of a client as in the node's process, apart from `state`. The fields
    `address`, `headers`, `emulated_headers` and `info` are not Centrifugo's.
    """

    def _connection(self, client: Client) -> dict[str, Any]:
        return super()._connection(client) | {
            "address": client.address,
            "headers": dict(client.headers),
            "emulated_headers": dict(client.emulated_headers),
        }

    def _user(self, client: Client) -> dict[str, Any]:
        return super()._user(client) | payload_fields("info", client.info)

    def _payload(self, client: Client, data: bytes) -> dict[str, Any]:
        return payload_fields("data", data)

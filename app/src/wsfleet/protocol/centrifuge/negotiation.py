"""The encoding that a WebSocket client asks for.

Source: WebsocketHandler.ServeHTTP in handler_websocket.go of github.com/centrifugal/centrifuge.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import parse_qs

from wsfleet.protocol.centrifuge.json_codec import JSONCodec
from wsfleet.protocol.centrifuge.protobuf_codec import ProtobufCodec

PATH = "/connection/websocket"
SUBPROTOCOLS = (JSONCodec.subprotocol, ProtobufCodec.subprotocol)


@dataclass(frozen=True, slots=True)
class Negotiated:
    """The encoding's name, the subprotocol of the answer, and who sends pings.

    With `frame_ping_pong`, pings are those of WebSocket, for clients without pings of the protocol.
    """

    encoding: str
    subprotocol: str | None
    frame_ping_pong: bool


def negotiate(offered: Iterable[str], query: str = "") -> Negotiated:
    """Choose by the offered subprotocols, in their order, and the URL's query string.

    JSON is the default. Protobuf is asked for by its subprotocol, or by `format=protobuf` or
    `cf_protocol=protobuf` in the query.
    """
    subprotocol = next((name for name in offered if name in SUBPROTOCOLS), None)
    values = {name: value[0] for name, value in parse_qs(query, keep_blank_values=True).items()}
    protobuf = (
        subprotocol == ProtobufCodec.subprotocol
        or values.get("format") == "protobuf"
        or values.get("cf_protocol") == "protobuf"
    )
    return Negotiated(
        ProtobufCodec.name if protobuf else JSONCodec.name,
        subprotocol,
        values.get("cf_ws_frame_ping_pong") == "true",
    )

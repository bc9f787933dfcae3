"""The Centrifuge client protocol (bidirectional, over WebSocket) in JSON and in Protobuf."""

from wsfleet.protocol.centrifuge.codec import Codec, Opcode, ProtocolError
from wsfleet.protocol.centrifuge.codes import (
    DisconnectCode,
    ErrorCode,
    UnsubscribeCode,
    reconnects,
)
from wsfleet.protocol.centrifuge.json_codec import JSONCodec
from wsfleet.protocol.centrifuge.negotiation import SUBPROTOCOLS, Negotiated, negotiate
from wsfleet.protocol.centrifuge.protobuf_codec import ProtobufCodec

__all__ = [
    "SUBPROTOCOLS",
    "Codec",
    "DisconnectCode",
    "ErrorCode",
    "JSONCodec",
    "Negotiated",
    "Opcode",
    "ProtobufCodec",
    "ProtocolError",
    "UnsubscribeCode",
    "negotiate",
    "reconnects",
]

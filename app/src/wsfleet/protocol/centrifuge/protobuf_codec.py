"""The Protobuf encoding: messages one after the other, each preceded by its length."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Wire

from wsfleet.protocol.centrifuge import client_pb2
from wsfleet.protocol.centrifuge.codec import (
    Codec,
    Convert,
    bad_request,
    converter,
    field_types,
)
from wsfleet.protocol.centrifuge.messages import (
    EVENTS,
    MESSAGES,
    REQUESTS,
    RESULTS,
    Command,
    Push,
    Reply,
)

W = TypeVar("W", bound=Wire)


class ProtobufCodec(Codec):
    """Commands and replies as length-delimited Protobuf messages."""

    name = "protobuf"
    subprotocol = "centrifuge-protobuf"
    binary = True
    ping = b"\0"
    pongs = frozenset(("\0", b"\0"))

    def decode(self, message: str | bytes) -> list[Command]:
        """See `Codec.decode`."""
        return [
            self._command(wire.id, [_message(part) for part in _parts(wire, REQUESTS)])
            for wire in self._read(message, client_pb2.Command)
        ]

    def _encode(self, replies: Sequence[Reply]) -> bytes:
        return b"".join(_delimited(_reply(reply)) for reply in replies)

    def join(self, parts: Iterable[bytes]) -> bytes:
        """See `Codec.join`."""
        return b"".join(parts)

    def encode_commands(self, commands: Sequence[Command]) -> bytes:
        """See `Codec.encode_commands`; every payload can be sent."""
        return b"".join(_delimited(_command(command)) for command in commands)

    def decode_replies(self, message: str | bytes) -> list[Reply]:
        """See `Codec.decode_replies`."""
        return [_read_reply(wire) for wire in self._read(message, client_pb2.Reply)]

    def _read(self, message: str | bytes, cls: type[W]) -> list[W]:
        try:
            data = message.encode() if isinstance(message, str) else message
            wires: list[W] = []
            for part in _split(data):
                self._limit(len(wires) + 1)
                wires.append(cls.FromString(part))
        except (DecodeError, ValueError) as error:
            raise bad_request(f"not a message of the protocol: {error}") from None
        if not wires:
            raise bad_request("an empty message")
        return wires


def _split(data: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        size, position = _read_varint(data, position)
        end = position + size
        if end > len(data):
            raise ValueError("a message is cut short")
        yield data[position:end]
        position = end


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    for index in range(position, min(position + 10, len(data))):
        byte = data[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    raise ValueError("a length is cut short or too long")


def _delimited(wire: Wire) -> bytes:
    body = wire.SerializeToString()
    size = len(body)
    prefix = bytearray()
    while size > 0x7F:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + body


def _command(command: Command) -> Wire:
    out: dict[str, Any] = {"id": command.id}
    if command.request is not None:
        out[REQUESTS[type(command.request)]] = _wire(command.request)
    return client_pb2.Command(**out)


def _reply(reply: Reply) -> Wire:
    out: dict[str, Any] = {"id": reply.id}
    if reply.error is not None:
        out["error"] = _wire(reply.error)
    if reply.result is not None:
        out[RESULTS[type(reply.result)]] = _wire(reply.result)
    if reply.push is not None:
        event: dict[str, Any] = {EVENTS[type(reply.push.event)]: _wire(reply.push.event)}
        out["push"] = client_pb2.Push(channel=reply.push.channel, **event)
    return client_pb2.Reply(**out)


def _wire(message: Any) -> Wire:
    cls, names = _WIRES[type(message)]
    out = {}
    for name, convert in names:
        if value := getattr(message, name):
            out[name] = value if convert is None else convert(value)
    return cls(**out)


def _read_reply(wire: client_pb2.Reply) -> Reply:
    push = None
    if wire.HasField("push"):
        events = _parts(wire.push, EVENTS)
        if not events:
            raise bad_request("a push without a known event")
        push = Push(_message(events[0]), wire.push.channel)
    error = _message(wire.error) if wire.HasField("error") else None
    results = _parts(wire, RESULTS)
    return Reply(wire.id, _message(results[0]) if results else None, error, push)


def _parts(wire: Wire, names: dict[Any, str]) -> list[Any]:
    found = {field.name: value for field, value in wire.ListFields()}
    return [found[name] for name in names.values() if name in found]


def _message(wire: Wire) -> Any:
    cls, converts = _CLASSES[type(wire)]
    found = {}
    for field, value in wire.ListFields():
        convert = converts[field.name]
        found[field.name] = value if convert is None else convert(value)
    return cls(**found)


# How each message is written, and read.
_WIRES: dict[type, tuple[type[Wire], tuple[tuple[str, Convert | None], ...]]] = {}
_CLASSES: dict[type[Wire], tuple[type, dict[str, Convert | None]]] = {}


def _define(cls: type) -> None:
    hints = field_types(cls)
    writers, readers = dict.fromkeys(MESSAGES, _wire), dict.fromkeys(MESSAGES, _message)
    wire: type[Wire] = getattr(client_pb2, cls.__name__)
    _WIRES[cls] = wire, tuple((name, converter(hint, writers)) for name, hint in hints.items())
    _CLASSES[wire] = cls, {name: converter(hint, readers) for name, hint in hints.items()}


for _cls in MESSAGES:
    _define(_cls)

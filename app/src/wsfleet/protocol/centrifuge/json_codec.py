"""The JSON encoding: one object a line, payloads embedded as they came."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, get_args, get_origin

import msgspec
import orjson
from msgspec import Raw, Struct, defstruct

from wsfleet.protocol import strict_json
from wsfleet.protocol.centrifuge import messages
from wsfleet.protocol.centrifuge.codec import (
    Codec,
    Convert,
    ProtocolError,
    bad_request,
    converter,
    field_types,
)
from wsfleet.protocol.centrifuge.codes import DisconnectCode, ErrorCode
from wsfleet.protocol.centrifuge.messages import (
    EVENTS,
    MESSAGES,
    REQUESTS,
    RESULTS,
    Command,
    Push,
    Reply,
    UInt64,
)

M = TypeVar("M")

# Fields that are sent even at their default: generate.sh of github.com/centrifugal/protocol.
ALWAYS: dict[type, frozenset[str]] = {
    messages.ClientInfo: frozenset({"user", "client"}),
    messages.PresenceResult: frozenset({"presence"}),
    messages.PresenceStatsResult: frozenset({"num_clients", "num_users"}),
    messages.HistoryResult: frozenset({"publications", "epoch", "offset"}),
}
# An escaped character, or an escaped surrogate with its other half, if it has one.
ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[dD][c-fC-F][0-9a-fA-F]{2})?"
    r"|u[dD][c-fC-F][0-9a-fA-F]{2}|.)"
)


class JSONCodec(Codec):
    """Commands and replies as lines of JSON.

    A payload that a Protobuf client published may not be JSON. Like the reference server, the codec
    refuses to send it, and the JSON client is to be disconnected (3506).
    """

    name = "json"
    subprotocol = "centrifuge-json"
    binary = False
    ping = b"{}"
    pongs = frozenset(("{}", "{}\n", b"{}", b"{}\n"))

    def decode(self, message: str | bytes) -> list[Command]:
        """Read lines, of which the last may end with a newline; see `Codec.decode`."""
        return self._read(message, self._read_command)

    def _encode(self, replies: Sequence[Reply]) -> bytes:
        return b"\n".join(orjson.dumps(_reply(reply)) for reply in replies)

    def join(self, parts: Iterable[bytes]) -> bytes:
        """See `Codec.join`."""
        return b"\n".join(parts)

    def encode_commands(self, commands: Sequence[Command]) -> bytes:
        """See `Codec.encode_commands`."""
        return b"\n".join(orjson.dumps(_command(command)) for command in commands)

    def decode_replies(self, message: str | bytes) -> list[Reply]:
        """See `Codec.decode_replies`."""
        return self._read(message, _read_reply)

    def _read_command(self, line: str) -> Command:
        try:
            strict_json.loads(line)
        except strict_json.InvalidJSONError:
            if not strict_json.is_ambiguous(line):
                raise
            # JavaScript's JSON.stringify writes half a surrogate pair (an emoji cut in two) as an
            # escape. Repaired, the line has the id of the refused command.
            command = self._command_of(_COMMANDS.decode(ESCAPE.sub(_mend, line)))
            return replace(command, refusal=ErrorCode.BAD_REQUEST.error if command.id else None)
        return self._command_of(_COMMANDS.decode(line))

    def _command_of(self, wire: Any) -> Command:
        return self._command(wire.id or 0, [_message(part) for part in _parts(wire, REQUESTS)])

    def _read(self, message: str | bytes, read_line: Callable[[str], M]) -> list[M]:
        try:
            text = message if isinstance(message, str) else message.decode()
            text = text.removesuffix("\n")
            self._limit(text.count("\n") + 1)
            return [read_line(line) for line in text.split("\n")]
        except (ValueError, RecursionError) as error:
            raise bad_request(f"not a message of the protocol: {error}") from None


# Sending: a message becomes a dict without the fields that are at their default.


def _command(command: Command) -> dict[str, Any]:
    out: dict[str, Any] = {"id": command.id} if command.id else {}
    if command.request is not None:
        out[REQUESTS[type(command.request)]] = _object(command.request)
    return out


def _reply(reply: Reply) -> dict[str, Any]:
    out: dict[str, Any] = {"id": reply.id} if reply.id else {}
    if reply.error is not None:
        out["error"] = _object(reply.error)
    if reply.result is not None:
        out[RESULTS[type(reply.result)]] = _object(reply.result)
    if reply.push is not None:
        push = out["push"] = {"channel": reply.push.channel} if reply.push.channel else {}
        push[EVENTS[type(reply.push.event)]] = _object(reply.push.event)
    return out


def _object(message: Any) -> dict[str, Any]:
    out = {}
    for name, always, convert in _FIELDS[type(message)]:
        value = getattr(message, name)
        if value or always:
            out[name] = value if convert is None else convert(value)
    return out


def _payload(payload: bytes) -> orjson.Fragment:
    try:
        orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(
            DisconnectCode.INAPPROPRIATE_PROTOCOL,
            f"a payload that is not JSON cannot go to a JSON client: {error}",
        ) from None
    # A newline would end the message; outside of strings, which escape it, it means nothing.
    return orjson.Fragment(payload.replace(b"\n", b""))


# Receiving: msgspec checks types and ranges, and hands out payloads as the text that they are.


def _mend(escape: re.Match[str]) -> str:
    return r"\ufffd" if len(escape[0]) == 6 else escape[0]


def _parts(wire: Struct, names: dict[Any, str]) -> list[Struct]:
    return [part for name in names.values() if (part := getattr(wire, name)) is not None]


def _read_reply(line: str) -> Reply:
    strict_json.loads(line)
    wire: Any = _REPLIES.decode(line)
    push = None
    if wire.push is not None:
        events = _parts(wire.push, EVENTS)
        if not events:
            raise bad_request("a push without a known event")
        push = Push(_message(events[0]), wire.push.channel or "")
    error = None if wire.error is None else _message(wire.error)
    results = _parts(wire, RESULTS)
    return Reply(wire.id or 0, _message(results[0]) if results else None, error, push)


def _message(wire: Any) -> Any:
    """Return the message that was read; null counts as a missing field."""
    cls, names = _CLASSES[type(wire)]
    found = {}
    for name, convert in names:
        value = getattr(wire, name)
        if value is not None:
            found[name] = value if convert is None else convert(value)
    return cls(**found)


def _read_uint64(value: int) -> int:
    if value >= 2**64:
        raise ValueError("integer out of range")
    return value


# How each message is written (fields with whether they are always sent), and read.
_FIELDS: dict[type, tuple[tuple[str, bool, Convert | None], ...]] = {}
_WIRES: dict[Any, type[Struct]] = {}
_CLASSES: dict[type[Struct], tuple[type, tuple[tuple[str, Convert | None], ...]]] = {}


def _define(cls: type) -> None:
    hints = field_types(cls)
    writers: dict[Any, Convert] = {bytes: _payload, **dict.fromkeys(MESSAGES, _object)}
    readers: dict[Any, Convert] = {bytes: bytes, UInt64: _read_uint64}
    readers |= dict.fromkeys(MESSAGES, _message)
    always = ALWAYS.get(cls, ())
    _FIELDS[cls] = tuple((n, n in always, converter(hint, writers)) for n, hint in hints.items())
    wire = defstruct(cls.__name__, [_wire_field(n, hint) for n, hint in hints.items()])
    _WIRES[cls] = wire
    _CLASSES[wire] = cls, tuple((n, converter(hint, readers)) for n, hint in hints.items())


def _wire_field(name: str, hint: Any) -> tuple[str, Any, Any]:
    """Return name, type and default of a field as msgspec reads it; None is a missing field."""
    if hint is bytes:
        return name, Raw, None
    if get_origin(hint) in (list, dict):
        hint = get_origin(hint)[tuple(_WIRES.get(item, item) for item in get_args(hint))]
    return name, _WIRES.get(hint, hint) | None, None


def _envelope(name: str, members: dict[str, Any]) -> type[Struct]:
    return defstruct(name, [(member, kind | None, None) for member, kind in members.items()])


for _cls in MESSAGES:
    _define(_cls)

_COMMANDS = msgspec.json.Decoder(
    _envelope("Command", {"id": messages.UInt32} | {REQUESTS[c]: _WIRES[c] for c in REQUESTS})
)
_PUSH = _envelope("Push", {"channel": str} | {EVENTS[c]: _WIRES[c] for c in EVENTS})
_REPLIES = msgspec.json.Decoder(
    _envelope(
        "Reply",
        {"id": messages.UInt32, "error": _WIRES[messages.Error], "push": _PUSH}
        | {RESULTS[c]: _WIRES[c] for c in RESULTS},
    )
)

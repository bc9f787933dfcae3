"""The Centrifuge protocol without I/O: the common part of both encodings."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from wsfleet.protocol.centrifuge.codes import DisconnectCode, ErrorCode
from wsfleet.protocol.centrifuge.messages import (
    Command,
    Publication,
    Push,
    Reply,
    Request,
    SendRequest,
)

MAX_COMMANDS = 1024  # SDKs subscribe to all their channels in one frame after a reconnect
MAX_CHANNEL = 255
LONGEST_PONG = 3
"""Bytes, or characters, of the longest of `Codec.pongs`: others need not be compared with them."""


class ProtocolError(Exception):
    """A message that is invalid, or cannot be sent; `disconnect` is the close of the connection."""

    def __init__(self, disconnect: DisconnectCode, message: str) -> None:
        super().__init__(message)
        self.disconnect = disconnect


class Codec(ABC):
    """An encoding: bytes to commands, replies to bytes.

    It keeps no state, so one serves all connections. `binary` says whether payloads are binary or
    text, `ping` is the payload of a ping, `pongs` are those of a message that is a pong alone.

    Arguments:
        max_commands: the limit of commands in one message.
        max_channel: the limit of a channel's name, in bytes of UTF-8.
    """

    name: ClassVar[str]
    subprotocol: ClassVar[str]
    binary: ClassVar[bool]
    ping: ClassVar[bytes]
    pongs: ClassVar[frozenset[str | bytes]]

    def __init__(self, max_commands: int = MAX_COMMANDS, max_channel: int = MAX_CHANNEL) -> None:
        self._max_commands = max_commands
        self._max_channel = max_channel

    @abstractmethod
    def decode(self, message: str | bytes) -> list[Command]:
        """Read the commands of one WebSocket message, whether it came as text or as binary.

        A frame is taken whole or not at all. The reference server carries out the commands before
        the fault.

        Raises:
            ProtocolError: it is malformed or empty (3501, "bad request"), or carries too many
                commands (3013).
        """

    def encode(self, replies: Sequence[Reply]) -> bytes:
        """Payload of one WebSocket message that carries all the replies; see `join`.

        Raises:
            ProtocolError: a field cannot be sent to a client of this encoding (3506): a payload
                that is not JSON, text that is not Unicode, a number out of range.
        """
        try:
            return self._encode(replies)
        except (ValueError, TypeError, RecursionError) as error:
            raise ProtocolError(
                DisconnectCode.INAPPROPRIATE_PROTOCOL,
                f"a reply cannot be sent to a {self.name} client: {error}",
            ) from error

    @abstractmethod
    def _encode(self, replies: Sequence[Reply]) -> bytes:
        """Encode; ValueError and TypeError mean that a field cannot be sent."""

    @abstractmethod
    def join(self, parts: Iterable[bytes]) -> bytes:
        """Payload of one WebSocket message from the results of several `encode` calls."""

    @abstractmethod
    def encode_commands(self, commands: Sequence[Command]) -> bytes:
        """Payload of one WebSocket message, as a client sends it.

        Raises:
            ProtocolError: a payload cannot be sent in this encoding (3506).
        """

    @abstractmethod
    def decode_replies(self, message: str | bytes) -> list[Reply]:
        """Read the replies of one WebSocket message, as a client does.

        Raises:
            ProtocolError: it is malformed (3501).
        """

    def encode_publication(self, channel: str, publication: Publication) -> bytes:
        """Encode a publication for all subscribers of this encoding.

        Raises:
            ProtocolError: as for `encode`.
        """
        return self.encode([Reply(push=Push(publication, channel))])

    def _command(self, number: int, requests: list[Request]) -> Command:
        """Return the command of an id and its requests, in the order of REQUESTS."""
        if number == 0 and not any(isinstance(request, SendRequest) for request in requests):
            return Command()  # whatever else it carries, as in the reference server
        if not requests:
            raise bad_request("a command without a known method")
        request = requests[0]
        if number == 0 and not isinstance(request, SendRequest):
            raise bad_request("a command without an id")
        channel = getattr(request, "channel", None)
        if channel is None:
            return Command(number, request)
        if not channel:
            raise bad_request("a command without a channel")
        if len(channel.encode()) > self._max_channel:
            return Command(number, request, ErrorCode.BAD_REQUEST.error)
        return Command(number, request)

    def _limit(self, commands: int) -> None:
        if commands > self._max_commands:
            raise ProtocolError(DisconnectCode.TOO_MANY_REQUESTS, "too many commands in a frame")


def bad_request(message: str) -> ProtocolError:
    """Return the error for a malformed message."""
    return ProtocolError(DisconnectCode.BAD_REQUEST, message)


Convert = Callable[[Any], Any]


def converter(hint: Any, leaves: Mapping[Any, Convert]) -> Convert | None:
    """Return the conversion of values of type `hint`, made of those in `leaves` for its parts.

    None means that they stay as they are.
    """
    if hint in leaves:
        return leaves[hint]
    inner = converter(get_args(hint)[-1], leaves) if get_origin(hint) in (list, dict) else None
    if get_origin(hint) is list and inner is not None:
        return lambda values: [inner(value) for value in values]
    if get_origin(hint) is dict and inner is not None:
        return lambda values: {key: inner(value) for key, value in values.items()}
    return {list: list, dict: dict}.get(get_origin(hint))


def field_types(message: type) -> dict[str, Any]:
    """Return names and types of a message's fields, without their None."""
    hints = get_type_hints(message, include_extras=True).items()
    return {n: get_args(hint)[0] if get_origin(hint) is UnionType else hint for n, hint in hints}

"""A publication as Redis stores it; each protocol makes its own message of it."""

from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec
import structlog

from wsfleet.channels.stream import Entry

log = structlog.get_logger(__name__)

Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999)]
"""Unix milliseconds up to the year 9999, where ISO 8601 ends."""


class Member(msgspec.Struct, array_like=True, frozen=True):
    """A client as a member of a channel; `client` is the name of its connection."""

    user: str = ""
    client: str = ""
    conn_info: bytes = b""
    chan_info: bytes = b""


class Record(msgspec.Struct, array_like=True, frozen=True):
    """A stored publication; `time` is in Unix milliseconds.

    `publisher` is None if the server API published. `node` and `number` are the publisher's
    connection, which is not sent its own message in the plain protocol.

    New fields go to the end, with defaults: old and new nodes read each other's records.
    """

    data: bytes
    time: Milliseconds
    publisher: Member | None = None
    tags: dict[str, str] = {}
    node: str = ""
    number: int = 0

    @property
    def size(self) -> int:
        """Bytes of the data, and characters of the tags."""
        if not self.tags:
            return len(self.data)
        return len(self.data) + sum(len(key) + len(value) for key, value in self.tags.items())


_encoder = msgspec.msgpack.Encoder()
_records = msgspec.msgpack.Decoder(Record)
_members = msgspec.msgpack.Decoder(Member)

encode = _encoder.encode


def decode_record(data: bytes) -> Record:
    """Decode a record.

    Raises:
        msgspec.DecodeError: it is invalid.
    """
    try:
        return _records.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:  # not wrapped by msgspec
        raise msgspec.DecodeError(str(error)) from None


def decode_member(data: bytes) -> Member:
    """Decode a member.

    Raises:
        msgspec.DecodeError: it is invalid.
    """
    try:
        return _members.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None


def understood(channel: str, entry: Entry) -> Record | None:
    """Return the record of an entry; None, with a warning in the log, if it is invalid.

    A newer node, or another program, may have written it.
    """
    try:
        return decode_record(entry.record)
    except msgspec.DecodeError as error:
        log.warning("record_invalid", channel=channel, offset=entry.offset, error=str(error))
        return None


def all_understood(channel: str, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Record]]:
    """Decode the records of entries; invalid ones are left out."""
    for entry in entries:
        if (record := understood(channel, entry)) is not None:
            yield entry, record

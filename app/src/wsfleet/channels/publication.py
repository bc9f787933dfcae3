"""A publication as the cluster keeps it: what every protocol makes its own message of."""

from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec
import structlog

from wsfleet.channels.stream import Entry

log = structlog.get_logger(__name__)

Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999)]
"""Unix time up to the year 9999, where ISO 8601 ends."""


class Member(msgspec.Struct, array_like=True, frozen=True):
    """Who did something in a channel; `client` is the name of one connection."""

    user: str = ""
    client: str = ""
    conn_info: bytes = b""
    chan_info: bytes = b""


class Record(msgspec.Struct, array_like=True, frozen=True):
    """What was published; `time` in Unix milliseconds.

    `publisher` is None where the server API published. `node` and `number` are the publisher's
    connection, which does not hear its own message in the plain protocol.

    Fields may be added at the end, with defaults: old and new nodes read each other.
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
    """Read a record.

    Raises:
        msgspec.DecodeError: it is none.
    """
    try:
        return _records.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:  # which msgspec lets through
        raise msgspec.DecodeError(str(error)) from None


def decode_member(data: bytes) -> Member:
    """Read a member.

    Raises:
        msgspec.DecodeError: it is none.
    """
    try:
        return _members.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None


def understood(channel: str, entry: Entry) -> Record | None:
    """Read the record of an entry; None, with a warning in the log, if it is invalid.

    A newer node may have written it, or something that is not a node. Wherever it is met, live or
    in the history, it is passed over.
    """
    try:
        return decode_record(entry.record)
    except msgspec.DecodeError as error:
        log.warning("record_invalid", channel=channel, offset=entry.offset, error=str(error))
        return None


def all_understood(channel: str, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Record]]:
    """Read the records of entries, without the invalid ones."""
    for entry in entries:
        if (record := understood(channel, entry)) is not None:
            yield entry, record

"""A publication as the cluster keeps it: what every protocol makes its own message of."""

import msgspec


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
    time: int
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
    return _records.decode(data)


def decode_member(data: bytes) -> Member:
    """Read a member.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return _members.decode(data)

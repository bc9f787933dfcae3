"""The Redis Functions of `functions.lua`, on a database in memory; see the comments there.

A database in memory does not outlive its process, so no offsets are skipped after a restart.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wsfleet.redis.memory.database import Database, EntryStream, Hash, SortedSet

Function = Callable[[Database, list[bytes], list[bytes]], Any]

HELD = 1000
CLEARED = 100
LEASE_KEPT = 86_400
TOKEN_STEP = 1_000_000


def claim(database: Database, keys: list[bytes], args: list[bytes]) -> bytes:
    """Claim a name for a node; return its holder."""
    holder = database.find(keys[0], bytes)
    if holder is not None and holder not in args:
        return holder
    database.put(keys[0], args[0])
    return args[0]


def release(database: Database, keys: list[bytes], args: list[bytes]) -> int:
    """Release a node's name."""
    if database.find(keys[0], bytes) != args[0]:
        return 0
    return int(database.delete(keys[0]))


def heartbeat(database: Database, keys: list[bytes], args: list[bytes]) -> list[Any]:
    """Note a node's sign of life; return whether it was known, and the silent nodes."""
    nodes, now = database.ensure(keys[0], SortedSet), database.clock()
    known = int(args[0] in nodes)
    nodes[args[0]] = _rounded(now)
    limit = _rounded(now - float(args[1]))
    return [known, nodes.between(-math.inf, limit, exclusive=True)]


def describe(database: Database, keys: list[bytes], args: list[bytes]) -> int:
    """Store a node's report of itself."""
    fields = zip(args[1::2], args[2::2], strict=True)
    database.ensure(keys[0], Hash).update(fields)
    return int(database.expire(keys[0], int(args[0])))


def silence(database: Database, keys: list[bytes], args: list[bytes]) -> int:
    """Return milliseconds since a node's last sign of life; -1 if it is unknown."""
    seen = database.read(keys[0], SortedSet).get(args[0])
    return -1 if seen is None else max(0, math.floor((database.clock() - seen) * 1000))


def forget(database: Database, keys: list[bytes], args: list[bytes]) -> int:
    """Remove a silent node from the registry."""
    seen = database.read(keys[0], SortedSet).get(args[0])
    if seen is None or seen >= database.clock() - float(args[1]):
        return 0
    return database.remove(keys[0], SortedSet, args[0])


@dataclass
class _Known:
    """The state of a stream; see `known` in `functions.lua`."""

    epoch: bytes
    offset: int = 0
    sent: int | None = None

    @property
    def top(self) -> int:
        return self.offset if self.sent is None else self.sent


def _known(database: Database, meta: bytes) -> _Known | None:
    found = database.find(meta, Hash)
    if found is None or b"epoch" not in found:
        return None
    sent = found.get(b"sent")
    return _Known(found[b"epoch"], int(found[b"offset"]), None if sent is None else int(sent))


def _position(
    database: Database, stream: bytes, meta: bytes, new_epoch: bytes, meta_ttl: bytes
) -> _Known:
    at = _known(database, meta)
    if at is not None:
        return at
    database.delete(stream)
    database.ensure(meta, Hash).update({b"epoch": new_epoch, b"offset": b"0"})
    database.expire(meta, int(meta_ttl))
    return _Known(new_epoch)


def _send(database: Database, channel: bytes, offset: int, epoch: bytes, record: bytes) -> None:
    head = b"p %d %d %s\n" % (offset, max(0, offset - 1), epoch)
    database.publish(channel, head + record)


def _send_held(
    database: Database, stream: bytes, channel: bytes, epoch: bytes, sent: int, offset: int
) -> None:
    held = database.read(stream, EntryStream)
    for (number, _), (_, record) in held.between((sent + 1, 0), (offset, 0)):
        _send(database, channel, number, epoch, record)


def _is_above(a: bytes, b: bytes) -> bool:
    return len(a) > len(b) or (len(a) == len(b) and a > b)


def publish(database: Database, keys: list[bytes], args: list[bytes]) -> list[Any]:
    """Publish a record; return its offset and epoch."""
    channel, record, size, once_ttl = args[0], args[1], int(args[2]), int(args[6])
    hold = args[7] == b"1"
    if once_ttl > 0:
        first = database.find(keys[2], bytes)
        if first is not None:
            earlier, _, epoch = first.partition(b" ")
            if hold:
                database.expire(keys[1], int(args[4]))
            return [int(earlier), epoch]
    offset, epoch = 0, b""
    if size > 0:
        at = _position(database, keys[0], keys[1], args[5], args[4])
        meta = database.ensure(keys[1], Hash)
        if at.sent is not None and not hold:  # the channel does not hold publications any more
            _send_held(database, keys[0], channel, at.epoch, at.sent, at.offset)
            del meta[b"sent"]
        if not _is_next_version(meta, *args[8:10]):
            if hold:
                database.expire(keys[1], int(args[4]))
            return [at.offset, at.epoch]
        offset, epoch = _store(database, keys, args, at)
    else:
        _send(database, channel, 0, b"", record)
    if once_ttl > 0:
        database.put(keys[2], b"%d %s" % (offset, epoch))
        database.expire(keys[2], once_ttl)
    return [offset, epoch]


def _is_next_version(meta: Hash, version: bytes, version_epoch: bytes) -> bool:
    """Return whether a version may be published, and store it; 0 means no version."""
    if version == b"0":
        return True
    last = meta.get(b"version")
    same = version_epoch in (b"", meta.get(b"version_epoch"))
    if last is not None and same and not _is_above(version, last):
        return False
    meta.update({b"version": version, b"version_epoch": version_epoch})
    return True


def _store(
    database: Database, keys: list[bytes], args: list[bytes], at: _Known
) -> tuple[int, bytes]:
    """Store a record; send it, or hold it until it is confirmed."""
    channel, record, size, hold = args[0], args[1], int(args[2]), args[7] == b"1"
    meta, offset = database.ensure(keys[1], Hash), at.offset + 1
    stream = database.ensure(keys[0], EntryStream)
    stream.add((offset, 0), [b"r", record], size + HELD if hold else size)
    meta[b"offset"] = b"%d" % offset
    database.expire(keys[0], int(args[3]))
    database.expire(keys[1], int(args[4]))
    if hold:
        meta.setdefault(b"sent", b"%d" % at.offset)
        return offset, at.epoch
    _send(database, channel, offset, at.epoch, record)
    return offset, at.epoch


def confirm(database: Database, keys: list[bytes], args: list[bytes]) -> int:
    """Send the held publications up to an offset."""
    at, offset = _known(database, keys[1]), int(args[1])
    if at is None or at.epoch != args[2]:
        return 0
    if at.sent is not None and at.sent < offset:
        _send_held(database, keys[0], args[0], at.epoch, at.sent, offset)
        database.ensure(keys[1], Hash)[b"sent"] = b"%d" % offset
        stream = database.read(keys[0], EntryStream)
        stream.trim(int(args[3]) + at.offset - offset)
    return 1


def history(database: Database, keys: list[bytes], args: list[bytes]) -> list[Any]:
    """Read a part of a stream; return its top and epoch, the records, and whether they are cut."""
    since, limit, reverse, room = int(args[0]), int(args[1]), args[2] == b"1", int(args[3])
    at = _known(database, keys[1]) or _Known(b"")
    first, last = since + 1, at.top
    if reverse:
        first, last = 1, min(since - 1, at.top) if since > 0 else at.top
    stream = database.read(keys[0], EntryStream)
    entries = stream.between((first, 0), (last, 0))
    if reverse:
        entries.reverse()
    flat: list[int | bytes] = []
    for (offset, _), (_, record) in entries[: max(0, limit)]:
        room -= len(record)
        if room < 0 and flat:
            return [at.top, at.epoch, flat, 1]
        flat += [offset, offset - 1, record]
    return [at.top, at.epoch, flat, 0]


def begin(database: Database, keys: list[bytes], args: list[bytes]) -> int:
    """Give a stream without publications an epoch."""
    if _position(database, keys[0], keys[1], *args).offset > 0:
        return 0
    return int(database.expire(keys[1], int(args[1])))


def join(database: Database, keys: list[bytes], args: list[bytes]) -> int:
    """Add a client to a channel's presence."""
    now = database.clock()
    expiry = database.read(keys[1], SortedSet)
    gone = expiry.between(-math.inf, _rounded(now))[:CLEARED]
    database.remove(keys[0], Hash, *gone)
    database.remove(keys[1], SortedSet, *gone)
    database.ensure(keys[0], Hash)[args[0]] = args[1]
    database.ensure(keys[1], SortedSet)[args[0]] = _rounded(now + float(args[2]))
    for key in keys:
        database.expire(key, int(args[2]))
    return 1


def leave(database: Database, keys: list[bytes], args: list[bytes]) -> int:
    """Remove a client from a channel's presence."""
    database.remove(keys[1], SortedSet, args[0])
    return database.remove(keys[0], Hash, args[0])


def members(database: Database, keys: list[bytes], args: list[bytes]) -> list[bytes] | None:
    """Return the clients of a channel's presence and their infos; None if they are too large."""
    expiry, room = database.read(keys[1], SortedSet), int(args[0])
    expired = set(expiry.between(-math.inf, _rounded(database.clock())))
    found = database.read(keys[0], Hash)
    flat = [text for pair in found.items() if pair[0] not in expired for text in pair]
    if 0 < room < sum(map(len, flat)):
        return None
    return flat


def lease_acquire(database: Database, keys: list[bytes], args: list[bytes]) -> list[int]:
    """Acquire or renew a lease; return its token, 0 if another holds it, and if that is wanted."""
    lease, now, ttl = database.ensure(keys[0], Hash), database.clock(), int(args[1]) / 1000
    token, holder = int(lease.get(b"token", b"0")), lease.get(b"holder")
    held = holder is not None and float(lease[b"until"]) > now
    if held and holder != args[0]:
        lease[b"wanted"] = b"1"
        return [0, 0]
    wanted = lease.pop(b"wanted", None) is not None
    if not held:
        token = max(int(now * 1_000_000), token + TOKEN_STEP)
    until = b"%.6f" % (now + ttl)
    lease.update({b"holder": args[0], b"token": b"%d" % token, b"until": until})
    database.expire(keys[0], math.ceil(ttl) + LEASE_KEPT)
    return [token, int(held and wanted)]


def lease_release(database: Database, keys: list[bytes], args: list[bytes]) -> int:
    """Release a lease."""
    lease = database.read(keys[0], Hash)
    if lease.get(b"holder") != args[0]:
        return 0
    del lease[b"holder"]
    return 1


def session_save(database: Database, keys: list[bytes], args: list[bytes]) -> int:
    """Change keys of a session; return its bytes, and change nothing if they are too many."""
    changes = dict(zip(args[2::2], args[3::2], strict=True))
    session = database.read(keys[0], Hash) | changes
    size = sum(len(key) + len(value) for key, value in session.items() if value)
    if size <= int(args[0]):
        database.remove(keys[0], Hash, *(key for key, value in changes.items() if not value))
        if written := {key: value for key, value in changes.items() if value}:
            database.ensure(keys[0], Hash).update(written)
        database.expire(keys[0], int(args[1]))
    return size


def _rounded(seconds: float) -> float:
    """Return a score as Redis gets it, in milliseconds."""
    return float(f"{seconds:.3f}")


FUNCTIONS: dict[str, Function] = {
    function.__name__: function
    for function in (
        *(publish, confirm, history, begin, join, leave, members),
        *(claim, release, heartbeat, describe, silence, forget),
        *(lease_acquire, lease_release, session_save),
    )
}
"""Functions by name, as `Store.function` calls them."""

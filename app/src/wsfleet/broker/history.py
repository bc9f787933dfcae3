"""Reading a channel's stream in Redis."""

import random

from wsfleet.channels.stream import Entry, Reading
from wsfleet.config.schema import ChannelOptions
from wsfleet.redis import key_names
from wsfleet.redis.store import Store

FIELDS = 3
"""Fields of an entry in the answer of the Redis Function: offset, previous, record."""


async def read_history(
    store: Store,
    channel: str,
    options: ChannelOptions,
    since: int,
    limit: int,
    *,
    max_size: int,
    reverse: bool = False,
) -> Reading:
    """Read at most `limit` publications after offset `since` (in reverse: before it).

    The reading is cut before its records exceed `max_size` bytes together, but has at least one;
    Redis reads no further either. The epoch is "" if nobody has published.

    Raises:
        UnavailableError: Redis is unavailable.
    """
    if not options.has_history:
        return Reading("", 0)
    offset, epoch, flat, cut = await store.function(
        "history",
        [key_names.stream(channel), key_names.meta(channel)],
        since,
        limit,
        int(reverse),
        max_size,
    )
    entries = [Entry(*flat[i : i + FIELDS]) for i in range(0, len(flat), FIELDS)]
    return Reading(epoch.decode(), offset, entries, bool(cut))


def new_epoch() -> str:
    """Return a name for a new stream; each publication offers one, so it must cost little."""
    return f"{random.getrandbits(32):08x}"

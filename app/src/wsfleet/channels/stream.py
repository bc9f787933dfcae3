"""Which publication comes next in a channel: gaps, duplicates and new epochs, without I/O.

A channel's publications are numbered upwards from 1 within an epoch, and each says which number
was before it; a new epoch begins when Redis has lost the old one. What arrives by pub/sub can be
missing, doubled, or of another epoch; what is read from the history is whole as far as it reaches
back.

A Redis that restarts or fails over may have lost its last publications. It leaves numbers out then,
so that what was lost, and heard by some, is never confused with what comes after.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Entry(NamedTuple):
    """A publication's place in its stream, the one before it, and its record."""

    offset: int
    previous: int
    record: bytes


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a stream: an offset and an epoch."""

    offset: int = 0
    epoch: str = ""


class Reading(NamedTuple):
    """What a look at the history found: the stream's top, and entries in ascending order.

    `cut`: a limit in bytes ended the entries before the top.
    """

    epoch: str
    offset: int
    entries: Sequence[Entry] = ()
    cut: bool = False

    def continues(self, offset: int) -> bool:
        """Whether the entries are all that came after `offset`."""
        if offset >= self.offset:
            return True  # above: at a publication that Redis has lost
        return bool(
            self.entries
            and self.entries[0].previous <= offset
            and self.entries[-1].offset == self.offset
        )


@dataclass
class Stream:
    """One channel as one process has followed it: everything up to `offset` of `epoch`.

    While it is `behind`, arrivals wait until the history was read from `read_after` on and given to
    `fill`. It begins behind, and without an epoch. A reading without an epoch says that nobody has
    published yet: the stream that begins then, with whichever epoch, is its continuation.
    """

    epoch: str = ""
    offset: int = 0
    behind: bool = True
    _waiting: list[tuple[str, Entry]] = field(default_factory=list)
    _arrived_before_reading: int = 0
    _unpublished: bool = False

    def receive(self, epoch: str, entry: Entry) -> list[Entry]:
        """Take one arrival; returns what may be delivered now."""
        if self._unpublished and not self.behind and entry.previous == 0:
            self.epoch, self._unpublished = epoch, False
        if not self.behind and epoch == self.epoch:
            if entry.offset <= self.offset:
                return []
            if entry.previous <= self.offset:
                self.offset = entry.offset
                return [entry]
        self.behind = True
        self._waiting.append((epoch, entry))
        return []

    def read_after(self) -> int:
        """Say from which offset on the history is to be read, now."""
        self.behind = True
        self._arrived_before_reading = len(self._waiting)
        return self.offset

    def fill(self, reading: Reading) -> tuple[list[Entry], bool]:
        """Close the gap with what the history holds after `offset`.

        Returns what may be delivered now, and whether something was lost: the history did not
        reach back that far, or its epoch is another. Then delivery goes on from the new top, and
        subscribers must be told. It may be behind again afterwards, and is after a reading that
        was cut: read on from where it ended.
        """
        if self._unpublished:
            self.epoch = reading.epoch
        self._unpublished = not reading.epoch
        if reading.cut and reading.epoch == self.epoch:
            first, last = reading.entries[0], reading.entries[-1]
            if first.previous <= self.offset:
                self.offset = last.offset
                return list(reading.entries), False
        lost = reading.epoch != self.epoch or not reading.continues(self.offset)
        delivered = [] if lost else list(reading.entries)
        self.offset = reading.offset if lost else max(self.offset, reading.offset)
        self.epoch, self.behind = reading.epoch, False
        waiting, self._waiting = self._waiting, []
        for number, (epoch, entry) in enumerate(waiting):
            if number < self._arrived_before_reading and (
                epoch != self.epoch or entry.previous > self.offset
            ):
                continue  # the reading is newer, and does not know it: Redis has lost it
            delivered += self.receive(epoch, entry)
        return delivered, lost

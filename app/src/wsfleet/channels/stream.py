"""The order of a channel's publications: gaps, duplicates and new epochs, without I/O.

Publications are numbered upwards from 1 within an epoch, and each has the number of the one before
it. A new epoch begins when Redis has lost the old one. Pub/sub may lose or repeat a message, or
deliver one of another epoch; a reading of the stream is complete as far as it reaches back.

A Redis that restarts or fails over may have lost its last publications. It then leaves out numbers,
so that a lost publication, which some subscribers have got, is never confused with a later one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Entry(NamedTuple):
    """An entry of a stream: its offset, the offset before it, and its record."""

    offset: int
    previous: int
    record: bytes


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a stream: an offset and an epoch."""

    offset: int = 0
    epoch: str = ""


class Reading(NamedTuple):
    """The result of reading a stream: its top, and entries in ascending order.

    `cut`: a limit in bytes ended the entries before the top.
    """

    epoch: str
    offset: int
    entries: Sequence[Entry] = ()
    cut: bool = False

    def continues(self, offset: int) -> bool:
        """Return whether the entries are all that came after `offset`."""
        if offset >= self.offset:
            return True  # above it: a publication that Redis has lost
        return bool(
            self.entries
            and self.entries[0].previous <= offset
            and self.entries[-1].offset == self.offset
        )


@dataclass
class Stream:
    """The state of one channel in one process: everything up to `offset` of `epoch` is delivered.

    While it is `behind`, arrivals wait until the stream was read from `read_after` on and the
    reading given to `fill`. It begins behind, without an epoch. A reading without an epoch means
    that nobody has published yet: the stream that begins then continues it, with any epoch.
    """

    epoch: str = ""
    offset: int = 0
    behind: bool = True
    _waiting: list[tuple[str, Entry]] = field(default_factory=list)
    _arrived_before_reading: int = 0
    _unpublished: bool = False

    def receive(self, epoch: str, entry: Entry) -> list[Entry]:
        """Take one arrival; return the entries that may be delivered now."""
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
        """Return the offset after which the stream is to be read now."""
        self.behind = True
        self._arrived_before_reading = len(self._waiting)
        return self.offset

    def fill(self, reading: Reading) -> tuple[list[Entry], bool]:
        """Fill the gap with a reading of the stream after `offset`.

        Returns the entries that may be delivered now, and whether publications were lost: the
        stream did not reach back far enough, or has another epoch. Delivery then goes on from the
        new top, and subscribers must be told. The state may still be behind afterwards, and is
        after a reading that was cut: read on from where it ended.
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
                continue  # the newer reading does not have it: Redis has lost it
            delivered += self.receive(epoch, entry)
        return delivered, lost

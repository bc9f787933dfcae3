"""One subscriber's side of a delivery account: its deliveries, gaps and recoveries."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from wsfleet.cli.measure.delivery_events import DeliveryPosition, Disconnected, Received, Subscribed
from wsfleet.cli.measure.delivery_tally import DeliveryTally, Faults, Messages

#: The publisher of a publication that is not a message of the run.
FOREIGN = -1


@dataclass(slots=True)
class Return:
    """The return of a subscriber that left at `left_at` and was back at `at`.

    `told` means that it knows that it missed messages. They lie between `heard`, the highest
    sequence number of each publisher before it left, and `next`, the first one since.
    """

    left_at: float
    at: float
    told: bool
    offset: int
    epoch: str
    heard: tuple[int, ...]
    next: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Hole:
    """A range of skipped offsets, both ends included; `recovery` should have delivered them."""

    epoch: str
    first: int
    last: int
    recovery: Return | None


class DeliveryBook:
    """The deliveries of one subscriber, and its position in the stream."""

    __slots__ = (
        "base",
        "copies",
        "delivered",
        "epoch",
        "heard",
        "holes",
        "left_at",
        "longest_away",
        "me",
        "messages",
        "offset",
        "recovered",
        "returns",
        "seen",
        "sessions",
        "tally",
        "unrecovered",
    )

    def __init__(self, messages: Messages, tally: DeliveryTally, me: int) -> None:
        self.messages = messages
        self.tally = tally
        self.me = me
        self.seen = bytearray(len(messages.acknowledged))
        self.copies: dict[int, int] = {}
        self.heard = [-1] * messages.terms.publishers
        self.epoch, self.base, self.offset = "", 0, 0
        self.holes: list[Hole] = []
        self.returns: list[Return] = []
        self.left_at: float | None = None
        self.longest_away = 0.0
        self.sessions = self.delivered = self.recovered = self.unrecovered = 0

    def subscribed(self, event: Subscribed) -> None:
        """Continue at the position that the server reports."""
        left_at = event.at if self.left_at is None else self.left_at
        away = event.at - left_at
        self.longest_away, self.left_at = self.away(event.at), None
        self.sessions += 1
        first, position = self.sessions == 1, event.position
        if position is None:
            if not first:
                self._return(left_at, event.at, told=True)
        elif first or not event.recovering:
            self._begin(position)  # back without a recovery: the missed messages are lost
        elif event.recovered:
            self.recovered += 1
            if position.epoch != self.epoch:
                self._wrong("recovered in another epoch", position)
                self._begin(position)
            elif position.offset < self.offset:
                self._wrong("recovered to a position below its own", position)
            else:
                self._return(left_at, event.at, told=False)
        else:
            self.unrecovered += 1
            missed, terms = position.offset - self.offset, self.messages.terms
            if (
                position.epoch == self.epoch
                and 0 <= missed <= terms.history
                and away <= terms.window
            ):
                self._wrong("not recovered, although the history reaches back that far", position)
            self._return(left_at, event.at, told=True)
            self._begin(position)

    def disconnected(self, event: Disconnected) -> None:
        """Record when the subscriber left."""
        if self.left_at is None:
            self.left_at = event.at
            self.tally.dropped_at.append(event.at)

    def received(self, event: Received) -> None:
        """Enter a publication: the next one, a duplicate, or one out of order."""
        messages, tally = self.messages, self.tally
        publisher, sequence = event.publisher, event.sequence
        number = FOREIGN if publisher == FOREIGN else messages.number(publisher, sequence)
        fault = self._place(event.offset, number) if event.offset else ""
        if fault:
            self._fault(fault, event)
        if number == FOREIGN or fault == "duplicated":
            return
        if self.seen[number]:
            copies = self.copies[number] = self.copies.get(number, 1) + 1
            if copies > messages.unkeyed[number] and not fault:
                self._fault("duplicated", event)
            elif copies <= messages.unkeyed[number]:
                tally.retried += 1
            return
        self.seen[number] = 1
        self.delivered += 1
        sent = messages.first_sent[number]
        latency = event.at - sent
        tally.delivery_latency.add(sent, latency)
        if not event.offset:
            tally.slowest = max(tally.slowest, latency)
        if sequence < self.heard[publisher]:
            if not fault:
                self._fault("reordered", event)
            return
        self.heard[publisher] = sequence
        if self.returns:
            self.returns[-1].next.setdefault(publisher, sequence)

    def _place(self, offset: int, number: int) -> str:
        """Advance in the stream; return the kind of fault that the offset shows, or ""."""
        known = self.messages.places.setdefault(self.epoch, {}).setdefault(offset, number)
        expected = self.offset + 1
        if offset >= expected:
            if offset > expected:
                recovery = self.returns[-1] if self.returns else None
                if recovery is not None and (recovery.told or recovery.offset != self.offset):
                    recovery = None
                self.holes.append(Hole(self.epoch, expected, offset - 1, recovery))
            self.offset = offset
            return "reordered" if known != number else ""
        for index, hole in enumerate(self.holes):
            if hole.epoch == self.epoch and hole.first <= offset <= hole.last:
                before = Hole(hole.epoch, hole.first, offset - 1, hole.recovery)
                after = Hole(hole.epoch, offset + 1, hole.last, hole.recovery)
                self.holes[index : index + 1] = [h for h in (before, after) if h.first <= h.last]
                return "reordered"
        if known != number:
            return "reordered"
        # Every offset above the base is here, except the holes: this is a duplicate.
        return "duplicated" if offset > self.base else "recovered_wrongly"

    def _begin(self, position: DeliveryPosition) -> None:
        self.epoch = position.epoch
        self.base = self.offset = position.offset

    def _return(self, left_at: float, at: float, *, told: bool) -> None:
        heard = tuple(self.heard)
        self.returns.append(Return(left_at, at, told, self.offset, self.epoch, heard))

    def _fault(self, kind: str, event: Received) -> None:
        faults: Faults = getattr(self.tally, kind)
        ours = event.publisher != FOREIGN
        faults.add(
            subscriber=self.me,
            publisher=event.publisher if ours else None,
            sequence=event.sequence if ours else None,
            offset=event.offset or None,
            epoch=self.epoch or None,
            reason="published before the subscription" if kind == "recovered_wrongly" else None,
        )

    def _wrong(self, reason: str, position: DeliveryPosition) -> None:
        self.tally.recovered_wrongly.add(
            subscriber=self.me,
            reason=reason,
            offset=self.offset,
            epoch=self.epoch,
            server_offset=position.offset,
            server_epoch=position.epoch,
        )

    def away(self, now: float) -> float:
        """Return the longest time in seconds without a subscription, up to `now` if it is away."""
        return max(self.longest_away, 0.0 if self.left_at is None else now - self.left_at)

    def misses(self, acknowledged: int) -> bool:
        """Return whether an acknowledged message (byte n of `acknowledged`) is missing."""
        return acknowledged & ~int.from_bytes(self.seen, "little") != 0

    def judge(
        self, places: dict[int, DeliveryPosition], lost: Faults, missed: Faults, wrong: Faults
    ) -> None:
        """Enter the missing messages, and the recoveries that should have delivered them."""
        messages = self.messages
        blamed: dict[int, tuple[Return, dict[str, Any]]] = {}
        for number in self._missing():
            example = {"subscriber": self.me, **messages.name(number)}
            if (place := places.get(number)) is not None:
                example |= place._asdict()
            back = self._missed_before(number)
            if back is not None and back.told:
                missed.add(**example)
                continue
            lost.add(**example)
            if back is not None:
                blamed.setdefault(id(back), (back, example))
        for hole in self.holes:
            # Offsets that no subscriber received do not count: Redis skips some after a restart.
            inside = list(self._in_hole(hole))
            if inside and hole.recovery is not None:
                hole_example: dict[str, Any] = {
                    "subscriber": self.me,
                    "epoch": hole.epoch,
                    "offset": hole.first,
                }
                blamed.setdefault(id(hole.recovery), (hole.recovery, hole_example))
            # A publication that others received is in the stream, acknowledged or not.
            for offset, number in inside:
                if number == FOREIGN:
                    lost.add(subscriber=self.me, epoch=hole.epoch, offset=offset)
                elif not self.seen[number] and not messages.acknowledged[number]:
                    name = messages.name(number)
                    lost.add(subscriber=self.me, **name, epoch=hole.epoch, offset=offset)
        for _, example in blamed.values():
            wrong.add(**example, reason="recovered, but this is missing")

    def _missing(self) -> Iterator[int]:
        pairs = zip(self.messages.acknowledged, self.seen, strict=True)
        return (number for number, (due, got) in enumerate(pairs) if due > got)

    def _in_hole(self, hole: Hole) -> Iterator[tuple[int, int]]:
        known = self.messages.places.get(hole.epoch, {})
        if hole.last - hole.first < len(known):
            offsets: Iterable[int] = range(hole.first, hole.last + 1)
            return ((offset, known[offset]) for offset in offsets if offset in known)
        return ((o, number) for o, number in known.items() if hole.first <= o <= hole.last)

    def _missed_before(self, number: int) -> Return | None:
        """Return the `Return` before which a missing message was published, or None.

        None means that the subscriber was connected when the message was published.
        """
        messages = self.messages
        publisher, sequence = divmod(number, messages.terms.messages)
        for back in self.returns:
            if sequence < back.heard[publisher]:
                return None  # a later message arrived before it left
            if back.told:
                sent = messages.first_sent[number]
                acknowledged = messages.acknowledged_at[number]
                if acknowledged < back.left_at - self.tally.slowest:
                    continue  # it was connected for long enough to receive it
                if sent <= back.at and sequence < back.next.get(publisher, sequence + 1):
                    return back
            elif messages.acknowledged_at[number] <= back.at:
                return back
        return None

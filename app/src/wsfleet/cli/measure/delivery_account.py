"""The account of a delivery check: from a log of events to what was lost, doubled or reordered.

It knows no sockets and no clock, so that tests can feed it with faulty logs. The rules are those
of the delivery contract: each subscriber gets every acknowledged message once and in order, over
all its connections; what it missed while it was away is either made up for, or it is told.
"""

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from wsfleet.cli import CannotRun
from wsfleet.cli.measure.histogram import Timeline

#: What one account can hold: pairs of a message and a subscriber (a byte each), and messages.
MOST_DELIVERIES, MOST_MESSAGES = 20_000_000, 1_000_000
#: Faults of one kind that are kept as examples; all are counted.
EXAMPLES = 1000
#: The publisher of a publication that is no message of the run.
FOREIGN = -1
#: Seconds that a publication may be on its way without recovery, or as long as the slowest that
#: came live in the run; what was on its way when a client left is missed.
IN_FLIGHT = 1.0


class Position(NamedTuple):
    """A place in a channel's stream."""

    epoch: str
    offset: int


class Sent(NamedTuple):
    """A publisher sent a message; again, if it had no answer.

    `keyed` messages carry an idempotency key: however often they are sent, they are one.
    """

    at: float
    publisher: int
    sequence: int
    keyed: bool = False


class Acknowledged(NamedTuple):
    """A publisher was told that its message is published."""

    at: float
    publisher: int
    sequence: int


class Subscribed(NamedTuple):
    """A subscriber is connected and hears the channel, for the first time or again.

    `position` is the server's; None where the protocol has none, and so no recovery. Where it
    `recovered`, the position is that from which the subscriber goes on; else the stream's top.
    """

    at: float
    subscriber: int
    position: Position | None = None
    recovering: bool = False
    recovered: bool = False


class Received(NamedTuple):
    """A subscriber got a publication; offset 0 where the protocol has none."""

    at: float
    subscriber: int
    publisher: int
    sequence: int
    offset: int = 0


class Disconnected(NamedTuple):
    """A subscriber does not hear the channel any more."""

    at: float
    subscriber: int


Event = Sent | Acknowledged | Subscribed | Received | Disconnected


@dataclass(frozen=True, slots=True)
class Terms:
    """The size of a run, and how far back the channel's history reaches.

    A subscriber that missed at most `history` publications, and was away for at most `window`
    seconds, must be recovered.
    """

    publishers: int
    subscribers: int
    messages: int
    history: int = 1000
    window: float = 300.0

    def check(self) -> None:
        """Raise CannotRun if such a run would not fit into memory."""
        total = self.publishers * self.messages
        deliveries = total * self.subscribers
        if total > MOST_MESSAGES or deliveries > MOST_DELIVERIES:
            raise CannotRun(
                f"{total:,} messages to {self.subscribers:,} subscribers are more than can be "
                f"accounted for ({MOST_MESSAGES:,} messages, {MOST_DELIVERIES:,} deliveries). "
                "Lower --messages, --publishers or --subscribers."
            )


@dataclass(slots=True)
class Faults:
    """How often something happened, and the first `EXAMPLES` of it."""

    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **example: Any) -> None:
        """Count one; what is None is left out of the example."""
        self.count += 1
        if self.count <= EXAMPLES:
            self.examples.append({k: v for k, v in example.items() if v is not None})

    def copy(self) -> "Faults":
        """The same, to be added to."""
        return Faults(self.count, list(self.examples))


@dataclass(frozen=True, slots=True)
class Findings:
    """What the account says. All counts are exact; durations are seconds.

    `missed_while_away` are acknowledged messages that a subscriber did not get, and knows of: the
    server said that it could not recover, or the protocol promises nothing. `retried` are second
    copies of messages that were sent twice without an idempotency key. `longest_away` has each
    subscriber's longest time without the channel, `longest_wait` each publisher's longest time
    from first sending a message to its acknowledgement. `absent` did not come back. `dropped_at`
    has the moments at which subscribers lost the channel.
    """

    sent: int
    acknowledged: int
    delivered: int
    lost: Faults
    duplicated: Faults
    reordered: Faults
    recovered_wrongly: Faults
    missed_while_away: Faults
    retried: int
    recovered: int
    unrecovered: int
    reconnects: int
    absent: list[int]
    longest_away: list[float]
    longest_wait: list[float]
    dropped_at: Sequence[float]
    ack_latency: Timeline
    delivery_latency: Timeline

    @property
    def clean(self) -> bool:
        """Whether the contract was kept."""
        faults = (self.lost, self.duplicated, self.reordered, self.recovered_wrongly)
        return not any(fault.count for fault in faults)


@dataclass(slots=True)
class Return:
    """A subscriber that left at `left_at` is back at `at`; `told` if it knows that it missed some.

    `heard` is the highest sequence number it had of each publisher, `next` the first one that it
    got of each since: what it missed lies between.
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
    """Offsets that were skipped, the ends included; `recovery` if it was to have them."""

    epoch: str
    first: int
    last: int
    recovery: Return | None


class Account:
    """All events of a run, entered one by one.

    Raises:
        CannotRun: the run is too large.

    """

    def __init__(self, terms: Terms) -> None:
        terms.check()
        total = terms.publishers * terms.messages
        self.terms = terms
        self.now = 0.0
        self.first_sent = array("d", [math.nan]) * total
        self.acknowledged_at = array("d", [math.nan]) * total
        self.acknowledged = bytearray(total)
        self.unkeyed = bytearray(total)
        self.sent = 0
        #: epoch -> offset -> number of the message there, as the first to get it said.
        self.places: dict[str, dict[int, int]] = {}
        self.duplicated, self.reordered, self.recovered_wrongly = Faults(), Faults(), Faults()
        self.retried = 0
        self.slowest = IN_FLIGHT
        self.longest_wait = [0.0] * terms.publishers
        self.ack_latency, self.delivery_latency = Timeline(), Timeline()
        self.dropped_at = array("d")
        self.books = [Book(self, number) for number in range(terms.subscribers)]

    def enter(self, event: Event) -> None:
        """Enter the next event; times must not run backwards."""
        self.now = event.at
        match event:
            case Received():
                self.books[event.subscriber].received(event)
            case Sent():
                self._sent(event)
            case Acknowledged():
                self._acknowledged(event)
            case Subscribed():
                self.books[event.subscriber].subscribed(event)
            case Disconnected():
                self.books[event.subscriber].disconnected(event)

    def _sent(self, event: Sent) -> None:
        number = self.number(event.publisher, event.sequence)
        if math.isnan(self.first_sent[number]):
            self.first_sent[number] = event.at
            self.sent += 1
        if not event.keyed:
            self.unkeyed[number] = min(255, self.unkeyed[number] + 1)

    def _acknowledged(self, event: Acknowledged) -> None:
        number = self.number(event.publisher, event.sequence)
        self.acknowledged[number] = 1
        self.acknowledged_at[number] = event.at
        wait = event.at - self.first_sent[number]
        self.ack_latency.add(self.first_sent[number], wait)
        self.longest_wait[event.publisher] = max(self.longest_wait[event.publisher], wait)

    def number(self, publisher: int, sequence: int) -> int:
        """The number of a message among all of the run."""
        return publisher * self.terms.messages + sequence

    def name(self, number: int) -> dict[str, int]:
        """The publisher and the sequence number of a message."""
        publisher, sequence = divmod(number, self.terms.messages)
        return {"publisher": publisher, "sequence": sequence}

    def findings(self) -> Findings:
        """Draw up what the events so far amount to."""
        lost, missed, wrong = Faults(), Faults(), self.recovered_wrongly.copy()
        acknowledged = int.from_bytes(self.acknowledged, "little")
        suspects = [book for book in self.books if book.holes or book.misses(acknowledged)]
        if suspects:
            places = {
                number: Position(epoch, offset)
                for epoch, numbers in self.places.items()
                for offset, number in numbers.items()
            }
            for book in suspects:
                book.judge(places, lost, missed, wrong)
        return Findings(
            sent=self.sent,
            acknowledged=acknowledged.bit_count(),
            delivered=sum(book.delivered for book in self.books),
            lost=lost,
            duplicated=self.duplicated,
            reordered=self.reordered,
            recovered_wrongly=wrong,
            missed_while_away=missed,
            retried=self.retried,
            recovered=sum(book.recovered for book in self.books),
            unrecovered=sum(book.unrecovered for book in self.books),
            reconnects=sum(max(0, book.sessions - 1) for book in self.books),
            absent=[book.me for book in self.books if book.left_at is not None],
            longest_away=[book.away(self.now) for book in self.books],
            longest_wait=self.longest_wait,
            dropped_at=self.dropped_at,
            ack_latency=self.ack_latency,
            delivery_latency=self.delivery_latency,
        )


class Book:
    """What one subscriber got, and where it is in the stream."""

    __slots__ = (
        "account",
        "base",
        "copies",
        "delivered",
        "epoch",
        "heard",
        "holes",
        "left_at",
        "longest_away",
        "me",
        "offset",
        "recovered",
        "returns",
        "seen",
        "sessions",
        "unrecovered",
    )

    def __init__(self, account: Account, me: int) -> None:
        self.account = account
        self.me = me
        self.seen = bytearray(len(account.acknowledged))
        self.copies: dict[int, int] = {}
        self.heard = [-1] * account.terms.publishers
        self.epoch, self.base, self.offset = "", 0, 0
        self.holes: list[Hole] = []
        self.returns: list[Return] = []
        self.left_at: float | None = None
        self.longest_away = 0.0
        self.sessions = self.delivered = self.recovered = self.unrecovered = 0

    def subscribed(self, event: Subscribed) -> None:
        """Go on where the server says that this subscriber is."""
        left_at = event.at if self.left_at is None else self.left_at
        away = event.at - left_at
        self.longest_away, self.left_at = self.away(event.at), None
        self.sessions += 1
        first, position = self.sessions == 1, event.position
        if position is None:
            if not first:
                self._return(left_at, event.at, told=True)
        elif first or not event.recovering:
            self._begin(position)  # if it is back and was told nothing, what it missed is lost
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
            missed, terms = position.offset - self.offset, self.account.terms
            if (
                position.epoch == self.epoch
                and 0 <= missed <= terms.history
                and away <= terms.window
            ):
                self._wrong("not recovered, although the history reaches back that far", position)
            self._return(left_at, event.at, told=True)
            self._begin(position)

    def disconnected(self, event: Disconnected) -> None:
        """Note when it left."""
        if self.left_at is None:
            self.left_at = event.at
            self.account.dropped_at.append(event.at)

    def received(self, event: Received) -> None:
        """Enter a publication: is it the next one, and was it here before?"""
        account = self.account
        publisher, sequence = event.publisher, event.sequence
        number = FOREIGN if publisher == FOREIGN else account.number(publisher, sequence)
        fault = self._place(event.offset, number) if event.offset else ""
        if fault:
            self._fault(fault, event)
        if number == FOREIGN or fault == "duplicated":
            return
        if self.seen[number]:
            copies = self.copies[number] = self.copies.get(number, 1) + 1
            if copies > account.unkeyed[number] and not fault:
                self._fault("duplicated", event)
            elif copies <= account.unkeyed[number]:
                account.retried += 1
            return
        self.seen[number] = 1
        self.delivered += 1
        sent = account.first_sent[number]
        latency = event.at - sent
        account.delivery_latency.add(sent, latency)
        if not event.offset:
            account.slowest = max(account.slowest, latency)
        if sequence < self.heard[publisher]:
            if not fault:
                self._fault("reordered", event)
            return
        self.heard[publisher] = sequence
        if self.returns:
            self.returns[-1].next.setdefault(publisher, sequence)

    def _place(self, offset: int, number: int) -> str:
        """Move on in the stream; returns the kind of fault that the offset shows, if any."""
        known = self.account.places.setdefault(self.epoch, {}).setdefault(offset, number)
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
        # Nothing above the base is missing but the holes: it was here before.
        return "duplicated" if offset > self.base else "recovered_wrongly"

    def _begin(self, position: Position) -> None:
        self.epoch = position.epoch
        self.base = self.offset = position.offset

    def _return(self, left_at: float, at: float, *, told: bool) -> None:
        heard = tuple(self.heard)
        self.returns.append(Return(left_at, at, told, self.offset, self.epoch, heard))

    def _fault(self, kind: str, event: Received) -> None:
        faults: Faults = getattr(self.account, kind)
        ours = event.publisher != FOREIGN
        faults.add(
            subscriber=self.me,
            publisher=event.publisher if ours else None,
            sequence=event.sequence if ours else None,
            offset=event.offset or None,
            epoch=self.epoch or None,
            reason="published before the subscription" if kind == "recovered_wrongly" else None,
        )

    def _wrong(self, reason: str, position: Position) -> None:
        self.account.recovered_wrongly.add(
            subscriber=self.me,
            reason=reason,
            offset=self.offset,
            epoch=self.epoch,
            server_offset=position.offset,
            server_epoch=position.epoch,
        )

    def away(self, now: float) -> float:
        """Longest time in seconds without the channel, up to now if it is away."""
        return max(self.longest_away, 0.0 if self.left_at is None else now - self.left_at)

    def misses(self, acknowledged: int) -> bool:
        """Whether any of the acknowledged messages (byte n of `acknowledged`) is missing."""
        return acknowledged & ~int.from_bytes(self.seen, "little") != 0

    def judge(
        self, places: dict[int, Position], lost: Faults, missed: Faults, wrong: Faults
    ) -> None:
        """Enter what is missing, and the recoveries that should have brought it."""
        account = self.account
        blamed: dict[int, tuple[Return, dict[str, Any]]] = {}
        for number in self._missing():
            example = {"subscriber": self.me, **account.name(number)}
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
            # A hole that nobody else filled is none: Redis leaves numbers out after a restart.
            inside = list(self._in_hole(hole))
            if inside and hole.recovery is not None:
                hole_example: dict[str, Any] = {
                    "subscriber": self.me,
                    "epoch": hole.epoch,
                    "offset": hole.first,
                }
                blamed.setdefault(id(hole.recovery), (hole.recovery, hole_example))
            # An unacknowledged publication that others have is one of the stream's all the same.
            for offset, number in inside:
                if number == FOREIGN:
                    lost.add(subscriber=self.me, epoch=hole.epoch, offset=offset)
                elif not self.seen[number] and not account.acknowledged[number]:
                    name = account.name(number)
                    lost.add(subscriber=self.me, **name, epoch=hole.epoch, offset=offset)
        for _, example in blamed.values():
            wrong.add(**example, reason="recovered, but this is missing")

    def _missing(self) -> Iterator[int]:
        pairs = zip(self.account.acknowledged, self.seen, strict=True)
        return (number for number, (due, got) in enumerate(pairs) if due > got)

    def _in_hole(self, hole: Hole) -> Iterator[tuple[int, int]]:
        known = self.account.places.get(hole.epoch, {})
        if hole.last - hole.first < len(known):
            offsets: Iterable[int] = range(hole.first, hole.last + 1)
            return ((offset, known[offset]) for offset in offsets if offset in known)
        return ((o, number) for o, number in known.items() if hole.first <= o <= hole.last)

    def _missed_before(self, number: int) -> Return | None:
        """The return before which a missing message was published; None if it was here then."""
        publisher, sequence = divmod(number, self.account.terms.messages)
        for back in self.returns:
            if sequence < back.heard[publisher]:
                return None  # a later message came before it left
            if back.told:
                sent = self.account.first_sent[number]
                acknowledged = self.account.acknowledged_at[number]
                if acknowledged < back.left_at - self.account.slowest:
                    continue  # it was here for long enough to get it
                if sent <= back.at and sequence < back.next.get(publisher, sequence + 1):
                    return back
            elif self.account.acknowledged_at[number] <= back.at:
                return back
        return None


def account_for(terms: Terms, log: Iterable[Event]) -> Findings:
    """What a whole log amounts to."""
    account = Account(terms)
    for event in log:
        account.enter(event)
    return account.findings()

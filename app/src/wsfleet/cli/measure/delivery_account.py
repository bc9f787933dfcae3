"""The account of a delivery check: lost, duplicated and reordered messages, from a log of events.

It has no sockets and no clock, so that tests can feed it with faulty logs. The rules are those of
the delivery contract: each subscriber receives every acknowledged message once and in order, over
all its connections; messages that it missed while it was away are recovered, or the server tells it
that they are not.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wsfleet.cli.measure.delivery_book import DeliveryBook
from wsfleet.cli.measure.delivery_events import (
    FAULTS,
    Acknowledged,
    DeliveryPosition,
    Disconnected,
    Event,
    Received,
    Sent,
    Subscribed,
    Terms,
)
from wsfleet.cli.measure.delivery_tally import DeliveryTally, Faults, Messages
from wsfleet.cli.measure.histogram import Timeline


@dataclass(frozen=True, slots=True)
class Findings:
    """The result of an account. All counts are exact; durations are seconds.

    `missed_while_away` are acknowledged messages that a subscriber did not receive and knows to
    have missed: the server reported that it could not recover, or the protocol has no recovery.
    `retried` are second copies of messages that were sent twice without an idempotency key.
    `longest_away` has each subscriber's longest time without a subscription, `longest_wait` each
    publisher's longest time between first sending a message and its acknowledgement. `absent`
    subscribers did not return. `dropped_at` has the times at which subscribers lost their
    subscription.
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
        return not any(fault.count for fault in self.faults.values())

    @property
    def faults(self) -> dict[str, Faults]:
        """The violations of the contract, by the names of `FAULTS`."""
        return {name: getattr(self, name) for name in FAULTS}


class Account:
    """The account of a run: all its events, entered one by one.

    Raises:
        CannotRun: the run is too large.

    """

    def __init__(self, terms: Terms) -> None:
        terms.check()
        self.now = 0.0
        self.sent = 0
        self.messages, self.tally = Messages(terms), DeliveryTally()
        self.longest_wait = [0.0] * terms.publishers
        self.ack_latency = Timeline()
        self.books = [
            DeliveryBook(self.messages, self.tally, me) for me in range(terms.subscribers)
        ]

    def enter(self, event: Event) -> None:
        """Enter the next event; times must not decrease."""
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
        messages = self.messages
        number = messages.number(event.publisher, event.sequence)
        if math.isnan(messages.first_sent[number]):
            messages.first_sent[number] = event.at
            self.sent += 1
        if not event.keyed:
            messages.unkeyed[number] = min(255, messages.unkeyed[number] + 1)

    def _acknowledged(self, event: Acknowledged) -> None:
        messages = self.messages
        number = messages.number(event.publisher, event.sequence)
        messages.acknowledged[number] = 1
        messages.acknowledged_at[number] = event.at
        wait = event.at - messages.first_sent[number]
        self.ack_latency.add(messages.first_sent[number], wait)
        self.longest_wait[event.publisher] = max(self.longest_wait[event.publisher], wait)

    def findings(self) -> Findings:
        """Return the result of the events so far."""
        tally, books = self.tally, self.books
        lost, missed, wrong = Faults(), Faults(), tally.recovered_wrongly.copy()
        acknowledged = int.from_bytes(self.messages.acknowledged, "little")
        suspects = [book for book in books if book.holes or book.misses(acknowledged)]
        if suspects:
            places = {
                number: DeliveryPosition(epoch, offset)
                for epoch, numbers in self.messages.places.items()
                for offset, number in numbers.items()
            }
            for book in suspects:
                book.judge(places, lost, missed, wrong)
        return Findings(
            sent=self.sent,
            acknowledged=acknowledged.bit_count(),
            delivered=sum(book.delivered for book in books),
            lost=lost,
            duplicated=tally.duplicated,
            reordered=tally.reordered,
            recovered_wrongly=wrong,
            missed_while_away=missed,
            retried=tally.retried,
            recovered=sum(book.recovered for book in books),
            unrecovered=sum(book.unrecovered for book in books),
            reconnects=sum(max(0, book.sessions - 1) for book in books),
            absent=[book.me for book in books if book.left_at is not None],
            longest_away=[book.away(self.now) for book in books],
            longest_wait=self.longest_wait,
            dropped_at=tally.dropped_at,
            ack_latency=self.ack_latency,
            delivery_latency=tally.delivery_latency,
        )


def account_for(terms: Terms, log: Iterable[Event]) -> Findings:
    """Return the result of a whole log."""
    account = Account(terms)
    for event in log:
        account.enter(event)
    return account.findings()

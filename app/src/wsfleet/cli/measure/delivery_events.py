"""The events of a delivery check, and the terms of its contract."""

from dataclasses import dataclass
from typing import NamedTuple

from wsfleet.cli.errors import CannotRun

#: The most that one account can hold: pairs of a message and a subscriber (one byte each), and
#: messages.
MOST_DELIVERIES, MOST_MESSAGES = 20_000_000, 1_000_000
#: The violations of the delivery contract, and their meaning.
FAULTS = {
    "lost": "published, but never delivered to a subscriber",
    "duplicated": "delivered to a subscriber more than once",
    "reordered": "delivered after a later message, or at another offset than to others",
    "recovered_wrongly": "the server's answer about a recovery was wrong",
}


class DeliveryPosition(NamedTuple):
    """A position in a channel's stream."""

    epoch: str
    offset: int


class Sent(NamedTuple):
    """A publisher sent a message, for the first time or again.

    A `keyed` message carries an idempotency key: sent several times, it is published once.
    """

    at: float
    publisher: int
    sequence: int
    keyed: bool = False


class Acknowledged(NamedTuple):
    """A publisher received the acknowledgement of its message."""

    at: float
    publisher: int
    sequence: int


class Subscribed(NamedTuple):
    """A subscriber is connected and subscribed, for the first time or again.

    `position` is the server's, and None where the protocol has no positions, and so no recovery.
    If the subscription `recovered`, the position is where the subscriber continues; else it is the
    stream's top.
    """

    at: float
    subscriber: int
    position: DeliveryPosition | None = None
    recovering: bool = False
    recovered: bool = False


class Received(NamedTuple):
    """A subscriber received a publication; the offset is 0 where the protocol has none."""

    at: float
    subscriber: int
    publisher: int
    sequence: int
    offset: int = 0


class Disconnected(NamedTuple):
    """A subscriber lost its subscription."""

    at: float
    subscriber: int


Event = Sent | Acknowledged | Subscribed | Received | Disconnected


@dataclass(frozen=True, slots=True)
class Terms:
    """The size of a run, and how far the channel's history reaches back.

    A subscriber that missed at most `history` publications, and was away for at most `window`
    seconds, must be recovered.
    """

    publishers: int
    subscribers: int
    messages: int
    history: int = 1000
    window: float = 300.0

    def check(self) -> None:
        """Raise CannotRun if the account of such a run would not fit into memory."""
        total = self.publishers * self.messages
        deliveries = total * self.subscribers
        if total > MOST_MESSAGES or deliveries > MOST_DELIVERIES:
            raise CannotRun(
                f"{total:,} messages to {self.subscribers:,} subscribers exceed what can be "
                f"accounted for ({MOST_MESSAGES:,} messages, {MOST_DELIVERIES:,} deliveries). "
                "Lower --messages, --publishers or --subscribers."
            )

"""The common part of a delivery account: messages, counts of faults, latencies."""

import math
from array import array
from dataclasses import dataclass, field
from typing import Any

from wsfleet.cli.measure.delivery_events import Terms
from wsfleet.cli.measure.histogram import Timeline

#: Faults of one kind that are kept as examples; the count includes all of them.
EXAMPLES = 1000
#: Seconds that a publication may be in flight where the protocol has no recovery; the longest live
#: delivery of the run, if it took longer. A client that leaves misses what is in flight to it.
IN_FLIGHT = 1.0


@dataclass(slots=True)
class Faults:
    """The count of one kind of fault, and its first `EXAMPLES` occurrences."""

    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **example: Any) -> None:
        """Count one fault; the example leaves out values that are None."""
        self.count += 1
        if self.count <= EXAMPLES:
            self.examples.append({k: v for k, v in example.items() if v is not None})

    def copy(self) -> "Faults":
        """Return a copy that can be added to."""
        return Faults(self.count, list(self.examples))


class Messages:
    """The messages of a run: when each was sent and acknowledged, and its place in the stream."""

    def __init__(self, terms: Terms) -> None:
        total = terms.publishers * terms.messages
        self.terms = terms
        self.first_sent = array("d", [math.nan]) * total
        self.acknowledged_at = array("d", [math.nan]) * total
        self.acknowledged = bytearray(total)
        #: How often each was sent without an idempotency key, at most 255.
        self.unkeyed = bytearray(total)
        #: epoch -> offset -> number of the message there, by the first subscriber that received it.
        self.places: dict[str, dict[int, int]] = {}

    def number(self, publisher: int, sequence: int) -> int:
        """Return the number of a message among all messages of the run."""
        return publisher * self.terms.messages + sequence

    def name(self, number: int) -> dict[str, int]:
        """Return the publisher and the sequence number of a message."""
        publisher, sequence = divmod(number, self.terms.messages)
        return {"publisher": publisher, "sequence": sequence}


class DeliveryTally:
    """Counts and latencies over all subscribers."""

    def __init__(self) -> None:
        self.duplicated, self.reordered, self.recovered_wrongly = Faults(), Faults(), Faults()
        self.retried = 0
        self.slowest = IN_FLIGHT
        self.delivery_latency = Timeline()
        self.dropped_at = array("d")

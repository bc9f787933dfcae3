"""The ledger of a load run: each delivery, with its receiver, count, order and latency.

It has no sockets and no clock, so that tests can feed it with faulty logs.
"""

from array import array
from dataclasses import dataclass

from wsfleet.cli.errors import CannotRun
from wsfleet.cli.measure.histogram import Timeline

#: Bytes that the books of all receivers may use together.
MEMORY_LIMIT = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Verdict:
    """The totals at the end of a run. All numbers are exact."""

    sent: int
    acknowledged: int
    deliveries: int
    expected: int
    lost: int
    duplicated: int
    reordered: int
    echoed: int


def check_size(clients: int, messages: int) -> None:
    """Raise CannotRun if the books of such a run would not fit into `MEMORY_LIMIT`."""
    need = clients * (messages + 8 * min(clients, messages)) + 9 * messages
    if need > MEMORY_LIMIT:
        raise CannotRun(
            f"{clients:,} clients and {messages:,} messages need {need / 2**20:,.0f} MB of memory, "
            f"more than {MEMORY_LIMIT // 2**20} MB. Lower --clients, --rate or --duration, "
            "or run several generators."
        )


class ReceiverBook:
    """The deliveries of one receiver."""

    __slots__ = (
        "_clients",
        "_highest",
        "_ledger",
        "_me",
        "_seen",
        "duplicated",
        "echoed",
        "received",
        "reordered",
    )

    def __init__(self, ledger: "Ledger", me: int) -> None:
        self._ledger = ledger
        self._me = me
        self._clients = ledger.clients
        self._seen = bytearray(ledger.messages)
        self._highest = array("q", [-1]) * min(ledger.clients, ledger.messages)
        self.received = self.duplicated = self.reordered = self.echoed = 0

    def got(self, number: int, at: float) -> None:
        """Enter the delivery of message `number` at `at` (seconds on the ledger's clock).

        Raises:
            IndexError: no such message is part of the run.

        """
        ledger = self._ledger
        if self._seen[number]:
            self.duplicated += 1
            return
        sender = number % self._clients
        if sender == self._me:  # broadcasts go to every OTHER client
            self.echoed += 1
            return
        self._seen[number] = 1
        self.received += 1
        # Reordered means: after a later message of the same sender. Messages of two senders have
        # no promised order, because they may overtake each other on their way to Redis.
        if number < self._highest[sender]:
            self.reordered += 1
        else:
            self._highest[sender] = number
        if number >= ledger.warmup:
            due = ledger.due[number]
            ledger.delivery_latency.add(due - ledger.began, at - due)

    def got_of(self, numbers: int) -> int:
        """Return how many messages of a set were received; bit 8*n stands for message n."""
        return (int.from_bytes(self._seen, "little") & numbers).bit_count()


class Ledger:
    """The books of all receivers, and the messages that were sent and acknowledged.

    Client n modulo `clients` sends message n. The first `warmup` messages are accounted for, but
    are not part of the latencies.

    Raises:
        CannotRun: the books would need more than `MEMORY_LIMIT` bytes.

    """

    def __init__(self, clients: int, messages: int, warmup: int = 0) -> None:
        check_size(clients, messages)
        self.clients, self.messages, self.warmup = clients, messages, warmup
        self.due = array("d", bytes(8 * messages))
        self.ack_latency = Timeline()
        self.delivery_latency = Timeline()
        self.began = 0.0
        self.sent = 0
        self._acknowledged = bytearray(messages)
        self.books = [ReceiverBook(self, me) for me in range(clients)]

    def sending(self, number: int, due: float) -> None:
        """Enter that message `number` is sent; it was due at `due` (seconds)."""
        if not self.sent:
            self.began = due
        self.due[number] = due
        self.sent += 1

    def acknowledge(self, number: int, at: float) -> None:
        """Enter the acknowledgement of message `number` at `at` (seconds)."""
        self._acknowledged[number] = 1
        if number >= self.warmup:
            due = self.due[number]
            self.ack_latency.add(due - self.began, at - due)

    @property
    def deliveries(self) -> int:
        """The number of deliveries so far; each pair of message and receiver counts once."""
        return sum(book.received for book in self.books)

    @property
    def acknowledged(self) -> int:
        """The number of acknowledged messages."""
        return self._acknowledged.count(1)

    @property
    def expected(self) -> int:
        """The number of deliveries that the acknowledged messages must have."""
        return self.acknowledged * (self.clients - 1)

    def verdict(self) -> Verdict:
        """Return the totals.

        Lost is each pair of an acknowledged message and a client other than its sender that did
        not receive it. A message without acknowledgement may have arrived or not: it is not lost.
        """
        acknowledged = int.from_bytes(self._acknowledged, "little")
        arrived = sum(book.got_of(acknowledged) for book in self.books)
        return Verdict(
            sent=self.sent,
            acknowledged=self.acknowledged,
            deliveries=self.deliveries,
            expected=self.expected,
            lost=self.expected - arrived,
            duplicated=sum(book.duplicated for book in self.books),
            reordered=sum(book.reordered for book in self.books),
            echoed=sum(book.echoed for book in self.books),
        )

"""Gaps, duplicates and epochs: whatever arrives, subscribers get the stream or are told."""

from hypothesis import given
from hypothesis import strategies as st

from wsfleet.channels.stream import Entry, Reading, Stream


class Server:
    """A model of Redis: one stream that is trimmed and may be lost, and what it published.

    `replicated` is the offset that survives a failover; what is above it is lost then. One reading
    has at most `portion` entries. Where nobody has published yet, the epoch is told only if it is
    `remembered`.
    """

    def __init__(self, size: int, portion: int = 1000, *, remembered: bool = True) -> None:
        self.remembered = remembered
        self.size = size
        self.portion = portion
        self.number = 1
        self.entries: list[Entry] = []
        self.offset = self.replicated = 0
        self.leap = 1
        self.sent: list[tuple[str, Entry]] = []

    @property
    def epoch(self) -> str:
        """The current epoch's name."""
        return f"epoch{self.number}"

    def publish(self) -> None:
        """Number a record, keep it, send it."""
        previous, self.offset, self.leap = self.offset, self.offset + self.leap, 1
        entry = Entry(self.offset, previous, f"{self.epoch}/{self.offset}".encode())
        self.entries = [*self.entries, entry][-self.size :]
        self.sent.append((self.epoch, entry))

    def wipe(self) -> None:
        """Lose everything; the next epoch begins."""
        self.number += 1
        self.entries, self.offset, self.replicated, self.leap = [], 0, 0, 1

    def fail_over(self) -> None:
        """Lose what is not replicated; the next publication leaves numbers out."""
        self.entries = [entry for entry in self.entries if entry.offset <= self.replicated]
        self.offset, self.leap = self.replicated, 1000

    def read(self, after: int) -> Reading:
        """Answer as the history function does."""
        entries = [entry for entry in self.entries if entry.offset > after]
        cut = len(entries) > self.portion
        epoch = self.epoch if self.remembered or self.offset else ""
        return Reading(epoch, self.offset, entries[: self.portion], cut)


class Follower:
    """One process that follows the stream, and checks what it delivers."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.stream = Stream()
        self.delivered: list[Entry] = []
        self.losses = 0
        self.reading: Reading | None = None
        self.finish_reading(self.server.read(self.stream.read_after()))

    def deliver(self, entries: list[Entry]) -> None:
        """Check that each entry is the next after the last, unless a loss was told between them."""
        for entry in entries:
            if self.delivered:
                assert entry.previous <= self.delivered[-1].offset < entry.offset
            self.delivered.append(entry)

    def check_nothing_is_missing(self) -> None:
        """All that the server has, from the first delivered on, must have been delivered."""
        if self.delivered:
            offsets = {entry.offset for entry in self.delivered}
            assert {e.offset for e in self.server.entries if e.offset >= min(offsets)} <= offsets

    def receive(self, epoch: str, entry: Entry) -> None:
        """Something arrived by pub/sub."""
        self.deliver(self.stream.receive(epoch, entry))

    def start_reading(self) -> None:
        """Ask for the history; the answer is taken later, as arrivals go on."""
        self.reading = self.server.read(self.stream.read_after())

    def finish_reading(self, reading: Reading) -> None:
        """Take the answer."""
        entries, lost = self.stream.fill(reading)
        if lost:
            self.losses += 1
            self.delivered = []
        self.deliver(entries)


steps = st.lists(
    st.one_of(
        st.just(("publish",)),
        st.just(("publish",)),
        st.just(("wipe",)),
        st.just(("replicate",)),
        st.just(("fail over",)),
        st.just(("start reading",)),
        st.just(("finish reading",)),
        st.tuples(st.just("arrive"), st.integers(0, 3)),
        st.tuples(st.just("arrive"), st.integers(0, 3)),
        st.just(("miss",)),
    ),
    max_size=60,
)


@given(steps=steps, size=st.integers(1, 8), portion=st.integers(1, 9), remembered=st.booleans())
def test_every_interleaving_is_in_order_and_nothing_twice(
    steps: list[tuple[str, int]], size: int, portion: int, remembered: bool
) -> None:
    """Arrivals are late, doubled or missing; readings overlap with them; the stream may be lost."""
    server = Server(size, portion, remembered=remembered)
    follower = Follower(server)
    queue: list[tuple[str, Entry]] = []
    for step in steps:
        if step[0] == "publish":
            server.publish()
            queue.append(server.sent[-1])
        elif step[0] == "wipe":
            server.wipe()
        elif step[0] == "replicate":
            server.replicated = server.offset
        elif step[0] == "fail over":
            server.fail_over()
        elif step[0] == "start reading" and follower.reading is None:
            follower.start_reading()
        elif step[0] == "finish reading" and follower.reading is not None:
            follower.finish_reading(follower.reading)
            follower.reading = None
        elif step[0] == "arrive" and queue:
            follower.receive(*queue[0])
            if step[1]:  # 0: it will arrive once more
                queue.pop(0)
        elif step[0] == "miss" and queue:
            queue.pop(0)
    # At the end the follower reads until it is not behind, as the broker does.
    if follower.reading is not None:
        follower.finish_reading(follower.reading)
    for _ in range(3 + size):
        follower.start_reading()
        assert follower.reading is not None
        follower.finish_reading(follower.reading)
    assert not follower.stream.behind
    assert follower.stream.epoch == server.read(0).epoch
    assert follower.stream.offset >= server.offset  # above: at what a failover has lost
    follower.check_nothing_is_missing()


@given(st.lists(st.booleans(), max_size=30))
def test_history_repairs_lost_messages(arrives: list[bool]) -> None:
    """With a history that reaches back, nothing is lost, whichever arrivals are."""
    server = Server(size=100)
    stream = Stream()
    stream.fill(Reading(server.epoch, 0))
    delivered: list[Entry] = []
    for arrived in arrives:
        server.publish()
        if arrived:
            delivered += stream.receive(*server.sent[-1])
    entries, lost = stream.fill(server.read(stream.read_after()))
    delivered += entries
    assert not lost
    assert [entry.offset for entry in delivered] == list(range(1, len(arrives) + 1))


def test_a_gap_beyond_the_history_is_reported() -> None:
    """Publications that were trimmed before they were read are a loss, not a silent gap."""
    server = Server(size=2)
    stream = Stream()
    stream.fill(Reading(server.epoch, 0))
    for _ in range(5):
        server.publish()
    assert stream.receive(*server.sent[-1]) == []
    assert stream.behind
    entries, lost = stream.fill(server.read(stream.read_after()))
    assert (entries, lost) == ([], True)
    assert stream.offset == 5


def test_a_reading_that_was_cut_is_read_on() -> None:
    """Publications that arrive meanwhile wait for the last portion; none counts as lost."""
    server = Server(size=100, portion=3)
    stream = Stream()
    stream.fill(Reading(server.epoch, 0))
    for _ in range(8):
        server.publish()
    assert stream.receive(*server.sent[-1]) == []
    portions = []
    while stream.behind:
        entries, lost = stream.fill(server.read(stream.read_after()))
        assert not lost
        portions.append([entry.offset for entry in entries])
    assert portions == [[1, 2, 3], [4, 5, 6], [7, 8]]


def test_a_publication_lost_by_a_failover_hides_no_later_one() -> None:
    """A publication that only some have heard costs none of those that follow."""
    stream = Stream()
    stream.fill(Reading("e", 10))
    assert stream.fill(Reading("e", 8)) == ([], False), "9 and 10 are heard, and lost to Redis"
    after = Entry(1008, 8, b"after")
    assert stream.receive("e", Entry(11, 10, b"late, of the primary before")) != []
    assert stream.receive("e", after) == [after]
    assert Reading("e", 1008, [after]).continues(10), "also for a client that comes back"


def test_an_arrival_of_the_epoch_before_is_dropped() -> None:
    """Late arrivals of an epoch that was left do not make it read for ever."""
    stream = Stream()
    stream.fill(Reading("new", 3))
    assert stream.receive("old", Entry(7, 6, b"late")) == []
    stream.read_after()
    assert stream.fill(Reading("new", 3)) == ([], False)
    assert not stream.behind
    assert stream.receive("new", Entry(4, 3, b"next")) == [Entry(4, 3, b"next")]


def test_an_arrival_that_a_failover_lost_behind_a_gap_is_dropped() -> None:
    """Nothing would ever fill the gap before it, and the reading says where the stream is now."""
    stream = Stream()
    stream.fill(Reading("e", 0))
    assert stream.receive("e", Entry(2, 1, b"1 was missed, and then both were lost")) == []
    stream.read_after()
    assert stream.fill(Reading("e", 0)) == ([], False)
    assert not stream.behind
    after = Entry(1000, 0, b"after")
    assert stream.receive("e", after) == [after]


def test_a_new_stream_continues_an_empty_channel() -> None:
    """Its first publications are delivered, whatever its epoch is, live or from the history."""
    server = Server(size=10, remembered=False)
    live, late = Stream(), Stream()
    for stream in (live, late):
        assert stream.fill(server.read(stream.read_after())) == ([], False)
    server.publish()
    server.publish()
    assert [live.receive(*sent) for sent in server.sent] == [[e] for e in server.entries]
    assert late.receive(*server.sent[1]) == []  # the first one is missing
    assert late.fill(server.read(late.read_after())) == (server.entries, False)
    assert live.epoch == late.epoch == server.epoch


def test_a_stream_that_was_lost_is_not_continued_by_another_one() -> None:
    """The loss is reported at once; earlier publications do not begin the next stream."""
    server = Server(size=10, remembered=False)
    stream = Stream()
    stream.fill(server.read(stream.read_after()))
    server.publish()
    server.publish()
    stream.receive(*server.sent[0])
    server.wipe()
    assert stream.fill(server.read(stream.read_after())) == ([], True)
    assert stream.receive(*server.sent[1]) == []
    assert stream.behind
    assert stream.fill(server.read(stream.read_after())) == ([], False)
    server.publish()
    assert stream.receive(*server.sent[2]) == server.entries

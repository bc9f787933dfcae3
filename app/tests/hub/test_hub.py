"""The fan-out: everybody hears what is for them, once and in order, whatever happens in a tick."""

import asyncio
import time
from typing import Any, cast
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from lab.waiting import settled
from wsfleet.hub.connection import Connection
from wsfleet.hub.hub import Hub
from wsfleet.transports.outbox import Limits
from wsfleet.transports.transport import Close, Closes, Framing


class Ear:
    """A connection that remembers what was sent to it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.heard: list[int] = []
        self.writes = 0

    def send(self, frames: bytes) -> bool:
        """Hear frames of one byte each."""
        self.heard += frames
        self.writes += 1
        return True


CHANNELS = ["a", "b", "c"]
REGISTERS = ["_connections", "_topics", "_topics_of"]
ears = st.integers(0, 3)
channels = st.sampled_from(CHANNELS)
steps = st.lists(
    st.tuples(st.just("subscribe"), ears, channels)
    | st.tuples(st.just("unsubscribe"), ears, channels)
    | st.tuples(st.just("remove"), ears, channels)
    | st.tuples(st.just("publish"), ears | st.none(), channels)
    | st.tuples(st.just("tick"), st.none(), st.just("")),
    max_size=40,
)


@given(steps)
def test_subscribers_get_all_publications_of_their_time(
    script: list[tuple[str, int | None, str]],
) -> None:
    """In the order of publishing within a channel, each once, never one's own, and no other.

    Who leaves before the tick ends may miss what was published in it: it is gone.
    """
    delivered = 0

    def count(number: int) -> None:
        nonlocal delivered
        delivered += number

    async def play() -> None:
        hub = Hub(on_delivered=count)
        listeners = [Ear(number) for number in range(4)]
        for listener in listeners:
            hub.add(cast(Connection, listener))
        due: dict[tuple[int, str], list[int]] = {}
        pending: list[tuple[str, int | None, int]] = []
        subscribed: set[tuple[int, str]] = set()

        def flush() -> None:
            for channel, exclude, message in pending:
                for number, where in subscribed:
                    if where == channel and number != exclude:
                        due.setdefault((number, channel), []).append(message)
            pending.clear()

        for message, (what, who, channel) in enumerate(script):
            ear = cast(Connection, listeners[who or 0])
            match what:
                case "subscribe":
                    if any(waiting == channel for waiting, _, _ in pending):
                        flush()  # what is pending is not for who comes now
                    hub.subscribe(ear, channel)
                    subscribed.add((ear.number, channel))
                case "unsubscribe":
                    hub.unsubscribe(ear, channel)
                    subscribed.discard((ear.number, channel))
                case "remove":
                    hub.remove(ear)
                    hub.add(ear)
                    subscribed -= {(ear.number, each) for each in CHANNELS}
                case "publish":
                    hub.publish(channel, bytes([message]), exclude=who)
                    if any(where == channel for _, where in subscribed):
                        pending.append((channel, who, message))
                case _:
                    await asyncio.sleep(0)
                    flush()
        await asyncio.sleep(0)
        flush()
        for number, listener in enumerate(listeners):
            of = {message: script[message][2] for message in listener.heard}
            for channel in CHANNELS:
                heard = [message for message in listener.heard if of[message] == channel]
                assert heard == due.get((number, channel), [])
        assert delivered == sum(map(len, due.values()))
        for channel in CHANNELS:
            there = sum(where == channel for _, where in subscribed)
            assert hub.count(channel) == there
            assert hub.has(channel) == bool(there)
        for listener in listeners:
            hub.remove(cast(Connection, listener))
        assert not any(vars(hub)[name] for name in REGISTERS)

    with patch("wsfleet.hub.hub.LONGEST_WINDOW", 0.0):  # so that a slow machine does not wait
        asyncio.run(play())


async def test_only_a_busy_hub_delays_a_flush() -> None:
    """After a long flush of several publications the next ones share a later one."""
    hub, heard = Hub(), []

    class Slow(Ear):
        def send(self, frames: bytes) -> bool:
            time.sleep(0.05)
            heard.append(frames)
            return True

    hub.subscribe(cast(Any, Slow(1)), "a")
    for frames in ([b"1"], [b"2"], [b"3", b"4"]):  # at rest, after one, after one
        for each in frames:
            hub.publish("a", each)
        await asyncio.sleep(0)
    assert heard == [b"1", b"2", b"34"]
    hub.publish("a", b"5")
    await asyncio.sleep(0)
    assert heard == [b"1", b"2", b"34"]
    hub.publish("a", b"6")
    await settled(lambda: len(heard) == 4, "both were sent")
    assert heard[-1] == b"56"


async def test_a_tick_costs_one_write() -> None:
    """However many publications it has; and the bytes are the same object for all."""
    hub, written = Hub(), []

    class Sink(Ear):
        def send(self, frames: bytes) -> bool:
            written.append(frames)
            return True

    for number in range(3):
        hub.subscribe(cast(Any, Sink(number)), "a")
    for number in range(5):
        hub.publish("a", bytes([number]))
    await asyncio.sleep(0)
    assert written == [bytes(range(5))] * 3
    assert len({id(frames) for frames in written}) == 1


class Pipe:
    """A transport that is no WebSocket: it writes payloads as events of an event stream."""

    framing = shared_framing = Framing(
        "events",
        text=lambda payload: b"data: " + payload + b"\n\n",
        binary=lambda payload: payload,
    )
    buffered = address = 0
    paused = False

    def __init__(self) -> None:
        self.writer: Pipe | None = self
        self.written = b""
        self.end: Close | None = None

    def write(self, frames: bytes, /) -> bool:
        """Refuse what is longer than a hundred bytes."""
        self.written += frames
        return len(frames) < 100

    def get_write_buffer_size(self) -> int:
        """Keep nothing."""
        return 0

    def limit_outbox(self, limits: Limits) -> None:
        """Have a limit of its own."""

    async def drained(self) -> None:
        """Keep nothing."""

    def discard_outbox(self) -> None:
        """Keep nothing."""

    def stop_keepalive(self) -> None:
        """Send no pings."""

    def start_close(self, code: int, reason: str) -> None:
        """End with the first code."""
        self.writer, self.end = None, self.end or Close(code, reason)


async def test_a_second_transport_needs_nothing_but_the_interface() -> None:
    """Its connections are subscribed, written to and closed as those of WebSocket are."""
    hub, pipe = Hub(), Pipe()
    closes = Closes(restart=Close(1, "restart"), slow=Close(2, "slow"))
    connection = Connection(pipe, client_id="a", limits=Limits(), closes=closes)
    hub.subscribe(connection, f"json {connection.shared_framing.name} chat")
    for payload in (b"1", b"2"):
        hub.publish("json events chat", connection.shared_framing.text(payload))
    await asyncio.sleep(0)
    assert pipe.written == b"data: 1\n\ndata: 2\n\n"
    assert not connection.send(b"x" * 100)
    connection.restart()
    assert pipe.end == closes.slow
    assert not connection.send(b"x"), "nothing is sent after a close"

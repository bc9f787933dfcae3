"""Run `wsfleet verify-delivery` during the faults, and read the effects of each from its events."""

from __future__ import annotations

import bisect
import json
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from wsfleet.cli.measure.delivery_events import MOST_DELIVERIES
from wsfleet.cli.measure.histogram import Histogram, Timeline

from chaos.cluster import PROGRAMS, CommandError
from lab.waiting import attempts

PUBLISHERS = 4
#: Seconds for the whole run, and for the last acknowledgements and deliveries at its end.
RUN_TIMEOUT, END_TIMEOUT = 4 * 3600, 90.0
START_TIMEOUT = 30.0


class Clients:
    """The publishers and subscribers of a channel, from the start of the `with` block to `finish`.

    `rate` is messages a second of each publisher. `keyed` means that the channel's handler
    publishes each message once, however often it is sent.
    """

    def __init__(
        self,
        url: str,
        subscribers: int,
        channel: str,
        rate: float,
        events: Path,
        *,
        keyed: bool = False,
    ) -> None:
        self.channel = channel
        self.events = events
        self._report = events.with_suffix(".json")
        room = MOST_DELIVERIES // (PUBLISHERS * subscribers)
        messages = min(int(RUN_TIMEOUT * rate), room)  # more than most runs publish
        self._command = [
            *(str(PROGRAMS / "wsfleet"), "verify-delivery", url, "--json"),
            *("--publishers", str(PUBLISHERS), "--subscribers", str(subscribers)),
            *("--messages", str(messages), "--rate", str(rate), "--timeout", str(RUN_TIMEOUT)),
            *("--channel", channel, "--events", str(events)),
            *(["--keyed"] if keyed else []),
        ]

    def __enter__(self) -> Clients:
        """Start verify-delivery."""
        self.events.parent.mkdir(parents=True, exist_ok=True)
        self.events.unlink(missing_ok=True)
        with self._report.open("wb") as output:
            # Ctrl-C goes to the run alone, which ends the clients after it has healed the fault.
            self._process = subprocess.Popen(self._command, stdout=output, start_new_session=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill verify-delivery if it still runs."""
        if self.running:
            self._process.kill()
        self._process.wait()

    def wait_for_messages(self) -> None:
        """Wait until all subscribers are connected and a message is acknowledged."""
        for _ in attempts(START_TIMEOUT, 0.5):
            if not self.running:
                break
            if self.events.exists() and b'"event":"acknowledged"' in self.events.read_bytes():
                return
        raise CommandError("verify-delivery published nothing; its output is above")

    @property
    def running(self) -> bool:
        """Whether verify-delivery still runs."""
        return self._process.poll() is None

    def finish(self) -> dict[str, Any]:
        """Stop publishing, and return the report of `verify-delivery --json`."""
        if self.running:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise CommandError(f"verify-delivery did not end in {END_TIMEOUT:g} s") from None
        lines = self._report.read_text().splitlines()
        if not lines:
            raise CommandError("verify-delivery printed no report")
        report: dict[str, Any] = json.loads(lines[-1])
        return report


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read the events, with `at` as Unix time."""
    events: list[dict[str, Any]] = []
    began = 0.0
    with path.open("rb") as lines:
        for line in lines:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "began":
                began = event["time"]
            else:
                event["at"] += began
                events.append(event)
    return events


def effects_by_fault(
    effects: Iterable[tuple[str, float, float]], times: Sequence[tuple[float, float]]
) -> list[dict[str, Any]]:
    """Return the effects between the start and the end of each fault (Unix times).

    A connection counts when it was dropped, a message when it was first sent.
    """
    began = [start for start, _ in times]
    spans = [_Span() for _ in times]
    for kind, at, seconds in effects:
        number = bisect.bisect_right(began, at)
        if number and at < times[number - 1][1]:
            spans[number - 1].enter(kind, seconds)
    return [span.summary() for span in spans]


def timeline(
    effects: Iterable[tuple[str, float, float]], began: float
) -> tuple[Timeline, list[float]]:
    """Return the latency of deliveries over time and the times of dropped connections.

    All times are in seconds after `began` (Unix time).
    """
    delivery, dropped = Timeline(), []
    for kind, at, seconds in effects:
        if kind == "delivery":
            delivery.add(at - began, seconds)
        elif kind == "dropped":
            dropped.append(at - began)
    return delivery, dropped


def find_effects(events: Iterable[dict[str, Any]]) -> Iterator[tuple[str, float, float]]:
    """Yield the effects in the events of a channel: kind, start (Unix time), duration in seconds.

    The kinds are dropped, unrecovered, reconnect, ack and delivery. Only the first of several
    acknowledgements or copies counts.
    """
    left: dict[int, float] = {}
    sent: dict[tuple[int, int], float] = {}
    acknowledged: set[tuple[int, int]] = set()
    received: set[tuple[int, int, int]] = set()
    for event in events:
        at = event["at"]
        who = event.get("subscriber", -1)
        message = (event.get("publisher", -1), event.get("sequence", -1))
        match event["event"]:
            case "disconnected":
                left[who] = at
                yield "dropped", at, 0.0
            case "subscribed" if who in left:
                since = left.pop(who)
                yield "reconnect", since, at - since
                if event["recovering"] and not event["recovered"]:
                    yield "unrecovered", since, 0.0
            case "sent":
                sent.setdefault(message, at)
            case "acknowledged" if message not in acknowledged:
                acknowledged.add(message)
                yield "ack", sent[message], at - sent[message]
            case "received" if (who, *message) not in received and message in sent:
                received.add((who, *message))
                yield "delivery", sent[message], at - sent[message]


class _Span:
    """The effects on clients in a span of time."""

    def __init__(self) -> None:
        self.counts = {"dropped": 0, "unrecovered": 0}
        self.durations = {kind: Histogram() for kind in ("reconnect", "ack", "delivery")}

    def enter(self, kind: str, seconds: float) -> None:
        """Count an effect, or record its duration."""
        if kind in self.counts:
            self.counts[kind] += 1
        else:
            self.durations[kind].add(seconds)

    def summary(self) -> dict[str, Any]:
        """Return the counts, and the durations in milliseconds."""
        figures = {
            f"{kind}_{figure}": histogram.summary()[figure]
            for kind, histogram in self.durations.items()
            for figure in ("p50_ms", "p99_ms", "max_ms")
        }
        return {**self.counts, **figures}

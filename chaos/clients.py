"""The clients: `wsfleet verify-delivery` beside the faults, and what it says of each of them."""

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

PUBLISHERS, RATE = 4, 5.0
#: Seconds that a run may take in all, and its end: the last acknowledgements and deliveries.
LONGEST, ENDING = 4 * 3600, 90.0
ENTRY = 30.0


class Clients:
    """Publishers and subscribers, from the beginning of the `with` to `finish`."""

    def __init__(self, url: str, subscribers: int, channel: str, events: Path) -> None:
        self.events = events
        self._report = events.with_suffix(".json")
        room = MOST_DELIVERIES // (PUBLISHERS * subscribers)
        messages = min(int(LONGEST * RATE), room)  # more than there is time for, in most runs
        self._command = [
            *(str(PROGRAMS / "wsfleet"), "verify-delivery", url, "--json"),
            *("--publishers", str(PUBLISHERS), "--subscribers", str(subscribers)),
            *("--messages", str(messages), "--rate", str(RATE), "--timeout", str(LONGEST)),
            *("--channel", channel, "--events", str(events)),
        ]

    def __enter__(self) -> Clients:
        """Start them."""
        self.events.parent.mkdir(parents=True, exist_ok=True)
        self.events.unlink(missing_ok=True)
        with self._report.open("wb") as output:
            # Ctrl-C is for the run, which ends the clients when it has healed what is broken.
            self._process = subprocess.Popen(self._command, stdout=output, start_new_session=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End them, whatever they do."""
        if self.running:
            self._process.kill()
        self._process.wait()

    def wait_for_messages(self) -> None:
        """Return once all subscribers are there and messages flow."""
        for _ in attempts(ENTRY, 0.5):
            if not self.running:
                break
            if self.events.exists() and b'"event":"acknowledged"' in self.events.read_bytes():
                return
        raise CommandError("verify-delivery published nothing; what it said is above")

    @property
    def running(self) -> bool:
        """Whether they still publish and listen."""
        return self._process.poll() is None

    def finish(self) -> dict[str, Any]:
        """Publish nothing more; gives the report of `verify-delivery --json`."""
        if self.running:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(ENDING)
        except subprocess.TimeoutExpired:
            raise CommandError(f"verify-delivery did not end in {ENDING:g} s") from None
        lines = self._report.read_text().splitlines()
        if not lines:
            raise CommandError("verify-delivery said nothing")
        report: dict[str, Any] = json.loads(lines[-1])
        return report


def read_events(path: Path) -> list[dict[str, Any]]:
    """What happened, with `at` as unix time."""
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


def what_clients_saw(
    events: Iterable[dict[str, Any]], began: Sequence[float]
) -> list[dict[str, Any]]:
    """For each fault, what happened from when it began (unix time) to when the next one did.

    A connection counts where it was dropped, a message where it was first sent.
    """
    spans = [_Span() for _ in began]
    for kind, at, seconds in happenings(events):
        if number := bisect.bisect_right(began, at):
            spans[number - 1].enter(kind, seconds)
    return [span.summary() for span in spans]


def over_time(events: Iterable[dict[str, Any]], began: float) -> tuple[Timeline, list[float]]:
    """How long deliveries took, and when connections were dropped; `began` (unix time) is 0."""
    delivery, dropped = Timeline(), []
    for kind, at, seconds in happenings(events):
        if kind == "delivery":
            delivery.add(at - began, seconds)
        elif kind == "dropped":
            dropped.append(at - began)
    return delivery, dropped


def happenings(events: Iterable[dict[str, Any]]) -> Iterator[tuple[str, float, float]]:
    """Yield what the events amount to: its kind, when it began (unix time), and its seconds.

    The kinds are dropped, unrecovered, reconnect, ack and delivery; only the first of several
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
    """What clients saw in a span of time."""

    def __init__(self) -> None:
        self.counts = {"dropped": 0, "unrecovered": 0}
        self.durations = {kind: Histogram() for kind in ("reconnect", "ack", "delivery")}

    def enter(self, kind: str, seconds: float) -> None:
        """Count it, or record how long it took."""
        if kind in self.counts:
            self.counts[kind] += 1
        else:
            self.durations[kind].add(seconds)

    def summary(self) -> dict[str, Any]:
        """The figures of a fault, durations in milliseconds."""
        figures = {
            f"{kind}_{figure}": histogram.summary()[figure]
            for kind, histogram in self.durations.items()
            for figure in ("p50_ms", "p99_ms", "max_ms")
        }
        return {**self.counts, **figures}

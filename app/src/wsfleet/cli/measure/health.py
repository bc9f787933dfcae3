"""The health of one target over time: readings, their problems, and their summary."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wsfleet.cluster.node_state import DRAIN_STATES


@dataclass
class HealthReading:
    """One answer, or the reason why it is missing."""

    node: str | None = None
    status: str | None = None
    response_ms: float = 0.0
    values: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    set_cookie: str | None = None


@dataclass
class Span:
    """The minimum, mean and maximum of a value."""

    count: int = 0
    total: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, value: float) -> None:
        """Add one value."""
        self.count += 1
        self.total += value
        self.low, self.high = min(self.low, value), max(self.high, value)

    def summary(self) -> dict[str, float]:
        """Return min, avg and max."""
        return {
            "min": round(self.low, 2),
            "avg": round(self.total / self.count, 2),
            "max": round(self.high, 2),
        }


@dataclass
class HealthHistory:
    """The summary of all readings of one target."""

    checks: int = 0
    failures: int = 0
    spans: dict[str, Span] = field(default_factory=dict)
    last: HealthReading | None = None

    def add(self, reading: HealthReading) -> list[str]:
        """Add a reading, and return the changes since the previous one as text."""
        before, self.last = self.last, reading
        self.checks += 1
        self.failures += bool(reading.problems)
        for name, value in reading.values.items():
            self.spans.setdefault(name, Span()).add(value)
        if before is None or before.status == reading.status:
            return []
        return [f"{before.status or 'no answer'} → {reading.status or 'no answer'}"]


def judge(health: Mapping[str, Any], milliseconds: float, limit: float) -> HealthReading:
    """Return the reading of a /health answer: its numbers and its problems."""
    reading = HealthReading(
        node=str(health.get("hostname")),
        status=str(health.get("status")),
        response_ms=milliseconds,
        values={"response_ms": milliseconds},
    )
    for name in ("connections", "cpu_usage", "memory_usage"):
        value = health.get(name)
        if isinstance(value, int | float):
            reading.values[name] = value
    if reading.status not in ("healthy", *DRAIN_STATES):
        reading.problems.append(f"is {reading.status}")
    if health.get("redis_connected") is not True:
        reading.problems.append("has no connection to Redis")
    for name, what in (("cpu_usage", "CPU"), ("memory_usage", "memory")):
        if reading.values.get(name, 0.0) > limit:
            reading.problems.append(f"{what} at {reading.values[name]:.0f} %")
    return reading

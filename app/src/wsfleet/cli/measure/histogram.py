"""Bounded histograms of durations with a fixed relative error, after HdrHistogram."""

import math
from collections.abc import Iterator

#: Buckets in each power of two: a percentile is at most 1/64 too high.
_STEPS = 64
_BITS = _STEPS.bit_length()  # values below 2 * _STEPS are exact
#: The longest duration, 2^32 µs, over an hour; a longer one counts as this.
_LIMIT = (1 << 32) - 1
#: The most intervals of a `Timeline`, and their width at first, in seconds.
_PARTS, _WIDTH = 120, 0.25


class Histogram:
    """A histogram of durations: counts of microsecond buckets, 14 KB for any number of them."""

    __slots__ = ("_counts", "count", "highest", "lowest", "total")

    def __init__(self) -> None:
        self._counts = [0] * (_index(_LIMIT) + 1)
        self.count = 0
        self.total = 0.0
        self.lowest = math.inf
        self.highest = 0.0

    def add(self, seconds: float) -> None:
        """Record one duration; a negative one (rounding of a clock) counts as 0."""
        micros = int(seconds * 1e6)
        if micros < 0:
            micros, seconds = 0, 0.0
        if micros < 128:  # _index(), inlined: this runs once for each delivery
            self._counts[micros] += 1
        elif micros <= _LIMIT:
            shift = micros.bit_length() - 7
            self._counts[(shift << 6) + (micros >> shift)] += 1
        else:
            self._counts[-1] += 1
        self.count += 1
        self.total += seconds
        if seconds > self.highest:
            self.highest = seconds
        if seconds < self.lowest:
            self.lowest = seconds

    def merge(self, other: "Histogram") -> None:
        """Add the durations of another histogram."""
        self._counts = [mine + its for mine, its in zip(self._counts, other._counts, strict=True)]
        self.count += other.count
        self.total += other.total
        self.lowest = min(self.lowest, other.lowest)
        self.highest = max(self.highest, other.highest)

    def buckets(self) -> Iterator[tuple[float, int]]:
        """Yield the non-empty buckets: the upper end in seconds, and the count."""
        for index, count in enumerate(self._counts):
            if count:
                yield min(_upper(index) / 1e6, self.highest), count

    def percentile(self, percent: float) -> float | None:
        """Return the duration in seconds that `percent` of all do not exceed; None if empty."""
        if not self.count:
            return None
        rank = max(1, math.ceil(self.count * percent / 100))
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return min(_upper(index) / 1e6, self.highest)
        return self.highest

    def summary(self) -> dict[str, float | int | None]:
        """Return count, and min, mean, p50, p95, p99 and max in milliseconds (None if empty)."""

        def milliseconds(seconds: float | None) -> float | None:
            return None if seconds is None else round(seconds * 1000, 3)

        return {
            "count": self.count,
            "min_ms": milliseconds(self.lowest if self.count else None),
            "mean_ms": milliseconds(self.total / self.count if self.count else None),
            "p50_ms": milliseconds(self.percentile(50)),
            "p95_ms": milliseconds(self.percentile(95)),
            "p99_ms": milliseconds(self.percentile(99)),
            "max_ms": milliseconds(self.highest if self.count else None),
        }


class Timeline:
    """Histograms of durations, one for each interval of time in which they began.

    It has at most `_PARTS` intervals of one width: when a longer time needs more, each pair of
    intervals becomes one.
    """

    __slots__ = ("_parts", "width")

    def __init__(self) -> None:
        self._parts: list[Histogram | None] = []
        self.width = _WIDTH

    def add(self, at: float, seconds: float) -> None:
        """Record a duration that began `at` seconds after the timeline's start."""
        index = int(at / self.width)
        if index >= len(self._parts):
            index = self._grow(at)
        part = self._parts[index]
        if part is None:
            part = self._parts[index] = Histogram()
        part.add(seconds)

    def _grow(self, at: float) -> int:
        while at >= _PARTS * self.width:
            self.width *= 2
            halves, self._parts = [*self._parts, None], []
            for index in range(0, len(halves) - 1, 2):
                first, second = halves[index : index + 2]
                if first is not None and second is not None:
                    first.merge(second)
                self._parts.append(first or second)
        index = int(at / self.width)
        self._parts += [None] * (index + 1 - len(self._parts))
        return index

    def parts(self) -> Iterator[tuple[float, Histogram]]:
        """Yield the non-empty intervals: their middle in seconds, and their histogram."""
        for index, part in enumerate(self._parts):
            if part is not None:
                yield (index + 0.5) * self.width, part

    def whole(self) -> Histogram:
        """Return one histogram of all durations."""
        whole = Histogram()
        for _, part in self.parts():
            whole.merge(part)
        return whole


def _index(micros: int) -> int:
    shift = max(0, micros.bit_length() - _BITS)
    return shift * _STEPS + (micros >> shift)


def _upper(index: int) -> int:
    """Return the highest number of microseconds in a bucket."""
    shift = max(0, index // _STEPS - 1)
    return ((index - shift * _STEPS + 1) << shift) - 1

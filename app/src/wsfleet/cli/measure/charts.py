"""The charts of a page, as SVG: bars, a histogram, latency over time, and counts over time."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from wsfleet.cli.measure.histogram import Histogram, Timeline

#: The size of a chart and the margins of its plot, in units that are pixels on a wide screen.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 260, 58, 14, 26, 34
_RIGHT_END, _FLOOR = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
_ROW = 26  # height of a horizontal bar with its gap
_LINE_KINDS = 6  # colours of lines, see page.py
_STEPS = 10  # bars of a histogram between a duration and ten times as much


@dataclass(frozen=True, slots=True)
class Bars:
    """A bar chart: a count for each name."""

    title: str
    counts: Mapping[str, int]

    def svg(self) -> str:
        """Draw one bar for each name, with its count and its share."""
        total, most = sum(self.counts.values()), max(self.counts.values(), default=0)
        left = min(280, 20 + 7 * max((len(name) for name in self.counts), default=0))
        room = _RIGHT_END - left - 110
        body = []
        for row, (name, count) in enumerate(self.counts.items()):
            y, width = row * _ROW, room * count / (most or 1)
            body.append(
                _text(left - 8, y + 17, _cut(name), "end")
                + f'<rect class="bar" x="{left}" y="{y + 4}" width="{max(1.0, width):.1f}" '
                f'height="18" rx="3"/>'
                + _text(left + width + 8, y + 17, f"{count:,} · {count / (total or 1):.0%}")
            )
        return _svg(self.title, body, height=max(1, len(self.counts)) * _ROW + 4)


@dataclass(frozen=True, slots=True)
class Spread:
    """A histogram of durations."""

    title: str
    histogram: Histogram

    def svg(self) -> str:
        """Draw the histogram on a logarithmic scale, with lines at p50, p95 and p99."""
        counts: dict[int, int] = {}
        for seconds, count in self.histogram.buckets():
            step = math.ceil(math.log10(max(seconds, 1e-6)) * _STEPS)
            counts[step] = counts.get(step, 0) + count
        if not counts:
            return _empty(self.title)
        x = _Scale(min(counts) - 1, max(max(counts), min(counts) + 7), _LEFT, _RIGHT_END)
        body = [*self._axes(x, max(counts.values())), *self._bars(x, counts)]
        body.append(_line("axis", _LEFT, _FLOOR, _RIGHT_END, _FLOOR))
        return _svg(self.title, [*body, *self._percentiles(x)])

    def _axes(self, x: "_Scale", most: int) -> Iterator[str]:
        for seconds in _decades(10 ** (x.low / _STEPS), 10 ** (x.high / _STEPS)):
            at = x(math.log10(seconds) * _STEPS)
            yield _text(at, _FLOOR + 18, _duration(seconds), "middle")
        for part in (0.5, 1.0):
            y = _FLOOR - part * (_FLOOR - _TOP)
            yield _line("grid", _LEFT, y, _RIGHT_END, y)
            yield _text(_LEFT - 8, y + 4, f"{part * most / self.histogram.count:.0%}", "end")

    def _bars(self, x: "_Scale", counts: Mapping[int, int]) -> Iterator[str]:
        most, total = max(counts.values()), self.histogram.count
        for step, count in sorted(counts.items()):
            height = (_FLOOR - _TOP) * count / most
            span = f"{_duration(10 ** ((step - 1) / _STEPS))} to {_duration(10 ** (step / _STEPS))}"
            yield (
                f'<rect class="bar" x="{x(step - 1) + 1:.1f}" y="{_FLOOR - max(1, height):.1f}" '
                f'width="{max(1.0, x(step) - x(step - 1) - 2):.1f}" '
                f'height="{max(1, height):.1f}" rx="2">'
                f"<title>{span}: {count:,} of {total:,}</title></rect>"
            )

    def _percentiles(self, x: "_Scale") -> Iterator[str]:
        percentiles = {n: self.histogram.percentile(n) or 0.0 for n in (50, 95, 99)}
        for seconds in percentiles.values():
            at = x(math.log10(max(seconds, 1e-6)) * _STEPS)
            yield _line("mark", at, _TOP, at, _FLOOR)
        words = "  ·  ".join(
            f"p{name} {_duration(seconds)}" for name, seconds in percentiles.items()
        )
        yield _text(_LEFT, _TOP - 10, words)


@dataclass(frozen=True, slots=True)
class Mark:
    """An event of the run with its start and end, in seconds after the run began."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Course:
    """Latency over time, with events (`marks`) and the times at which connections dropped."""

    title: str
    timeline: Timeline
    marks: Sequence[Mark] = ()
    dropped_at: Sequence[float] = field(default_factory=list)

    def svg(self) -> str:
        """Draw p50, p99 and the maximum of each interval, on a logarithmic scale."""
        parts = list(self.timeline.parts())
        if not parts:
            return _empty(self.title)
        width = self.timeline.width
        ends = (parts[-1][0] + width / 2, *(m.end for m in self.marks), *self.dropped_at)
        x = _Scale(0, max(ends), _LEFT, _RIGHT_END)
        lowest = min(part.percentile(50) or 0.0 for _, part in parts)
        highest = max(part.highest for _, part in parts)
        y = _Scale(*_round_ends(lowest, highest), _FLOOR, _TOP)
        body = [
            *_draw_marks(self.marks, x),
            *_value_axis(y),
            *_time_axis(x),
            *self._lines(parts, x, y),
            *self._drops(x, width),
        ]
        return _svg(self.title, body) + self._legend()

    def _lines(
        self, parts: Sequence[tuple[float, Histogram]], x: "_Scale", y: "_Scale"
    ) -> Iterator[str]:
        """Draw the lines; a line is interrupted where an interval has no measurement."""
        rows = [
            (at, part.percentile(50) or 0.0, part.percentile(99) or 0.0, part.highest, part.count)
            for at, part in parts
        ]
        for column, kind in ((3, "highest"), (2, "p99"), (1, "p50")):
            path, before = "", -math.inf
            for row in rows:
                move = "M" if row[0] - before > 1.5 * self.timeline.width else "L"
                # A lone point would be invisible: a line of length 0 with round ends is a dot.
                place = f"{x(row[0]):.1f} {y.of_seconds(row[column]):.1f}"
                path += f"{move}{place}" + (f"L{place}" if move == "M" else "")
                before = row[0]
            yield f'<path class="{kind}" d="{path}"/>'
        half = self.timeline.width / 2
        for at, p50, p99, highest, count in rows:
            left = x(at - half)
            yield (
                f'<rect class="touch" x="{left:.1f}" y="{_TOP}" width="{x(at + half) - left:.1f}" '
                f'height="{_FLOOR - _TOP}"><title>{at - half:g} s to {at + half:g} s: '
                f"p50 {_duration(p50)}, p99 {_duration(p99)}, highest {_duration(highest)}, "
                f"{count:,} measured</title></rect>"
            )

    def _drops(self, x: "_Scale", width: float) -> Iterator[str]:
        counts: dict[int, int] = {}
        for at in self.dropped_at:
            counts[int(at / width)] = counts.get(int(at / width), 0) + 1
        for part, count in sorted(counts.items()):
            height = 5 + 20 * count / max(counts.values())
            yield (
                f'<rect class="drop" x="{x(part * width):.1f}" y="{_FLOOR - height:.1f}" width="3" '
                f'height="{height:.1f}"><title>{count:,} connections dropped at '
                f"{part * width:g} s</title></rect>"
            )

    def _legend(self) -> str:
        keys = [("p50", "p50"), ("p99", "p99"), ("highest", "highest")]
        if self.dropped_at:
            keys.append(("drop", f"connections dropped ({len(self.dropped_at):,})"))
        return _legend(keys, self.marks)


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts over time, a line for each name, with events (`marks`).

    A line is the counts and when each was taken, in seconds after the run began.
    """

    title: str
    lines: Mapping[str, Sequence[tuple[float, int]]]
    marks: Sequence[Mark] = ()

    def svg(self) -> str:
        """Draw a line for each name from 0 up; a count holds until the next one."""
        points = [point for line in self.lines.values() for point in line]
        if not points:
            return _empty(self.title)
        ends = (1.0, *(at for at, _ in points), *(mark.end for mark in self.marks))
        x = _Scale(0, max(ends), _LEFT, _RIGHT_END)
        most = max(1, *(count for _, count in points))
        y = _Scale(0, most, _FLOOR, _TOP)
        body = [*_draw_marks(self.marks, x), *_time_axis(x)]
        for count in dict.fromkeys((most // 2, most)):
            body.append(_line("grid", _LEFT, y(count), _RIGHT_END, y(count)))
            body.append(_text(_LEFT - 8, y(count) + 4, f"{count:,}", "end"))
        for number, line in enumerate(self.lines.values()):
            path = ""
            for at, count in sorted(line):
                path += f"H{x(at):.1f}V{y(count):.1f}" if path else f"M{x(at):.1f} {y(count):.1f}"
            body.append(f'<path class="{_line_kind(number)}" d="{path}"/>')
        keys = [(_line_kind(number), escape(name)) for number, name in enumerate(self.lines)]
        return _svg(self.title, body) + _legend(keys, self.marks)


def _line_kind(number: int) -> str:
    return f"line{number % _LINE_KINDS}"


def _draw_marks(marks: Sequence[Mark], x: "_Scale") -> Iterator[str]:
    for number, mark in enumerate(marks, 1):
        left, right = x(mark.begin), max(x(mark.end), x(mark.begin) + 2)
        yield (
            f'<rect class="fault" x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" '
            f'height="{_FLOOR - _TOP}"><title>{number} {escape(mark.name)}, '
            f"{mark.begin:.1f} s to {mark.end:.1f} s</title></rect>"
        )
        yield _text((left + right) / 2, _TOP - 8, str(number), "middle", "number")


def _legend(keys: Sequence[tuple[str, str]], marks: Sequence[Mark]) -> str:
    if marks:
        keys = [*keys, ("fault", "fault, from its start until it was repaired")]
    legend = "".join(f'<li><i class="{kind}"></i>{text}</li>' for kind, text in keys)
    faults = "".join(
        f"<li>{escape(mark.name)} <small>at {mark.begin:.1f} s, "
        f"for {mark.end - mark.begin:.1f} s</small></li>"
        for mark in marks
    )
    return f'<ul class="legend">{legend}</ul>' + (f"<ol>{faults}</ol>" if faults else "")


@dataclass(frozen=True, slots=True)
class _Scale:
    """A linear map from values to coordinates of a chart."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, part)) * (self.end - self.start)

    def of_seconds(self, seconds: float) -> float:
        """Return the coordinate of a duration on a logarithmic scale."""
        return self(math.log10(max(seconds, 1e-6)))


def _round_ends(lowest: float, highest: float) -> tuple[float, float]:
    """Return the logarithms of the nearest 1 or 3 times a power of ten around two durations."""
    log_3 = math.log10(3)
    low, high = (math.log10(max(seconds, 1e-5)) for seconds in (lowest, highest))
    low = max(end for end in (math.floor(low), math.floor(low - log_3) + log_3) if end <= low)
    high = min(end for end in (math.ceil(high), math.ceil(high - log_3) + log_3) if end >= high)
    return low, max(high, low + 1)


def _value_axis(y: _Scale) -> Iterator[str]:
    for seconds in _decades(10**y.low, 10**y.high):
        at = y.of_seconds(seconds)
        yield _line("grid", _LEFT, at, _RIGHT_END, at)
        yield _text(_LEFT - 8, at + 4, _duration(seconds), "end")


def _time_axis(x: _Scale) -> Iterator[str]:
    rough = x.high / 7
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    yield _line("axis", _LEFT, _FLOOR, _RIGHT_END, _FLOOR)
    for number in range(int(x.high / step) + 1):
        at = x(number * step)
        yield _line("axis", at, _FLOOR, at, _FLOOR + 4)
        yield _text(at, _FLOOR + 18, f"{number * step:g} s", "middle")


def _decades(low: float, high: float) -> Iterator[float]:
    """Yield the powers of ten between two values; a small range gets 3 times each as well."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 3) if last - first < 5 else (1,)
    for power in range(first, last + 1):
        for factor in factors:
            if low * 0.999 <= factor * 10.0**power <= high * 1.001:
                yield factor * 10.0**power


def _duration(seconds: float) -> str:
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= size or unit == "µs":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError  # unreachable: the last unit takes any value


def _cut(name: str) -> str:
    return name if len(name) <= 36 else f"{name[:35]}…"


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "label") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _svg(title: str, body: Iterable[str], height: int = _HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(body)}</svg>"
    )


def _empty(title: str) -> str:
    return _svg(title, [_text(_LEFT, 20, "no measurements")], height=32)

"""The page that ``--report`` writes: one HTML file with its styles and drawings, and no scripts."""

import math
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from pathlib import Path

import httpx
from rich.table import Table
from rich.text import Text

from wsfleet import __version__
from wsfleet.cli import CannotRun
from wsfleet.cli.access.fleet_file import trusted
from wsfleet.cli.access.websocket_client import Endpoint
from wsfleet.cli.measure.histogram import Histogram, Timeline
from wsfleet.cli.measure.report import Report

#: Longest list of problems on a page; --json always has all of them.
SHOWN_PROBLEMS = 200
#: The drawings' size and the space around the plot, in units that are pixels on a wide screen.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 260, 58, 14, 26, 34
_RIGHT_END, _FLOOR = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
_ROW = 26  # height of a horizontal bar with its gap
_TOKEN = re.compile(r"([?&]token=)[^&]+")
_STEPS = 10  # bars of a histogram between a duration and ten times as much


@dataclass(frozen=True, slots=True)
class Bars:
    """How many of something each name has."""

    title: str
    counts: Mapping[str, int]

    def svg(self) -> str:
        """Draw one bar a name, with its count and its share."""
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
        return _drawing(self.title, body, height=max(1, len(self.counts)) * _ROW + 4)


@dataclass(frozen=True, slots=True)
class Spread:
    """How many took how long."""

    title: str
    histogram: Histogram

    def svg(self) -> str:
        """Draw a histogram over a logarithmic scale, with p50, p95 and p99."""
        counts: dict[int, int] = {}
        for seconds, count in self.histogram.buckets():
            step = math.ceil(math.log10(max(seconds, 1e-6)) * _STEPS)
            counts[step] = counts.get(step, 0) + count
        if not counts:
            return _empty(self.title)
        first, last = min(counts) - 1, max(counts)
        x = _Scale(first, max(last, first + 8), _LEFT, _RIGHT_END)
        most = max(counts.values())
        total = self.histogram.count
        body = []
        for seconds in _decades(10 ** (x.low / _STEPS), 10 ** (x.high / _STEPS)):
            at = x(math.log10(seconds) * _STEPS)
            body.append(_text(at, _FLOOR + 18, _duration(seconds), "middle"))
        for part in (0.5, 1.0):
            y = _FLOOR - part * (_FLOOR - _TOP)
            body.append(_line("grid", _LEFT, y, _RIGHT_END, y))
            body.append(_text(_LEFT - 8, y + 4, f"{part * most / total:.0%}", "end"))
        for step, count in sorted(counts.items()):
            height = (_FLOOR - _TOP) * count / most
            span = f"{_duration(10 ** ((step - 1) / _STEPS))} to {_duration(10 ** (step / _STEPS))}"
            body.append(
                f'<rect class="bar" x="{x(step - 1) + 1:.1f}" y="{_FLOOR - max(1, height):.1f}" '
                f'width="{max(1.0, x(step) - x(step - 1) - 2):.1f}" '
                f'height="{max(1, height):.1f}" rx="2">'
                f"<title>{span}: {count:,} of {total:,}</title></rect>"
            )
        body.append(_line("axis", _LEFT, _FLOOR, _RIGHT_END, _FLOOR))
        percentiles = {n: self.histogram.percentile(n) or 0.0 for n in (50, 95, 99)}
        for seconds in percentiles.values():
            at = x(math.log10(max(seconds, 1e-6)) * _STEPS)
            body.append(_line("mark", at, _TOP, at, _FLOOR))
        words = "  ·  ".join(
            f"p{name} {_duration(seconds)}" for name, seconds in percentiles.items()
        )
        body.append(_text(_LEFT, _TOP - 10, words))
        return _drawing(self.title, body)


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened: from when to when, in seconds after the beginning."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Course:
    """How long it took, over time; with what happened, and when connections were dropped."""

    title: str
    timeline: Timeline
    marks: Sequence[Mark] = ()
    dropped_at: Sequence[float] = field(default_factory=list)

    def svg(self) -> str:
        """Draw p50, p99 and the highest of each part of the time, on a logarithmic scale."""
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
            *self._marks(x),
            *_value_axis(y),
            *_time_axis(x),
            *self._lines(parts, x, y),
            *self._drops(x, width),
        ]
        return _drawing(self.title, body) + self._legend()

    def _marks(self, x: "_Scale") -> Iterator[str]:
        for number, mark in enumerate(self.marks, 1):
            left, right = x(mark.begin), max(x(mark.end), x(mark.begin) + 2)
            yield (
                f'<rect class="fault" x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" '
                f'height="{_FLOOR - _TOP}"><title>{number} {escape(mark.name)}, '
                f"{mark.begin:.1f} s to {mark.end:.1f} s</title></rect>"
            )
            yield _text((left + right) / 2, _TOP - 8, str(number), "middle", "number")

    def _lines(
        self, parts: Sequence[tuple[float, Histogram]], x: "_Scale", y: "_Scale"
    ) -> Iterator[str]:
        """Lines end where nothing was measured for longer than a part of the time."""
        rows = [
            (at, part.percentile(50) or 0.0, part.percentile(99) or 0.0, part.highest, part.count)
            for at, part in parts
        ]
        for column, kind in ((3, "highest"), (2, "p99"), (1, "p50")):
            path, before = "", -math.inf
            for row in rows:
                move = "M" if row[0] - before > 1.5 * self.timeline.width else "L"
                # A point alone would not show: a line of no length with round ends is a dot.
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
        if self.marks:
            keys.append(("fault", "fault, from its beginning until it was healed"))
        legend = "".join(f'<li><i class="{kind}"></i>{text}</li>' for kind, text in keys)
        faults = "".join(
            f"<li>{escape(mark.name)} <small>at {mark.begin:.1f} s, "
            f"for {mark.end - mark.begin:.1f} s</small></li>"
            for mark in self.marks
        )
        return f'<ul class="legend">{legend}</ul>' + (f"<ol>{faults}</ol>" if faults else "")


def check(path: Path | None) -> None:
    """Raise CannotRun if a page could not be written there: before a long run, not after it."""
    if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK)):
        raise CannotRun(f"cannot write the report {path}: name a file in a folder that you may use")


def release(endpoint: Endpoint) -> str:
    """Return the version that a node of the fleet says it has."""
    try:
        answer = httpx.get(
            f"{endpoint.http}/health", timeout=3, trust_env=False, verify=trusted()
        ).json()
        return str(answer["version"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return "unknown"


def write(report: Report, path: Path, program: str, endpoint: Endpoint) -> None:
    """Write a report as a page; `program` is what was run, without its arguments.

    Raises:
        CannotRun: the file cannot be written.

    """
    facts = {
        "Date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
        "Command": shlex.join([program, *map(_without_token, sys.argv[1:])]),
        "Fleet": f"{endpoint.http}, version {release(endpoint)}",
        "From": f"{platform.node()}, wsfleet {__version__}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.release()}",
    }
    try:
        path.write_text(page(report, facts), encoding="utf-8")
    except OSError as error:
        raise CannotRun(f"cannot write the report {path}: {error.strerror}") from error


def _without_token(argument: str) -> str:
    """Pages are passed on; what opens the door is not."""
    return _TOKEN.sub(r"\1…", argument)


def page(report: Report, facts: Mapping[str, str]) -> str:
    """Return the page: the verdict, what it stands on, and all figures."""
    missed = sum(not criterion.met for criterion in report.criteria)
    criteria = f"{len(report.criteria) - missed} of {len(report.criteria)} criteria met"
    verdict = f"✓ passed: {criteria}" if report.ok else f"✗ failed: {criteria}"
    described = "".join(
        f"<dt>{escape(name)}</dt><dd>{_value(name, value)}</dd>" for name, value in facts.items()
    )
    return _PAGE.format(
        title=escape(report.title),
        style=_STYLE,
        kind="passed" if report.ok else "failed",
        verdict=escape(verdict),
        facts=described,
        body="".join((_criteria(report), _problems(report), _figures(report), _views(report))),
    )


def _value(name: str, value: str) -> str:
    return f"<code>{escape(value)}</code>" if name == "Command" else escape(value)


def _criteria(report: Report) -> str:
    rows = [
        (
            criterion.what,
            _shown(criterion.wanted),
            _shown(criterion.found),
            "✓ met" if criterion.met else "✗ missed",
        )
        for criterion in report.criteria
    ]
    columns = ("criterion", ">wanted", ">found", "")
    return _section("Criteria", _table(columns, rows, bad="✗ missed")) if rows else ""


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _problems(report: Report) -> str:
    if not report.problems:
        return ""
    shown = [*report.problems[:SHOWN_PROBLEMS]]
    if (rest := len(report.problems) - len(shown)) > 0:
        shown.append(f"… {rest:,} more; --json lists all of them")
    items = "".join(f"<li>{escape(problem)}</li>" for problem in shown)
    return _section("Found wrong", f'<ul class="problems">{items}</ul>')


def _figures(report: Report) -> str:
    return "".join(
        _section(figure.title, f'<div class="wide">{figure.svg()}</div>')
        for figure in report.figures
    )


def _views(report: Report) -> str:
    """The tables and words of the terminal."""
    parts = []
    for view in report.views:
        if isinstance(view, Table):
            columns = [
                (">" if column.justify == "right" else "") + str(column.header)
                for column in view.columns
            ]
            cells = ([_plain(cell) for cell in column.cells] for column in view.columns)
            rows = zip(*cells, strict=True)
            parts.append(_section(str(view.title or ""), _table(columns, rows, bad="NO")))
        else:
            parts.append(f"<p>{escape(_plain(view))}</p>")
    return "".join(parts)


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def _section(title: str, body: str) -> str:
    heading = f"<h2>{escape(title[:1].upper() + title[1:])}</h2>" if title else ""
    return f"<section>{heading}{body}</section>\n"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]], bad: str) -> str:
    """Return a table; a column called ">name" stands on the right, cells that are `bad` in red."""
    sides = [(name.lstrip(">"), ' class="right"' if name[:1] == ">" else "") for name in columns]
    head = "".join(f"<th{side}>{escape(name)}</th>" for name, side in sides)
    body = ""
    for row in rows:
        body += "<tr>"
        for cell, (_, side) in zip(row, sides, strict=True):
            kind = ' class="bad"' if cell == bad else side
            body += f"<td{kind}>{escape(cell)}</td>"
        body += "</tr>\n"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to places in the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, part)) * (self.end - self.start)

    def of_seconds(self, seconds: float) -> float:
        """The place of a duration on a scale of its logarithms."""
        return self(math.log10(max(seconds, 1e-6)))


def _round_ends(lowest: float, highest: float) -> tuple[float, float]:
    """Return the logarithms of 1 or 3 times a power of ten below and above two durations."""
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
    """Yield 1, 10, 100 … between two values, with 3 between them where these are few."""
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
    raise AssertionError  # never: the last unit takes all


def _cut(name: str) -> str:
    return name if len(name) <= 36 else f"{name[:35]}…"


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "label") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _drawing(title: str, body: Iterable[str], height: int = _HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(body)}</svg>"
    )


def _empty(title: str) -> str:
    return _drawing(title, [_text(_LEFT, 20, "nothing was measured")], height=32)


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}: {verdict}</title>
<style>{style}</style>
<main>
<header><h1>{title}</h1><p class="verdict {kind}">{verdict}</p></header>
<dl>{facts}</dl>
{body}</main>
</html>
"""

_STYLE = """
:root { --page: #fcfcfb; --text: #1b1b1a; --soft: #6b6a66; --line: #dddcd6; --blue: #2a78d6;
  --pale: #86b6ef; --grey: #a3a29c; --red: #c93636; --green: #1c7a35; --code: #f0efec; }
@media (prefers-color-scheme: dark) {
  :root { --page: #1a1a19; --text: #eeede8; --soft: #a09f98; --line: #3a3937; --blue: #5598e7;
    --pale: #256abf; --grey: #72716b; --red: #ec7070; --green: #5cbf77; --code: #2a2a28; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 860px; margin: 0 auto; padding: 24px 20px 48px; }
header { display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: baseline; }
h1 { font-size: 24px; margin: 0; }
h2 { font-size: 16px; margin: 32px 0 8px; }
.verdict { margin: 0; font-weight: 600; }
.passed { color: var(--green); }
.failed, .bad, .problems { color: var(--red); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; margin: 14px 0; }
dt, small { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
code { background: var(--code); padding: 1px 5px; border-radius: 4px; font-size: 13px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; padding: 4px 22px 4px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 500; }
td { font-variant-numeric: tabular-nums; }
.right { text-align: right; }
svg { display: block; width: 100%; min-width: 600px; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg .number { fill: var(--red); font-weight: 600; }
.bar { fill: var(--blue); }
.grid { stroke: var(--line); }
.axis { stroke: var(--grey); }
.mark { stroke: var(--text); stroke-dasharray: 3 3; }
path { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
path.p50 { stroke: var(--blue); }
path.p99 { stroke: var(--pale); }
path.highest { stroke: var(--grey); stroke-width: 1; }
.touch { fill: transparent; }
.touch:hover { fill: var(--line); fill-opacity: .4; }
rect.fault { fill: var(--red); fill-opacity: .14; }
rect.drop { fill: var(--red); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; list-style: none; margin: 6px 0;
  padding: 0; font-size: 13px; color: var(--soft); }
.legend i { display: inline-block; width: 14px; height: 3px; margin-right: 6px;
  vertical-align: middle; }
i.p50 { background: var(--blue); } i.p99 { background: var(--pale); }
i.highest { background: var(--grey); } i.drop { background: var(--red); width: 3px; height: 12px; }
i.fault { background: var(--red); opacity: .25; height: 12px; }
ol { columns: 2 300px; font-size: 13px; padding-left: 26px; }
ol li::marker { color: var(--red); font-weight: 600; }
@media print { .touch { display: none; } section { break-inside: avoid; } }
"""

"""Medians, tables and plots of what was measured, and their place in docs/performance.md."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from bench.catalog import HERE, PEERS
from bench.goals import GOALS, Goal
from bench.modes import MODES

Measurements = Sequence[dict[str, Any]]
#: Modes with sizes that are columns of one table, and those that are plots.
TABLES = (
    (("one", 500), ("one", 2000), ("sixteen", 500), ("sixteen", 2000), ("rooms", 2000)),
    (("publish", 64), ("setup", 2000), ("memory", 2000), ("half", 2000), ("idle", 1)),
    (("haproxy", 500), ("haproxy-memory", 2000), ("beside", 200)),
)
PLOTS = (("one", 2000), ("sixteen", 2000), ("rooms", 2000), ("setup", 2000), ("memory", 2000))


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of some rounds."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None where there are no values."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found)) if found else None

    def __str__(self) -> str:
        """As a cell of a table."""
        if self.least == self.greatest:
            return number(self.median)
        return f"{number(self.median)} ({number(self.least)}-{number(self.greatest)})"


def number(value: float) -> str:
    """Three digits, in thousands or millions where it is large: 254 k."""
    value = float(f"{value:.3g}")
    scales = ((1e6, 1e6, " M"), (1e4, 1e3, " k"), (0, 1, ""))
    scale, name = next((scale, name) for least, scale, name in scales if abs(value) >= least)
    decimals = max(0, 3 - len(str(int(abs(value / scale)))))
    return f"{value / scale:,.{decimals}f}{name}" if value else "0"


def by_round(measurements: Measurements, peer: str, mode: str, size: int) -> dict[int, float]:
    """What was measured of a peer, by the number of the round."""
    return {
        found["round"]: found["value"]
        for found in measurements
        if (found["peer"], found["mode"], found["size"]) == (peer, mode, size) and "value" in found
    }


def ratios(
    measurements: Measurements, peer: str, other: str, mode: str, size: int
) -> Spread | None:
    """How many times the other's number a peer's is, round by round."""
    own = by_round(measurements, peer, mode, size)
    others = by_round(measurements, other, mode, size)
    return Spread.of(own[turn] / others[turn] for turn in own if others.get(turn))


def markdown(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; all columns but the first are numbers."""
    lines = [headers, ["---", *["--:"] * (len(headers) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _title(mode: str, size: int) -> str:
    """With the number of clients where there are several of a mode."""
    title = MODES[mode].title
    return f"{title}, {size:,} clients" if len(MODES[mode].sizes) > 1 else title


def _heading(mode: str, size: int) -> str:
    return f"{_title(mode, size)}: {MODES[mode].unit}"


def table(measurements: Measurements, columns: Sequence[tuple[str, int]]) -> str:
    """A row a peer; empty if nothing of it was measured."""
    measured = {(found["mode"], found["size"]) for found in measurements}
    columns = [column for column in columns if column in measured]
    rows = []
    for peer in PEERS.values():
        spreads = [Spread.of(by_round(measurements, peer.name, *c).values()) for c in columns]
        if any(spreads):
            rows.append([peer.title, *(str(spread or "") for spread in spreads)])
    return markdown(["", *(_heading(*column) for column in columns)], rows) if rows else ""


def goal_row(measurements: Measurements, goal: Goal) -> list[str] | None:
    """What was wanted, what came, and whether that is it; None where nothing was measured."""
    mode = MODES[goal.mode]
    at = "≥" if mode.more_is_better and not goal.difference else "≤"
    own = by_round(measurements, goal.peer, goal.mode, goal.size)
    others = by_round(measurements, goal.other, goal.mode, goal.size)
    if not goal.other:
        found, unit = Spread.of(own.values()), f" {mode.unit}"
    elif goal.difference:
        found = Spread.of(own[turn] - others[turn] for turn in own if turn in others)
        unit = f" {mode.unit} more than {PEERS[goal.other].title}"
    else:
        found = ratios(measurements, goal.peer, goal.other, goal.mode, goal.size)
        unit = f" x {PEERS[goal.other].title}"
    if found is None:
        return None
    met = found.median >= goal.bound if at == "≥" else found.median <= goal.bound
    return [
        _title(goal.mode, goal.size),
        f"{at} {number(goal.bound)}{unit}",
        str(found),
        _verdict(met),
    ]


def _verdict(met: bool) -> str:
    return "yes" if met else "**no**"


def errors(measurements: Measurements) -> str:
    """A line for each peer that failed in a mode, and why."""
    lines = {
        f"- {PEERS[found['peer']].title}, {found['mode']}, {found['size']}: {found['error']}"
        for found in measurements
        if "error" in found
    }
    return "\n".join(sorted(lines))


def busiest_generator(measurements: Measurements) -> float:
    """The greatest share of its core that the generator ever used."""
    return max((found.get("generator", 0.0) for found in measurements), default=0.0)


#: Colours by class, in light and in dark.
FILLS = {
    "text": ("1f2328", "e6edf3"),
    ".axis": ("57606a", "8b949e"),
    ".bar": ("8c959f", "6e7681"),
    ".own": ("0969da", "58a6ff"),
}
STROKES = {
    ".line": ("57606a", "8b949e"),
    ".series0": ("0969da", "58a6ff"),
    ".series1": ("bf8700", "d29922"),
    ".series2": ("1a7f37", "3fb950"),
}


def _style() -> str:
    light, dark = (
        [f"{name} {{ fill: #{colours[which]}; }}" for name, colours in FILLS.items()]
        + [
            f"{name} {{ stroke: #{colours[which]}; fill: none; }}"
            for name, colours in STROKES.items()
        ]
        for which in (0, 1)
    )
    return (
        "<style>\n    path { stroke-width: 1.5; } .axis { font-size: 12px; }\n"
        f"    {' '.join(light)}\n"
        f"    @media (prefers-color-scheme: dark) {{ {' '.join(dark)} }}\n  </style>"
    )


def _svg(title: str, height: float, parts: Iterable[str]) -> str:
    body = "\n  ".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height:g}" '
        'font-family="system-ui, sans-serif" font-size="14" role="img" aria-labelledby="t">\n'
        f'  <title id="t">{escape(title)}</title>\n  {_style()}\n  {body}\n</svg>\n'
    )


def bars(title: str, rows: Sequence[tuple[str, Spread, bool]]) -> str:
    """Horizontal bars with a whisker from least to greatest; the third of a row marks our own."""
    left, width = 250, 420
    scale = width / max(spread.greatest for _, spread, _ in rows)
    parts = [f'<text x="10" y="22" font-weight="600">{escape(title)}</text>']
    for index, (name, spread, own) in enumerate(rows):
        y = 40 + 26 * index
        end = left + spread.greatest * scale
        parts += [
            f'<text x="{left - 10}" y="{y + 14}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{"own" if own else "bar"}" x="{left}" y="{y}" height="18" '
            f'width="{max(spread.median * scale, 1):.1f}"/>',
            f'<path class="line" d="M{left + spread.least * scale:.1f} {y + 9} H{end:.1f}"/>',
            f'<text class="axis" x="{end + 8:.1f}" y="{y + 14}">{number(spread.median)}</text>',
        ]
    return _svg(title, 50 + 26 * len(rows), parts)


def lines(
    title: str, x_title: str, series: Sequence[tuple[str, Sequence[tuple[float, float]]]]
) -> str:
    """Lines over a logarithmic x, from 0 up in y."""
    left, top, width, height = 70, 50, 520, 230
    points = [point for _, line in series for point in line]
    low, high = (math.log10(f(x for x, _ in points)) for f in (min, max))
    highest = max(y for _, y in points) * 1.1

    def place(x: float, y: float) -> tuple[float, float]:
        share = (math.log10(x) - low) / ((high - low) or 1)
        return left + share * width, top + height - y / highest * height

    parts = [
        f'<text x="10" y="22" font-weight="600">{escape(title)}</text>',
        f'<path class="line" d="M{left} {top} V{top + height} H{left + width}"/>',
        f'<text class="axis" x="{left + width / 2}" y="{top + height + 40}" '
        f'text-anchor="middle">{escape(x_title)}</text>',
    ]
    parts += [
        f'<text class="axis" x="{place(x, 0)[0]:.1f}" y="{top + height + 20}" '
        f'text-anchor="middle">{x:,.0f}</text>'
        for x in sorted({x for x, _ in points})
    ]
    for share in (0.25, 0.5, 0.75, 1):
        value = highest / 1.1 * share
        parts.append(
            f'<text class="axis" x="{left - 8}" y="{place(10**low, value)[1] + 4:.1f}" '
            f'text-anchor="end">{number(value)}</text>'
        )
    # Lowest first, each name at least a line above the one before.
    ends = [
        (index, name, [place(*p) for p in sorted(line)])
        for index, (name, line) in enumerate(series)
    ]
    above = top + height + 18.0
    for index, name, placed in sorted(ends, key=lambda end: -end[2][-1][1]):
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        x, y = placed[-1]
        above = min(y + 4, above - 14)
        parts += [
            f'<path class="series{index % 3}" d="M{path}"/>',
            f'<text class="axis" x="{x + 8:.1f}" y="{above:.1f}">{escape(name)}</text>',
        ]
    return _svg(title, top + height + 55, parts)


def replace_between(text: str, name: str, content: str) -> str:
    """Put `content` between the markers of that name.

    Raises:
        ValueError: the markers are not there.

    """
    begin, end = f"<!-- {name}: written by scripts/bench -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"there is no {begin} ... {end}")
    return f"{before}{begin}\n{content}\n{end}{after}"


def _put(page: Path, name: str, paragraphs: Iterable[str]) -> None:
    page.write_text(replace_between(page.read_text(), name, "\n\n".join(paragraphs)))


def write_full(document: dict[str, Any], page: Path) -> None:
    """Write tables, goals and plots of a full run into the page and beside it."""
    measurements: Measurements = document["measurements"]
    plots = []
    for mode, size in PLOTS:
        rows = [
            (peer.title.replace("`", ""), spread, name.startswith("wsfleet"))
            for name, peer in PEERS.items()
            if (spread := Spread.of(by_round(measurements, name, mode, size).values()))
        ]
        if rows:
            file = page.parent / "performance" / f"{mode}.svg"
            file.parent.mkdir(exist_ok=True)
            rows.sort(key=lambda row: row[1].median, reverse=MODES[mode].more_is_better)
            file.write_text(bars(_heading(mode, size), rows))
            plots.append(f"![{MODES[mode].title}](performance/{mode}.svg)")
    rows_of_goals = [row for goal in GOALS if (row := goal_row(measurements, goal))]
    failed = errors(measurements)
    content = [
        _when(document),
        *(
            f"Measured again on {taken['began'][:10]}, {_rounds(taken)}: {MODES[mode].title}."
            for mode, taken in document.get("again", {}).items()
        ),
        markdown(["", "goal", "measured", "met"], rows_of_goals),
        *(text for columns in TABLES if (text := table(measurements, columns))),
        *([f"Not measured:\n\n{failed}"] if failed else []),
        "\n".join(plots),
    ]
    _put(page, "full", content)


def write_curve(document: dict[str, Any], page: Path) -> None:
    """Write the plots of a run of the curve into the page and beside it."""
    found: Measurements = document["measurements"]
    folder = page.parent / "performance"
    folder.mkdir(exist_ok=True)
    plots = []
    for axis, x_title in (("connections", "clients of one channel"), ("channels", "channels")):
        points = [point for point in found if point["axis"] == axis and "value" in point]
        names = dict.fromkeys(point["line"] for point in points)
        series = [
            (name, _medians([point for point in points if point["line"] == name], axis))
            for name in names
        ]
        title = f"CPU microseconds of the nodes per delivery, by {axis}"
        (folder / f"{axis}.svg").write_text(lines(title, x_title, series))
        plots.append(f"![{title}](performance/{axis}.svg)")
        headers = [x_title, *(name for name, _ in series)]
        xs = sorted({x for _, line in series for x, _ in line})
        values = [dict(line) for _, line in series]
        rows = [
            [f"{x:,.0f}", *(number(value[x]) if x in value else "" for value in values)] for x in xs
        ]
        plots.append(markdown(headers, rows))
    _put(page, "curve", [_when(document), *plots])


def _medians(points: Measurements, axis: str) -> list[tuple[float, float]]:
    xs = sorted({point[axis] for point in points})
    return [
        (x, statistics.median(point["value"] for point in points if point[axis] == x)) for x in xs
    ]


def write_balancer(document: dict[str, Any], page: Path) -> None:
    """Write what HAProxy's settings cost into the page: a row a setting."""
    found: Measurements = [point for point in document["measurements"] if "value" in point]
    columns = list(dict.fromkeys(point["column"] for point in found))

    def cell(variant: str, column: str) -> str:
        same = [
            point for point in found if (point["variant"], point["column"]) == (variant, column)
        ]
        return str(Spread.of(point["value"] for point in same) or "")

    variants = dict.fromkeys(point["variant"] for point in found)
    rows = [[variant, *(cell(variant, column) for column in columns)] for variant in variants]
    _put(page, "balancer", [_when(document), markdown(["", *columns], rows)])


def write_profile(document: dict[str, Any], page: Path) -> None:
    """Write the shares of the node's time into the page: a row a group, a column a mode."""
    found: Measurements = [point for point in document["measurements"] if "shares" in point]
    modes = list(dict.fromkeys(point["mode"] for point in found))

    def cell(mode: str, group: str) -> str:
        values = [point["shares"][group] for point in found if point["mode"] == mode]
        return f"{statistics.median(values):.0%}"

    groups = list(found[0]["shares"])
    rows = [[group, *(cell(mode, group) for mode in modes)] for group in groups]
    text = markdown(["", *(MODES[mode].title for mode in modes)], rows)
    _put(page, "profile", [_where(document), text])


def write_deploy(document: dict[str, Any], page: Path) -> None:
    """Write the seconds of each step into the page, beside the goal where there is one."""
    found: Measurements = [point for point in document["measurements"] if "value" in point]
    rows = []
    for step in dict.fromkeys(point["step"] for point in found):
        points = [point for point in found if point["step"] == step]
        spread, goal = Spread.of(point["value"] for point in points), points[0]["goal"]
        assert spread is not None
        met = "" if goal is None else _verdict(spread.median <= goal)
        rows.append([step, f"≤ {goal:g} s" if goal else "", f"{spread} s", met])
    text = markdown(["", "goal", "measured", "met"], rows)
    _put(page, "deploy", [_where(document), text])


def write_costs(document: dict[str, Any], page: Path) -> None:
    """Write what scripts/capacity.py reckons with into its page, and what it reckons."""

    def said(*options: str) -> str:
        command = [sys.executable, str(HERE.parent / "scripts/capacity.py"), *options]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip()

    _put(page, "needs", [said()])
    turns = {point["round"] for point in document["measurements"] if "value" in point}
    _put(page, "costs", [f"{_where(document)} Median of {len(turns)} rounds.", said("--costs")])


def _where(document: dict[str, Any]) -> str:
    machine = document["machine"]
    return f"{document['began'][:10]}, {machine['cpu']}; {machine['system']}."


def _rounds(document: dict[str, Any]) -> str:
    count = document["rounds"]
    return f"{count} round{'s' * (count != 1)} of {document['seconds']:g} s"


def _when(document: dict[str, Any]) -> str:
    share = busiest_generator(document["measurements"])
    return (
        f"{_where(document)} {_rounds(document)}; "
        f"median (least-greatest). The generator never used more than {share:.0%} of its core."
    )

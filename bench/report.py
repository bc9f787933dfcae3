"""Write medians, tables and plots of the measurements into docs/performance.md."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.catalog import HERE, PEERS
from bench.goals import GOALS, Goal
from bench.modes import MODES
from bench.plots import bars, lines
from bench.spread import Spread, number

Measurements = Sequence[dict[str, Any]]
#: The modes and sizes that are the columns of each table, and those with a plot.
TABLES = (
    (("one", 500), ("one", 2000), ("sixteen", 500), ("sixteen", 2000), ("rooms", 2000)),
    (("publish", 64), ("setup", 2000), ("memory", 2000), ("half", 2000), ("idle", 1)),
    (("rpc", 64), ("rpc-thread", 64)),
    (("haproxy", 500), ("haproxy-memory", 2000), ("slow-clients", 200)),
)
PLOTS = (("one", 2000), ("sixteen", 2000), ("rooms", 2000), ("setup", 2000), ("memory", 2000))


def by_round(measurements: Measurements, peer: str, mode: str, size: int) -> dict[int, float]:
    """Return the values of a peer by the number of the round."""
    return {
        found["round"]: found["value"]
        for found in measurements
        if (found["peer"], found["mode"], found["size"]) == (peer, mode, size) and "value" in found
    }


def ratios(
    measurements: Measurements, peer: str, other: str, mode: str, size: int
) -> Spread | None:
    """Return the ratios of a peer's value to another peer's in the same round."""
    own = by_round(measurements, peer, mode, size)
    others = by_round(measurements, other, mode, size)
    return Spread.of(own[turn] / others[turn] for turn in own if others.get(turn))


def markdown(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; all columns but the first are numbers."""
    lines = [headers, ["---", *["--:"] * (len(headers) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _title(mode: str, size: int) -> str:
    """Return the mode's title, with the number of clients if it has several sizes."""
    title = MODES[mode].title
    return f"{title}, {size:,} clients" if len(MODES[mode].sizes) > 1 else title


def _heading(mode: str, size: int) -> str:
    return f"{_title(mode, size)}: {MODES[mode].unit}"


def table(measurements: Measurements, columns: Sequence[tuple[str, int]]) -> str:
    """Return a table with a row for each peer; empty if no column was measured."""
    measured = {(found["mode"], found["size"]) for found in measurements}
    columns = [column for column in columns if column in measured]
    rows = []
    for peer in PEERS.values():
        spreads = [Spread.of(by_round(measurements, peer.name, *c).values()) for c in columns]
        if any(spreads):
            rows.append([peer.title, *(str(spread or "") for spread in spreads)])
    return markdown(["", *(_heading(*column) for column in columns)], rows) if rows else ""


def goal_row(measurements: Measurements, goal: Goal) -> list[str] | None:
    """Return title, goal, value and verdict; None if it was not measured."""
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
    """Return a line with the reason for each failed measurement."""
    lines = {
        f"- {PEERS[found['peer']].title}, {found['mode']}, {found['size']}: {found['error']}"
        for found in measurements
        if "error" in found
    }
    return "\n".join(sorted(lines))


def busiest_generator(measurements: Measurements) -> float:
    """Return the greatest share of its core that the generator used."""
    return max((found.get("generator", 0.0) for found in measurements), default=0.0)


def replace_between(text: str, name: str, content: str) -> str:
    """Put `content` between the markers of that name.

    Raises:
        ValueError: the markers are missing.

    """
    begin, end = f"<!-- {name}: written by scripts/bench -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"the page has no {begin} ... {end}: add them where the results go")
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
    """Write the results of HAProxy's settings into the page: a row for each setting."""
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
    """Write the shares of the node's time into the page: rows are groups, columns are modes."""
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
    """Write the seconds and host-tasks of each step into the page, beside its goal."""
    found: Measurements = [point for point in document["measurements"] if "value" in point]
    rows = []
    for step in dict.fromkeys(point["step"] for point in found):
        points = [point for point in found if point["step"] == step]
        spread, goal = Spread.of(point["value"] for point in points), points[0]["goal"]
        assert spread is not None
        met = "" if goal is None else _verdict(spread.median <= goal)
        tasks = str(points[0]["host_tasks"] or "")
        rows.append([step, f"≤ {goal:g} s" if goal else "", f"{spread} s", met, tasks])
    text = markdown(["", "goal", "measured", "met", "host-tasks"], rows)
    _put(page, "deploy", [_where(document), text])


def write_costs(document: dict[str, Any], page: Path) -> None:
    """Write the tables of scripts/capacity.py into its page: the numbers, and the costs."""

    def output(*options: str) -> str:
        command = [sys.executable, str(HERE.parent / "scripts/capacity.py"), *options]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip()

    _put(page, "needs", [output()])
    turns = {point["round"] for point in document["measurements"] if "value" in point}
    _put(page, "costs", [f"{_where(document)} Median of {len(turns)} rounds.", output("--costs")])


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

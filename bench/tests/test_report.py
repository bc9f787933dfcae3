"""Numbers, tables, goals and plots of measurements."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from bench import plots, report
from bench.goals import Goal
from bench.spread import Spread, number


def rounds(peer: str, mode: str, size: int, *values: float) -> list[dict[str, Any]]:
    """Return a measurement for each round."""
    return [
        {"peer": peer, "mode": mode, "size": size, "round": turn, "value": value, "generator": 0.5}
        for turn, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.01"),
        (1.5, "1.50"),
        (9.8, "9.80"),
        (15.04, "15.0"),
        (8_000, "8,000"),
        (9_999, "10.0 k"),
        (254_321, "254 k"),
        (999_600, "1.00 M"),
        (2_512_345, "2.51 M"),
        (-0.25, "-0.25"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    """Large numbers are in thousands or millions."""
    assert number(value) == text


def test_a_cell_is_the_median_with_least_and_greatest() -> None:
    """A single value has no spread; without values the cell is None."""
    assert str(Spread.of([3, 1, 2])) == "2.00 (1.00-3.00)"
    assert str(Spread.of([5])) == "5.00"
    assert Spread.of([]) is None


def test_a_table_has_measured_peers_and_columns_only() -> None:
    """A failed measurement leaves its cell empty and is listed with its reason."""
    found = rounds("wsfleet", "one", 500, 200, 100, 300) + rounds("ws", "sixteen", 500, 50)
    found.append({"peer": "ws", "mode": "one", "size": 500, "round": 0, "error": "refused"})
    lines = report.table(found, (("one", 500), ("sixteen", 500), ("rooms", 2000))).splitlines()
    assert len(lines) == 4
    assert "rooms" not in lines[0]
    assert lines[2] == "| wsfleet, `/ws` | 200 (100-300) |  |"
    assert lines[3] == "| `ws` (Node) |  | 50.0 |"
    assert report.errors(found) == "- `ws` (Node), one, 500: refused"
    assert report.table([], (("one", 500),)) == ""


def test_ratios_are_taken_within_a_round() -> None:
    """A round without the other peer's value does not count."""
    found = rounds("wsfleet", "one", 500, 10, 40, 90) + rounds("ws", "one", 500, 10, 20)
    assert report.ratios(found, "wsfleet", "ws", "one", 500) == Spread(1.5, 1, 2)


@pytest.mark.parametrize(
    ("goal", "measured", "met"),
    [
        (Goal("one", 500, 280_000), "300 k", "yes"),
        (Goal("one", 500, 310_000), "300 k", "**no**"),
        (Goal("one", 500, 2, "ws"), "3.00", "yes"),
        (Goal("one", 500, 4, "ws"), "3.00", "**no**"),
        (Goal("half", 2000, 15), "20.0", "**no**"),
        (Goal("half", 2000, 25), "20.0", "yes"),
        (Goal("half", 2000, 2, "ws", difference=True), "1.50", "yes"),
        (Goal("half", 2000, 1, "ws", difference=True), "1.50", "**no**"),
    ],
)
def test_a_goal_is_met_by_the_median(goal: Goal, measured: str, met: str) -> None:
    """Lower and upper bounds work for the value, the ratio and the difference."""
    found = rounds("wsfleet", "one", 500, 300_000) + rounds("ws", "one", 500, 100_000)
    found += rounds("wsfleet", "half", 2000, 20) + rounds("ws", "half", 2000, 18.5)
    row = report.goal_row(found, goal)
    assert row is not None
    assert row[2:] == [measured, met]


def test_a_goal_without_measurements_has_no_row() -> None:
    """A missing value of either peer leaves the goal out."""
    found = rounds("wsfleet", "one", 500, 300_000)
    assert report.goal_row([], Goal("one", 500, 1)) is None
    assert report.goal_row(found, Goal("one", 500, 1, "ws")) is None


def test_longer_bars_are_greater_numbers() -> None:
    """The plot is XML with a bar for each row; our own bar has another colour."""
    rows = [("a <b>", Spread(100, 90, 110), True), ("c", Spread(50, 50, 50), False)]
    tree = ET.fromstring(plots.bars("x & y", rows))  # noqa: S314 - see above
    found = list(tree.iter("{http://www.w3.org/2000/svg}rect"))
    assert [bar.get("class") for bar in found] == ["own", "bar"]
    assert float(found[0].attrib["width"]) == pytest.approx(
        2 * float(found[1].attrib["width"]), 0.01
    )


def test_lines_rise_with_their_numbers_and_names_do_not_overlap() -> None:
    """The plot is XML with a path for each series; names are at least one line apart."""
    series = [("one", [(100.0, 1.0), (10_000.0, 3.0)]), ("two", [(100.0, 2.0), (10_000.0, 3.0)])]
    tree = ET.fromstring(plots.lines("t", "clients", series))  # noqa: S314 - see above
    paths = [
        path.attrib["d"]
        for path in tree.iter("{http://www.w3.org/2000/svg}path")
        if path.attrib["class"] == "series0"
    ]
    start, end = (point.split() for point in paths[0].removeprefix("M").split(" L"))
    assert float(start[0]) < float(end[0])
    assert float(start[1]) > float(end[1])
    names = [
        float(text.attrib["y"])
        for text in tree.iter("{http://www.w3.org/2000/svg}text")
        if text.text in ("one", "two")
    ]
    assert abs(names[0] - names[1]) >= 14


def test_only_what_is_between_the_markers_is_replaced() -> None:
    """A second replacement changes nothing; a page without the markers is an error."""
    page = "a\n<!-- full: written by scripts/bench -->\nold\n<!-- full: end -->\nb\n"
    new = report.replace_between(page, "full", "new")
    assert new == page.replace("old", "new")
    assert report.replace_between(new, "full", "new") == new
    with pytest.raises(ValueError, match="the page has no"):
        report.replace_between(page, "curve", "new")


def test_a_full_run_and_a_curve_fill_the_page(tmp_path: Path) -> None:
    """Tables and plots are between the markers; the text around them stays."""
    document = {
        "began": "2026-01-02T03:04:05+00:00",
        "machine": {"cpu": "a CPU, 2 cores", "system": "Debian"},
        "rounds": 1,
        "seconds": 2.0,
        "again": {"memory": {"began": "2026-01-03T00:00:00+00:00", "rounds": 3, "seconds": 1.0}},
        "measurements": rounds("wsfleet", "one", 2000, 300) + rounds("ws", "one", 2000, 100),
    }
    point = {"axis": "connections", "line": "1 node", "channels": 1, "round": 0, "value": 2.0}
    other = point | {"axis": "channels", "channels": 10, "connections": 100, "line": "of 10"}
    curve = document | {"measurements": [point | {"connections": 100}, other]}
    page = tmp_path / "performance.md"
    markers = "<!-- {0}: written by scripts/bench -->\n<!-- {0}: end -->\n"
    names = ("full", "curve", "balancer", "profile", "deploy")
    page.write_text("# Title\n" + "".join(map(markers.format, names)))
    report.write_full(document, page)
    report.write_curve(curve, page)
    cost = {"variant": "the role's", "column": "µs", "round": 0}
    costs = [cost | {"value": 4.0}, cost | {"value": 2.0}, cost | {"error": "no"}]
    report.write_balancer(document | {"measurements": costs}, page)
    half = {"mode": "one", "shares": {"hub": 0.25, "else": 0.75}}
    report.write_profile(document | {"measurements": [half]}, page)
    step = {"step": "again", "value": 60.0, "goal": 45, "host_tasks": 200}
    machine = {"step": "once", "value": 9.0, "goal": None, "host_tasks": 0}
    report.write_deploy(document | {"measurements": [step, machine, {"error": "no"}]}, page)
    text = page.read_text()
    assert text.startswith("# Title\n")
    assert "2026-01-02, a CPU, 2 cores" in text
    assert "1 round of 2 s" in text
    assert "again on 2026-01-03, 3 rounds of 1 s: memory of an idle connection." in text
    assert "more than 50% of its core" in text
    assert "| the role's | 3.00 (2.00-4.00) |" in text
    assert "| hub | 25% |" in text
    assert "| again | ≤ 45 s | 60.0 s | **no** | 200 |" in text
    assert "| once |  | 9.00 s |  |  |" in text
    plots = {file.name for file in (tmp_path / "performance").iterdir()}
    assert plots == {"one.svg", "connections.svg", "channels.svg"}
    assert all(f"(performance/{name})" in text for name in plots)

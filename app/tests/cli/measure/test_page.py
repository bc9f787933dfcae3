"""The page that --report writes: well formed, self-contained, and with the truth in it."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.command import wsfleet
from tests.support.fleet import Rig
from wsfleet.cli.access.endpoint import parse_url
from wsfleet.cli.access.http import describe
from wsfleet.cli.errors import CannotRun
from wsfleet.cli.measure.charts import Bars, Counts, Course, Mark, Spread
from wsfleet.cli.measure.histogram import Histogram, Timeline
from wsfleet.cli.measure.page import check, page, write
from wsfleet.cli.measure.report import Criterion, Figure, Report, table

VOID = {"meta"}


class Outline(HTMLParser):
    """The tags and the text of a page; a tag that is not closed fails."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember it."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """It has no end of its own."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """It ends what began last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect what people read."""
        if self.open[-1:] != ["style"]:
            self.words += f"{data} "


def durations(*seconds: float) -> Histogram:
    """A histogram of these."""
    histogram = Histogram()
    for each in seconds:
        histogram.add(each)
    return histogram


def course(*marks: Mark, dropped_at: tuple[float, ...] = ()) -> Course:
    """A minute with one duration a second."""
    timeline = Timeline()
    for second in range(60):
        timeline.add(second, 0.001 * (second + 1))
    return Course("Delivery over time", timeline, marks, dropped_at)


FIGURES: list[Figure] = [
    Bars("Clients by node", {"node1-8001": 30, "node<2>": 10}),
    Bars("None", {}),
    Spread("Latency", durations(0.001, 0.002, 0.002, 1.5)),
    Spread("One value", durations(0.0)),
    Spread("Nothing", Histogram()),
    course(Mark("node killed & gone", 10, 20), dropped_at=(10.1, 10.2, 59)),
    Course("Nothing", Timeline()),
    Counts(
        "Clients of each node",
        {"node<1>": [(0.0, 10), (5.0, 0), (9.5, 10)], "node2": [(0.0, 10), (5.0, 20)]},
        [Mark("node killed", 4, 11)],
    ),
    Counts("No node", {}),
    Course("One moment", course().timeline, [Mark("later than all", 100, 100)]),
]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.title)
def test_a_drawing_is_well_formed_and_within_its_frame(figure: Figure) -> None:
    """XML that parses, with a name, and nothing that is not a number or lies outside."""
    drawing = ElementTree.fromstring(f"<div>{figure.svg()}</div>")[0]  # noqa: S314  # our own
    assert drawing.get("aria-label") == figure.title
    _, _, width, height = (float(number) for number in str(drawing.get("viewBox")).split())
    for element in drawing.iter():
        for name, limit in (("x", width), ("y", height), ("x1", width), ("y2", height)):
            assert 0 <= float(element.get(name, 0)) <= limit
        right = float(element.get("x", 0)) + float(element.get("width", 0))
        assert right <= width + 1
        assert not re.search("nan|inf", element.get("d", ""))


def test_bars_have_the_length_of_their_share() -> None:
    """Three times as many are three times as long, and each says its count and its share."""
    drawing = FIGURES[0].svg()
    first, second = (
        float(width) for width in re.findall(r'class="bar".*?width="([\d.]+)"', drawing)
    )
    assert first == pytest.approx(3 * second, abs=0.2)
    assert "30 · 75%" in drawing
    assert "node&lt;2&gt;" in drawing


def test_faults_are_marked_when_they_happened() -> None:
    """A fault covers the part of the time in which it was held, and has its name below."""
    drawing = course(Mark("node killed", 15, 30)).svg()
    x, width = re.findall(r'class="fault" x="([\d.]+)" y="\d+" width="([\d.]+)"', drawing)[0]
    points = [float(at) for at in re.findall(r'class="touch" x="([\d.]+)"', drawing)]
    length = points[-1] - points[0]  # 59 s
    assert float(x) - points[0] == pytest.approx(length * 15 / 59, abs=1)
    assert float(width) == pytest.approx(length * 15 / 59, abs=1)
    assert "<li>node killed <small>at 15.0 s, for 15.0 s</small></li>" in drawing


def test_a_count_holds_until_the_next_one() -> None:
    """A line starts at its first count, and each later count is a step at its time."""
    drawing = Counts("Clients", {"node<1>": [(0, 10), (5, 0), (10, 5)], "node2": [(0, 0)]}).svg()
    first, second = re.findall(r'<path class="(line\d)" d="(.*?)"', drawing)
    assert (first[0], second[0]) == ("line0", "line1")
    left, top, steps = re.fullmatch(r"M([\d.]+) ([\d.]+)(.*)", first[1]).groups()  # type: ignore[union-attr]
    places = [(float(x), float(y)) for x, y in re.findall(r"H([\d.]+)V([\d.]+)", steps)]
    (middle, floor), (right, half) = places
    assert middle - float(left) == pytest.approx(right - middle, abs=0.2)
    assert floor - half == pytest.approx(half - float(top), abs=0.2)
    assert "</i>node&lt;1&gt;</li>" in drawing


def test_a_page_has_verdict_criteria_problems_and_tables() -> None:
    """The page names the failures, and shows text from outside without executing it."""
    report = Report(
        {},
        [table("nodes", ("node", ">clients"), [("<script>x</script>", 1234)]), "a word [bold]"],
        ["2 deliveries <lost>"],
        [Criterion("deliveries lost", 2), Criterion("cookie set", True, wanted=True)],
        FIGURES,
    )
    text = page(report, {"Command": "wsfleet load 'http://a b'"})
    outline = Outline(text)
    for words in (
        "✗ failed: 1 of 2 criteria met",
        "✗ missed",
        "✓ met",
        "2 deliveries <lost>",
        "<script>x</script>",
        "1,234",
        "a word [bold]",
        "wsfleet load 'http://a b'",
    ):
        assert words in outline.words
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in outline.tags}
    assert not re.search(r"https?:(?!//a b)|url\(|@import|src=", text)


def test_a_page_of_a_good_run_has_the_verdict() -> None:
    """Passed, in the title as well."""
    text = page(Report({}, criteria=[Criterion("lost", 0)], title="Load"), {})
    assert "<title>Load: ✓ passed: 1 of 1 criteria met</title>" in text


@pytest.mark.usefixtures("processes")
def test_a_page_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    """It is found before the run, not after it."""
    check(None)
    check(tmp_path / "page.html")
    for path in (tmp_path, tmp_path / "missing" / "page.html"):
        with pytest.raises(CannotRun, match="cannot write the report"):
            check(path)
    outcome = wsfleet("load", "http://127.0.0.1:1", "--report", tmp_path)
    assert outcome.code == 2
    assert "cannot write the report" in outcome.stderr


def test_a_token_is_not_passed_on_with_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is shown without it; a fleet that does not answer has no version."""
    url = "http://127.0.0.1:1/ws?a=b&token=secret&c=d"
    monkeypatch.setattr(sys, "argv", ["wsfleet", "load", url])
    path = tmp_path / "page.html"
    write(Report({}), path, "wsfleet", describe(parse_url(url)))
    text = path.read_text(encoding="utf-8")
    assert "secret" not in text
    assert "wsfleet load 'http://127.0.0.1:1/ws?a=b&token=…&c=d'" in Outline(text).words
    assert "http://127.0.0.1:1, version unknown" in text


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("load", "--clients", 6, "--rate", 40, "--duration", 1), "Clients by node"),
        (("check", "stickiness", "--clients", 4, "--seconds", 0), "Connections by node"),
        (("verify-delivery", "--messages", 5, "--subscribers", 3), "recovered wrongly"),
    ],
)
def test_commands_write_a_page(
    fleet: Rig, tmp_path: Path, command: tuple[object, ...], words: str
) -> None:
    """With what they found, the command as it was given, and the versions of both sides."""
    path = tmp_path / "page.html"
    outcome = wsfleet(*command, fleet.base_url, "--report", path)
    assert outcome.code == 0, outcome.stdout + outcome.stderr
    outline = Outline(path.read_text(encoding="utf-8"))
    for expected in (
        "✓ passed",
        words,
        "p99",
        f"wsfleet {' '.join(map(str, command))} {fleet.base_url} --report {path}",
        f"{fleet.base_url}, version 0.",
        "Python 3.",
    ):
        assert expected in outline.words
    assert sum(tag == "svg" for tag, _ in outline.tags) >= 4
    assert "✗" not in outline.words

"""The report of a command: printed for a person, or as one JSON object."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson
from rich.console import Console, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from wsfleet.cli.errors import EXIT_FAILED, EXIT_OK

#: Longest list of problems that is printed for a person; --json always has all of them.
SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Criterion:
    """A property that must be as `wanted`, and how it was `found`."""

    what: str
    found: object
    wanted: object = 0

    @property
    def met(self) -> bool:
        """Whether the property is as wanted."""
        return self.found == self.wanted


class Figure(Protocol):
    """A chart for the page that ``--report`` writes."""

    @property
    def title(self) -> str:
        """The heading of the chart."""

    def svg(self) -> str:
        """Return the chart as SVG."""


@dataclass
class Report:
    """The findings of one command.

    ``--json`` prints `data` with `ok` and `problems` added; people read `views`. The report is `ok`
    exactly if there are no problems. The page that ``--report`` writes also has `title`, `criteria`
    and `figures`.
    """

    data: dict[str, Any]
    views: list[RenderableType] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    criteria: list[Criterion] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    title: str = "wsfleet"

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


def emit(report: Report, *, as_json: bool) -> int:
    """Print a report on stdout, and return the command's exit code.

    With `as_json` it is one JSON object on one line, else the views and the verdict.
    """
    if as_json:
        document = {"ok": report.ok, "problems": report.problems, **report.data}
        sys.stdout.write(orjson.dumps(document).decode() + "\n")
    else:
        console = Console(highlight=False)
        for view in (*report.views, *verdict(report)):
            console.print(view)
    return EXIT_OK if report.ok else EXIT_FAILED


def verdict(report: Report) -> list[Text]:
    """Return one line for each problem, or the line that all is well."""
    if report.ok:
        return [Text("✓ all is well", style="green")]
    lines = [Text(f"✗ {problem}", style="red") for problem in report.problems[:SHOWN_PROBLEMS]]
    if (rest := len(report.problems) - SHOWN_PROBLEMS) > 0:
        lines.append(Text(f"  … {rest} more; --json lists all of them"))
    return lines


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """Return a table; a column ">name" is aligned right, None is shown as a dash."""
    drawn = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        justify: JustifyMethod = "right" if column.startswith(">") else "left"
        # In a narrow terminal, and in a file, a long cell is folded: an ellipsis hides figures.
        drawn.add_column(column.lstrip(">"), justify=justify, overflow="fold")
    for row in rows:
        drawn.add_row(*(_cell(value) for value in row))
    return drawn


def _cell(value: object) -> Text:
    # Text, not str: Rich would read [brackets] of a name as markup.
    if value is None or value == "":
        return Text("-")
    if isinstance(value, bool):
        return Text("yes" if value else "NO", style="" if value else "red")
    if isinstance(value, float):
        return Text(f"{value:,.1f}")
    if isinstance(value, int):
        return Text(f"{value:,}")
    return Text(str(value))

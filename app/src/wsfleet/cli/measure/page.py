"""The page that ``--report`` writes: one HTML file with its styles and charts, and no scripts."""

import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from html import escape
from pathlib import Path

from rich.table import Table
from rich.text import Text

from wsfleet import __version__
from wsfleet.cli.errors import CannotRun
from wsfleet.cli.measure.report import Report

#: Longest list of problems on a page; --json always has all of them.
SHOWN_PROBLEMS = 200
_TOKEN = re.compile(r"([?&]token=)[^&]+")


def check(path: Path | None) -> None:
    """Raise CannotRun if `path` is not a writable place: before a long run, not after it."""
    if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK)):
        raise CannotRun(
            f"cannot write the report {path}: name a file in a folder that you may write to"
        )


def write(report: Report, path: Path, program: str, fleet: str) -> None:
    """Write a report as a page; `program` is the program's name, `fleet` describes the fleet.

    Raises:
        CannotRun: the file cannot be written.

    """
    facts = {
        "Date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
        "Command": shlex.join([program, *map(_without_token, sys.argv[1:])]),
        "Fleet": fleet,
        "From": f"{platform.node()}, wsfleet {__version__}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.release()}",
    }
    try:
        path.write_text(page(report, facts), encoding="utf-8")
    except OSError as error:
        raise CannotRun(f"cannot write the report {path}: {error.strerror}") from error


def _without_token(argument: str) -> str:
    """Hide the token of a URL: people pass pages on."""
    return _TOKEN.sub(r"\1…", argument)


def page(report: Report, facts: Mapping[str, str]) -> str:
    """Return the page: the verdict, the criteria behind it, and all figures."""
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
    return _section("Problems", f'<ul class="problems">{items}</ul>')


def _figures(report: Report) -> str:
    return "".join(
        _section(figure.title, f'<div class="wide">{figure.svg()}</div>')
        for figure in report.figures
    )


def _views(report: Report) -> str:
    """Return the tables and texts that the terminal shows as well."""
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
    """Return a table; a column ">name" is aligned right, a cell equal to `bad` is red."""
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
path.line0 { stroke: #2a78d6; } path.line1 { stroke: #d9822b; } path.line2 { stroke: #2e9e5b; }
path.line3 { stroke: #9b59b6; } path.line4 { stroke: #c0a020; } path.line5 { stroke: #16a0a0; }
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
i.line0 { background: #2a78d6; } i.line1 { background: #d9822b; } i.line2 { background: #2e9e5b; }
i.line3 { background: #9b59b6; } i.line4 { background: #c0a020; } i.line5 { background: #16a0a0; }
i.fault { background: var(--red); opacity: .25; height: 12px; }
ol { columns: 2 300px; font-size: 13px; padding-left: 26px; }
ol li::marker { color: var(--red); font-weight: 600; }
@media print { .touch { display: none; } section { break-inside: avoid; } }
"""

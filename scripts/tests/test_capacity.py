"""The arithmetic of capacity: what grows with what, and that docs/capacity.md has its table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def table(*options: str) -> list[list[str]]:
    """The rows that the script prints, without the head."""
    script = ROOT / "scripts" / "capacity.py"
    done = subprocess.run(
        [sys.executable, script, *options], capture_output=True, text=True, check=True, timeout=30
    )
    rows = done.stdout.splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


@pytest.mark.parametrize("options", [(), ("--costs",)])
def test_the_document_has_what_the_script_says(options: tuple[str, ...]) -> None:
    """The tables are the script's, with its defaults."""
    text = (ROOT / "docs" / "capacity.md").read_text()
    rows = table(*options)
    assert len(rows) >= 4
    for row in rows:
        assert f"| {' | '.join(row)} |" in text


def test_what_is_needed_depends_on_the_load() -> None:
    """Silent clients need connections; busy ones, and those that all come back, need cores."""
    million = ("--connections", "1000000")
    quiet = ["--received", "0", "--published", "0", "--node-connect", "800"]
    quiet += ["--redis-connect", "50"]
    (silent,) = table(*million, *quiet)
    assert (silent[1], silent[3]) == ("100 (connections)", "2 (storms)")
    (busy,) = table(*million, "--received", "5", "--published", "100")
    assert int(busy[1].split()[0]) > 100
    assert busy[1].endswith("(messages)")
    (storm,) = table(*million, *quiet, "--storm", "10")
    assert storm[1] == "160 (storms)"  # 1,000,000 / 10 s * 800 µs, at half a core each
    (patient,) = table(*million, *quiet, "--storm", "3600")
    assert patient[3].startswith("1 ")


def test_more_processes_do_not_help_where_all_hear_all() -> None:
    """A load that no number of processes can take is refused, not divided by infinity."""
    command = [sys.executable, str(ROOT / "scripts" / "capacity.py")]
    command += ["--published", "3000", "--received", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "publish less often" in done.stderr

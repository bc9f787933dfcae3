"""The arithmetic of scripts/capacity.py, and its tables in docs/capacity.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def table(*options: str) -> list[list[str]]:
    """Return the rows that the script prints, without the head."""
    script = ROOT / "scripts" / "capacity.py"
    done = subprocess.run(
        [sys.executable, script, *options], capture_output=True, text=True, check=True, timeout=30
    )
    rows = done.stdout.splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


@pytest.mark.parametrize("options", [(), ("--costs",)])
def test_the_document_has_the_tables_of_the_script(options: tuple[str, ...]) -> None:
    """docs/capacity.md has each row that the script prints with its defaults."""
    text = (ROOT / "docs" / "capacity.md").read_text()
    rows = table(*options)
    assert len(rows) >= 4
    for row in rows:
        assert f"| {' | '.join(row)} |" in text


def test_the_numbers_depend_on_the_load() -> None:
    """Silent clients need connections; busy clients and a reconnect storm need cores."""
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


def test_a_load_that_no_number_of_processes_can_take_is_an_error() -> None:
    """If every process receives every publication, more processes do not help."""
    command = [sys.executable, str(ROOT / "scripts" / "capacity.py")]
    command += ["--published", "3000", "--received", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "lower --published" in done.stderr

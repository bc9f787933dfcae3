"""A report that is printed for a person."""

from __future__ import annotations

import pytest

from wsfleet.cli.measure.report import Report, emit, table


def test_a_narrow_table_hides_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cell that is too long for the width goes on in the next line."""
    monkeypatch.setenv("COLUMNS", "40")
    name, address = "node_scaled_in_and_out", "redis1.internal.example.com"
    view = table("narrow", ("fault", "host", ">delay p99 ms"), [(name, address, 1234567.8)])
    emit(Report({}, [view]), as_json=False)
    printed = capsys.readouterr().out
    rows = [line.split("│")[1:-1] for line in printed.splitlines() if "│" in line]
    cells = ["".join(part.strip() for part in column) for column in zip(*rows, strict=True)]
    assert cells == [name, address, "1,234,567.8"]
    assert "…" not in printed

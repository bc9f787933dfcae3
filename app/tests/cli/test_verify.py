"""`wsfleet verify-delivery` on a real fleet."""

from typing import Any

import pytest

from tests.cli.rig import Rig, wsfleet

NO_FAULTS = {"lost": 0, "duplicated": 0, "reordered": 0, "recovered_wrongly": 0}


def counts(report: dict[str, Any]) -> dict[str, Any]:
    """The four that must be 0."""
    return {key: report[key] for key in NO_FAULTS}


@pytest.mark.parametrize("protocol", ["centrifuge", "plain"])
def test_a_quiet_fleet_loses_nothing(fleet: Rig, protocol: str) -> None:
    """Everything that was published is acknowledged, and everybody got it."""
    outcome = wsfleet(
        *("verify-delivery", fleet.base_url, "--protocol", protocol, "--json"),
        *("--publishers", 3, "--subscribers", 10, "--messages", 20, "--rate", 50),
    )
    assert outcome.code == 0, outcome.stdout + outcome.stderr
    report = outcome.document
    assert counts(report) == NO_FAULTS
    assert (report["acknowledged"], report["delivered"]) == (60, 600)


def test_a_fleet_that_is_not_there(unused_tcp_port: int) -> None:
    """One line says what to do, and the exit code is 2."""
    outcome = wsfleet("verify-delivery", f"http://127.0.0.1:{unused_tcp_port}", "--timeout", 2)
    assert outcome.code == 2
    assert outcome.stderr.count("\n") == 1
    assert "wsfleet status" in outcome.stderr


def test_plain_has_one_channel(fleet: Rig) -> None:
    """Another channel is a mistake, not an empty success."""
    outcome = wsfleet("verify-delivery", fleet.base_url, "--protocol", "plain", "--channel", "x")
    assert outcome.code == 2
    assert "--channel" in outcome.stderr

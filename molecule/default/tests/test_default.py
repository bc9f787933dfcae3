"""The smallest cluster does the main job: two machines, both Debian releases."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lab.waiting import until

if TYPE_CHECKING:
    from molecule.conftest import Cluster


@pytest.mark.parametrize(
    "arguments",
    [
        "status",
        "check stickiness URL --seconds 3",
        "check state",
        "load URL --clients 100 --duration 5",
        "monitor URL --count 2 --interval 1 --limit 100",
    ],
)
def test_the_command_line_finds_all_well(cluster: Cluster, arguments: str) -> None:
    """Every command exits with 0 and prints one JSON object that says ok."""
    words = arguments.replace("URL", cluster.url).split()
    assert json.loads(cluster.output(*words, "--json"))["ok"] is True


def test_prometheus_reaches_all(cluster: Cluster) -> None:
    """Nodes, HAProxy, Redis and machines answer it, in a cluster without TLS between machines."""
    expected = {"wsfleet": 2, "node": 2, "haproxy": 1, "redis": 1}
    until(lambda: cluster.targets_up("trixie") == expected, "all targets are up", 60)

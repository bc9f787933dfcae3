"""The smallest cluster does the main job: two machines, both Debian releases."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from molecule.conftest import Cluster

FLEET = Path(__file__).parents[1] / "inventory" / ".fleet.json"


def wsfleet(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line from this virtual environment."""
    command = [str(Path(sys.executable).parent / "wsfleet"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "arguments",
    [
        "status --fleet FLEET --json",
        "check stickiness URL --seconds 3 --json",
        "check state --fleet FLEET --json",
        "load URL --clients 100 --duration 5 --json",
        "monitor URL --fleet FLEET --count 2 --interval 1 --limit 100 --json",
    ],
)
def test_the_command_line_finds_all_well(arguments: str) -> None:
    """Every command exits with 0 and prints one JSON object that says ok."""
    url = json.loads(FLEET.read_text())["base_url"]
    words = arguments.replace("FLEET", str(FLEET)).replace("URL", url).split()
    result = wsfleet(*words)
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout)["ok"] is True


def test_prometheus_reaches_all(cluster: Cluster) -> None:
    """Nodes, HAProxy, Redis and machines answer it, in a cluster without TLS between machines."""
    address = cluster.host("trixie").ansible.get_variables()["ansible_host"]

    def up() -> dict[str, int]:
        url = f"http://{address}:9090/api/v1/query"
        query = "count by (job) (up == 1)"
        answer = httpx.get(url, params={"query": query}, timeout=10).raise_for_status()
        found = answer.json()["data"]["result"]
        return {each["metric"]["job"]: int(each["value"][1]) for each in found}

    expected = {"wsfleet": 2, "node": 2, "haproxy": 1, "redis": 1}
    cluster.until(lambda: up() == expected, "Prometheus sees everything", 60)

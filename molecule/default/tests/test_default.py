"""The smallest cluster does the main job: two machines, both Debian releases."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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

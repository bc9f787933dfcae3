"""What the scenarios' tests share: addresses, and a cluster as its operator handles it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
import testinfra
from testinfra.utils.ansible_runner import AnsibleRunner

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent


def pytest_configure(config: pytest.Config) -> None:
    """Evaluate the addresses, which `ansible-inventory` prints as they are written."""
    runner = AnsibleRunner.get_runner(config.getoption("ansible_inventory"))
    for host in runner.inventory["_meta"]["hostvars"].values():
        host["ansible_host"] = jinja2.Template(host["ansible_host"]).render(host)


class Cluster:
    """The cluster of one scenario."""

    def __init__(self, inventory: Path) -> None:
        self.inventory = inventory
        self.fleet_file = inventory / ".fleet.json"

    @property
    def url(self) -> str:
        """Where clients connect to."""
        url: str = self.fleet["base_url"]
        return url

    @property
    def fleet(self) -> dict[str, Any]:
        """The fleet file, as the last playbook wrote it."""
        document: dict[str, Any] = json.loads(self.fleet_file.read_text())
        return document

    def on(self, host: str, command: str) -> str:
        """Run a command on a machine as root, and give its output."""
        inventory = str(self.inventory)
        target = testinfra.get_host(f"ansible://{host}", ansible_inventory=inventory, sudo=True)
        output: str = target.check_output(command)
        return output

    def playbook(self, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a playbook as an operator does; its recap is the end of the output."""
        return subprocess.run(
            [str(PROGRAMS / "ansible-playbook"), name, f"-i{self.inventory}", *arguments],
            cwd=ROOT,
            env=os.environ
            | {"ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def play(self, name: str, *arguments: str) -> str:
        """Run a playbook, which must succeed."""
        result = self.playbook(name, *arguments)
        assert result.returncode == 0, result.stdout[-5000:] + result.stderr
        return result.stdout

    def wsfleet(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start the command line on this machine."""
        command = [str(PROGRAMS / "wsfleet"), *arguments]
        environment = os.environ | {"WSFLEET_FLEET": str(self.fleet_file)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """The cluster of the scenario under test."""
    return Cluster(Path(request.config.getoption("ansible_inventory")))

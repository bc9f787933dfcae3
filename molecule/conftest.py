"""Helpers of the scenarios' tests: addresses, and a cluster as its operator uses it."""

import hashlib
import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jinja2
import pytest
import testinfra
from testinfra.host import Host
from testinfra.utils.ansible_runner import AnsibleRunner

from lab.waiting import until

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent
#: The faults that `wsfleet verify-delivery` must not find.
FAULTS = ("lost", "duplicated", "reordered", "recovered_wrongly", "unacknowledged")
#: Makes DHCP slow on a machine where nothing waits for it, not even network-online.target: the
#: address comes when everything has been started, and has tried again for some seconds.
LATE_ADDRESS = """\
[Unit]
DefaultDependencies=no
Before=sysinit.target network-pre.target
[Service]
Type=exec
ExecStartPre=/usr/sbin/ip address flush dev eth0
ExecStart=/bin/sh -c "systemctl is-system-running --wait; sleep 8"
ExecStopPost=/usr/sbin/ip address add {address}/24 dev eth0
ExecStopPost=/usr/sbin/ip route add default via {gateway}
[Install]
WantedBy=sysinit.target
"""


def pytest_configure(config: pytest.Config) -> None:
    """Evaluate the addresses, which `ansible-inventory` prints as they are written."""
    runner = AnsibleRunner.get_runner(config.getoption("ansible_inventory"))
    for host in runner.inventory["_meta"]["hostvars"].values():
        host["ansible_host"] = jinja2.Template(host["ansible_host"]).render(host)


class Cluster:
    """The cluster of one scenario."""

    def __init__(self, inventory: Path, folder: Path = ROOT) -> None:
        self.inventory = inventory
        self.folder = folder  #: Where its operator is, with an ansible.cfg.
        self.fleet_file = inventory / ".fleet.json"

    @property
    def url(self) -> str:
        """The URL that clients connect to."""
        url: str = self.fleet["base_url"]
        return url

    @property
    def fleet(self) -> dict[str, Any]:
        """The fleet file, as the last playbook wrote it."""
        document: dict[str, Any] = json.loads(self.fleet_file.read_text())
        return document

    @property
    def trusted(self) -> ssl.SSLContext:
        """The options to check nodes that speak TLS."""
        return ssl.create_default_context(cafile=self.fleet["ca"])

    def host(self, name: str) -> Host:
        """Return a machine, as root."""
        inventory = str(self.inventory)
        return testinfra.get_host(f"ansible://{name}", ansible_inventory=inventory, sudo=True)

    def address(self, name: str) -> str:
        """Return the address of a machine."""
        found: str = self.host(name).ansible.get_variables()["ansible_host"]
        return found

    def podman(self, verb: str, name: str) -> None:
        """Run a podman command on a machine's container."""
        sudo = [] if os.geteuid() == 0 else ["sudo"]
        checkout = hashlib.sha1(str(ROOT).encode(), usedforsecurity=False).hexdigest()[:8]
        fleet = self.host(name).ansible.get_variables()["vm_fleet"]
        container = f"wsfleet-{checkout}-{fleet}-{name}"
        command = [*sudo, "podman", *verb.split(), container]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def boot_without_an_address(self, *names: str) -> None:
        """Start machines again whose address comes after all services have tried for a while."""
        for name in names:
            address = self.address(name)
            gateway = address.rpartition(".")[0] + ".1"
            unit = LATE_ADDRESS.format(address=address, gateway=gateway).replace("\n", "\\n")
            path = "/etc/systemd/system/late-address.service"
            self.on(name, f"printf '{unit}' > {path} && systemctl --quiet enable late-address")
        for name in names:
            self.podman("restart --time 20", name)
        for name in names:
            until(lambda: self.is_up(name), f"{name} has its address", 120)  # noqa: B023
            self.on(name, "systemctl --quiet disable late-address")

    def is_up(self, name: str) -> bool:
        """Return whether a machine can be reached."""
        try:
            return self.host(name).run("true").rc == 0
        except RuntimeError:  # ssh does not answer yet
            return False

    def on(self, host: str, command: str) -> str:
        """Run a command on a machine as root, and return its output."""
        output: str = self.host(host).check_output(command)
        return output

    def prometheus(self, host: str, path: str, **parameters: str) -> Any:
        """Return the answer of a machine's Prometheus at a path below `/api/v1/`."""
        address = self.address(host)
        url = f"http://{f'[{address}]' if ':' in address else address}:9090/api/v1/{path}"
        answer = httpx.get(url, params=parameters, timeout=10).raise_for_status()
        return answer.json()["data"]

    def query(self, host: str, expression: str) -> list[dict[str, Any]]:
        """Query a machine's Prometheus: `metric` has the labels, `value[1]` is text."""
        found: list[dict[str, Any]] = self.prometheus(host, "query", query=expression)["result"]
        return found

    def targets_up(self, host: str) -> dict[str, int]:
        """Return the number of targets that the Prometheus of a machine reaches, by job."""
        found = self.query(host, "count by (job) (up == 1)")
        return {each["metric"]["job"]: int(each["value"][1]) for each in found}

    def answers(self) -> bool:
        """Return whether a node that has its Redis answers a client."""
        try:
            health = httpx.get(f"{self.url}/health", timeout=2)
            return health.status_code == 200 and bool(health.json()["redis_connected"])
        except httpx.TransportError:
            return False

    def well(self) -> None:
        """Wait until `wsfleet status` finds no problem."""
        until(lambda: self.run("status")[0] == 0, "all is well")

    def playbook(self, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a playbook as an operator does; its recap is the end of the output.

        A result is one line of JSON: YAML's lines are folded, so that a test would miss a text.
        """
        return subprocess.run(
            [str(PROGRAMS / "ansible-playbook"), name, f"-i{self.inventory}", *arguments],
            cwd=self.folder,
            env=os.environ
            | {
                "ANSIBLE_FORCE_COLOR": "0",
                "ANSIBLE_CONFIG": str(self.folder / "ansible.cfg"),
                "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            },
            capture_output=True,
            text=True,
            timeout=900,
        )

    def play(self, name: str, *arguments: str) -> str:
        """Run a playbook, which must succeed."""
        result = self.playbook(name, *arguments)
        assert result.returncode == 0, (
            f"{self.failures(result.stdout)}\n{result.stdout[-5000:]}{result.stderr}"
        )
        return result.stdout

    @staticmethod
    def changed(output: str) -> list[str]:
        """Return a line for each machine that a playbook changed: its recap, and the tasks."""
        recap = re.findall(r"^(\S+) +(: ok=.*)$", output, re.MULTILINE)
        assert recap
        tasks: dict[str, list[str]] = {name: [] for name, _ in recap}
        heading = ""
        for line in output.splitlines():
            if title := re.match(r"(?:TASK|RUNNING HANDLER) \[(.*)\] \**$", line):
                heading = title[1]
            elif result := re.match(r"changed: \[(\S+?)[ \]]", line):
                tasks[result[1]].append(heading)
        return [f"{name} {did} {tasks[name]}" for name, did in recap if "changed=0 " not in did]

    @staticmethod
    def failures(output: str) -> dict[str, str]:
        """Return what a playbook printed about failed tasks, by each machine on which it failed."""
        tasks = r"^(?:fatal|failed): \[(\S+?)[ \]](.*?)(?=^\S|\Z)"
        printed = re.findall(tasks, output, re.MULTILINE | re.DOTALL)
        names = re.findall(r"^(\S+) +: ok=.* failed=[1-9]", output, re.MULTILINE)
        return {name: " ".join(text for host, text in printed if host == name) for name in names}

    def wsfleet(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start the command line on this machine."""
        command = [str(PROGRAMS / "wsfleet"), *arguments]
        environment = os.environ | {"WSFLEET_FLEET": str(self.fleet_file)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run the command line to its end; return the exit code and the output."""
        with self.wsfleet(*arguments) as process:
            try:
                output, _ = process.communicate(timeout=120)
            finally:
                process.kill()
        return process.returncode, output

    def output(self, *arguments: str) -> str:
        """Run the command line, which must exit with 0; return its output."""
        code, output = self.run(*arguments)
        assert code == 0, output
        return output

    def connections(self) -> dict[str, int]:
        """Open WebSockets, by node."""
        return {
            name: httpx.get(f"{url}/health", verify=self.trusted).json()["connections"]
            for name, url in self.fleet["nodes"].items()
        }

    @contextmanager
    def load(self, publishers: int = 4, subscribers: int = 56) -> Iterator[dict[str, Any]]:
        """Publish and subscribe with SDKs all the while; at the end nothing may have been lost.

        It yields the report of `wsfleet verify-delivery`, which is filled in at the end.
        """
        until(lambda: not any(self.connections().values()), "the earlier clients have left")
        report: dict[str, Any] = {}
        with self.wsfleet(
            *("verify-delivery", self.url, "--json", "--rate", "5", "--timeout", "360"),
            *("--publishers", str(publishers), "--subscribers", str(subscribers)),
            *("--messages", "2000"),  # more than there is time for
        ) as process:
            try:
                everybody = publishers + subscribers
                until(lambda: sum(self.connections().values()) == everybody, "all are in")
                yield report
                process.send_signal(signal.SIGINT)
                output, _ = process.communicate(timeout=60)
            finally:
                process.kill()
        report.update(json.loads(output))
        assert {fault: report[fault] for fault in FAULTS} == dict.fromkeys(FAULTS, 0), report
        assert process.returncode == 0


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """The cluster of the scenario under test."""
    return Cluster(Path(request.config.getoption("ansible_inventory")))

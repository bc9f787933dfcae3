"""A cluster of local VMs as the machine under them sees it: containers, addresses, roles."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import jinja2

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(sys.executable).parent
SUDO = [] if os.geteuid() == 0 else ["sudo"]
#: The nftables table of all that chaos drops: without it nothing is dropped.
TABLE = "inet wsfleet_chaos"
#: Where Redis has its data, a file system of its own (see create.yml), and what fills it.
DISK, FILLING = "/var/lib/redis", "/var/lib/redis/chaos"
#: By how much the time of a machine's nodes differs from the machine's, as libfaketime reads it.
CLOCK = "/run/wsfleet-chaos-clock"
#: The settings by which the nodes take their time from there.
CLOCKED = "/run/systemd/system/wsnode@.service.d/chaos.conf"
CLOCKED_SERVICE = (
    "[Service]\nEnvironment=LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1"
    f" FAKETIME_TIMESTAMP_FILE={CLOCK} FAKETIME_CACHE_DURATION=1"
    " FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_DISABLE_SHM=1\n"
)
UNITS = {
    "loadbalancers": ["haproxy", "keepalived"],
    "wsnodes": ["wsnode@*"],
    "redis": ["redis-server", "redis-sentinel"],
}
#: Seconds that a playbook may take, and any other command.
PLAYBOOK, COMMAND = 900.0, 60.0


class CommandError(Exception):
    """A command did not do what it should."""


def command(
    arguments: list[str], *, stdin: str | None = None, check: bool = True, seconds: float = COMMAND
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, also when Ctrl-C is pressed: half a repair is none."""
    environment = {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_FORCE_COLOR": "0",
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
    }
    try:
        result = subprocess.run(
            arguments,
            input=stdin,
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{' '.join(arguments)}: did not end in {seconds:g} s") from error
    if check and result.returncode:
        said = (result.stderr.strip() or result.stdout.strip())[-2000:]
        raise CommandError(f"{' '.join(arguments)}: exit code {result.returncode}: {said}")
    return result


class Cluster:
    """The cluster of one inventory; `groups` has the names of its hosts."""

    def __init__(self, inventory: Path) -> None:
        self.inventory = inventory
        self.fleet_file = inventory / ".fleet.json"
        listing = command(["ansible-inventory", f"--inventory={inventory}", "--list"]).stdout
        said: dict[str, Any] = json.loads(listing)
        self.groups: dict[str, list[str]] = {
            group: said.get(group, {}).get("hosts", []) for group in UNITS
        }
        self.hosts = list(dict.fromkeys(host for group in self.groups.values() for host in group))
        fleet = {said["_meta"]["hostvars"][host].get("vm_fleet") for host in self.hosts}
        if len(fleet) != 1 or None in fleet or not self.fleet_file.exists():
            raise CommandError(f"{inventory} is no cluster of local VMs that is up: see scripts/up")
        self.name: str = fleet.pop()
        self._variables = {host: said["_meta"]["hostvars"][host] for host in self.hosts}
        self.url: str = json.loads(self.fleet_file.read_text())["base_url"]

    def podman(self, verb: str, host: str, *, check: bool = True) -> None:
        """Do something to a machine from outside: kill, start, pause, unpause."""
        command([*SUDO, "podman", verb, self._container(host)], check=check)

    def shell(self, host: str, text: str, *, check: bool = True) -> str:
        """Run something on a machine as root; gives what it printed."""
        arguments = [*SUDO, "podman", "exec", self._container(host), "sh", "-c", text]
        return command(arguments, check=check).stdout

    def address(self, host: str) -> str:
        """The address of a machine, which the inventory writes with a variable."""
        variables = self._variables[host]
        return jinja2.Template(variables["ansible_host"]).render(variables)

    def filter(self, host: str, rules: str) -> None:
        """Drop packets of a machine by `rules` of nftables, in its own network namespace."""
        self.unfilter(host)
        self._nft(host, f"table {TABLE} {{\n{rules}\n}}\n")

    def unfilter(self, host: str) -> None:
        """Drop nothing any more."""
        self._nft(host, f"add table {TABLE}\ndelete table {TABLE}\n")

    def fill(self, host: str) -> None:
        """Leave not one byte of the disk that has Redis's data."""
        # What does not fit is an error, and wanted. Never without a file system that is small.
        fill = f"mountpoint --quiet {DISK} && {{ head --bytes=2G /dev/zero > {FILLING} || true; }}"
        self.shell(host, fill)

    def empty(self, host: str) -> None:
        """Take what filled it away again."""
        self.shell(host, f"rm --force {FILLING}")

    def clock(self, host: str, seconds: int) -> None:
        """Kill a host's nodes; they come back with a clock that is `seconds` ahead."""
        self.shell(
            host,
            f"echo +{seconds} > {CLOCK} && mkdir --parents $(dirname {CLOCKED})"
            f" && printf '{CLOCKED_SERVICE}' > {CLOCKED} && systemctl daemon-reload"
            " && systemctl kill -s KILL 'wsnode@*'",
        )

    def right_clock(self, host: str, *, check: bool = True) -> None:
        """Step the clock to the machine's time, under the nodes while they run."""
        step = f"echo +0 > {CLOCK}; rm --force {CLOCKED}; systemctl daemon-reload"
        self.shell(host, step, check=check)

    def playbook(self, *arguments: str) -> None:
        """Run a playbook as an operator does."""
        program = ["ansible-playbook", f"--inventory={self.inventory}"]
        command([*program, *arguments], seconds=PLAYBOOK)

    def wsfleet(self, *arguments: str, check: bool = True) -> str:
        """Run the operator's command line; gives what it printed."""
        fleet = f"--fleet={self.fleet_file}"
        return command(["wsfleet", *arguments, fleet], check=check, seconds=PLAYBOOK).stdout

    def primary(self) -> str:
        """The Redis host that the Sentinels call the primary."""
        servers = self.groups["redis"]
        if len(servers) == 1:
            return servers[0]
        ask = "redis-cli-auth -p 26379 SENTINEL GET-MASTER-ADDR-BY-NAME wsfleet"
        address = self.shell(servers[0], ask).split()[0]
        return next(host for host in servers if self.address(host) == address)

    def active_balancer(self) -> str:
        """The balancer that has the virtual address."""
        balancers = self.groups["loadbalancers"]
        show = f"ip -brief address show to {self.url.rpartition('/')[2]}"
        return next((host for host in balancers if self.shell(host, show)), balancers[0])

    def unwell(self) -> str | None:
        """The first thing that is wrong with the cluster; None if all is well."""
        status = json.loads(self.wsfleet("status", "--json", check=False) or "{}")
        if not status.get("ok"):
            return str(status.get("error") or status.get("problems"))
        if any(node["state"] in ("draining", "drained") for node in status["nodes"]):
            return "a node is drained"
        servers = self.groups["redis"]
        if len(servers) > 1:
            if status["redis"]["replicas"] != len(servers) - 1:
                return f"the primary has {status['redis']['replicas']} replicas"
            ask = "redis-cli-auth -p 26379 SENTINEL CKQUORUM wsfleet"
            quorum = self.shell(servers[0], ask, check=False).strip()
            if not quorum.startswith(f"OK {len(servers)} usable"):
                return f"Sentinel: {quorum}"
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2):  # noqa: S310 - our own
                return None
        except OSError as error:
            return f"{self.url}: {error}"

    def heal(self) -> None:
        """Undo what a run that was killed may have left: every machine and service is up."""
        for host in self.hosts:
            self.podman("unpause", host, check=False)
            self.podman("start", host)
            self.unfilter(host)
        for group, hosts in self.groups.items():
            for host in hosts:
                for unit in UNITS[group]:
                    # A unit that is not installed here, or waits for the boot, is no concern.
                    resume = f"systemctl kill -s CONT '{unit}'; systemctl start --all '{unit}'"
                    self.shell(host, resume, check=False)
        for host in self.groups["wsnodes"]:
            self.right_clock(host, check=False)
        for host in self.groups["redis"]:
            self.empty(host)

    def _container(self, host: str) -> str:
        return f"wsfleet-{_checkout()}-{self.name}-{host}"

    def _nft(self, host: str, script: str) -> None:
        inspect = ["podman", "inspect", "--format={{.State.Pid}}", self._container(host)]
        namespace = f"--net=/proc/{command([*SUDO, *inspect]).stdout.strip()}/ns/net"
        command([*SUDO, "nsenter", namespace, "nft", "-f", "-"], stdin=script)


def _checkout() -> str:
    """As playbooks/local/vars.yml names it."""
    return hashlib.sha1(str(ROOT).encode(), usedforsecurity=False).hexdigest()[:8]

"""A cluster of local VMs, controlled from their host: containers, addresses, roles."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from wsfleet.cluster.node_name import host_of

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(sys.executable).parent
SUDO = [] if os.geteuid() == 0 else ["sudo"]
#: The nftables table with all rules of chaos.
TABLE = "inet wsfleet_chaos"
#: The folder of Redis's data, which is a file system (see create.yml), and a file to fill it.
DATA_FOLDER, FILLER = "/var/lib/redis", "/var/lib/redis/chaos"
#: The file with the offset of the nodes' clock, in the format of libfaketime.
CLOCK = "/run/wsfleet-chaos-clock"
#: The systemd drop-in that makes the nodes use that file.
CLOCK_DROP_IN = "/run/systemd/system/wsnode@.service.d/chaos.conf"
CLOCK_SETTINGS = (
    "[Service]\nEnvironment=LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1"
    f" FAKETIME_TIMESTAMP_FILE={CLOCK} FAKETIME_CACHE_DURATION=1"
    " FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_DISABLE_SHM=1\n"
)
UNITS = {
    "loadbalancers": ["haproxy", "keepalived"],
    "wsnodes": ["wsnode@*"],
    "redis": ["redis-server", "redis-sentinel"],
}
#: Ask HAProxy's admin socket; the argument is the command.
ADMIN = (
    "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock');"
    " s.sendall(sys.argv[1].encode()+b'\\n'); sys.stdout.write(s.makefile().read())"
)
#: The timeouts of a playbook and of any other command, in seconds.
PLAYBOOK, COMMAND = 900.0, 60.0


class CommandError(Exception):
    """A command failed; the message has its output."""


def command(
    arguments: list[str], *, stdin: str | None = None, check: bool = True, seconds: float = COMMAND
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, even after Ctrl-C, so that a repair is never half done."""
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
        output = (result.stderr.strip() or result.stdout.strip())[-2000:]
        raise CommandError(f"{' '.join(arguments)}: exit code {result.returncode}: {output}")
    return result


class Cluster:
    """The cluster of one inventory; `groups` has the names of its hosts by group.

    `variables` are arguments of each playbook.
    """

    def __init__(self, inventory: Path, variables: Sequence[str] = ()) -> None:
        self.inventory = inventory
        self.variables = variables
        self.fleet_file = inventory / ".fleet.json"
        listing = command(["ansible-inventory", f"--inventory={inventory}", "--list"]).stdout
        inventory_data: dict[str, Any] = json.loads(listing)
        self.groups: dict[str, list[str]] = {
            group: inventory_data.get(group, {}).get("hosts", []) for group in UNITS
        }
        self.hosts = list(dict.fromkeys(host for group in self.groups.values() for host in group))
        fleet = {inventory_data["_meta"]["hostvars"][host].get("vm_fleet") for host in self.hosts}
        if len(fleet) != 1 or None in fleet or not self.fleet_file.exists():
            raise CommandError(f"{inventory} is not a running cluster of local VMs: run scripts/up")
        self.name: str = fleet.pop()
        self._variables = {host: inventory_data["_meta"]["hostvars"][host] for host in self.hosts}
        self.url: str = json.loads(self.fleet_file.read_text())["base_url"]

    def podman(self, verb: str, host: str, *, check: bool = True) -> None:
        """Run a podman command on a machine's container: kill, start, pause, unpause."""
        command([*SUDO, "podman", verb, self._container(host)], check=check)

    def shell(self, host: str, text: str, *, check: bool = True) -> str:
        """Run a shell command on a machine as root, and return its output."""
        arguments = [*SUDO, "podman", "exec", self._container(host), "sh", "-c", text]
        return command(arguments, check=check).stdout

    def address(self, host: str) -> str:
        """Return the address of a machine; in the inventory it contains a variable."""
        variables = self._variables[host]
        address: str = jinja2.Template(variables["ansible_host"]).render(variables)
        return address

    def filter(self, host: str, rules: str) -> None:
        """Drop packets of a machine by nftables `rules` in its network namespace."""
        self.unfilter(host)
        self._nft(host, f"table {TABLE} {{\n{rules}\n}}\n")

    def unfilter(self, host: str) -> None:
        """Remove the rules of `filter`."""
        self._nft(host, f"add table {TABLE}\ndelete table {TABLE}\n")

    def fill_disk(self, host: str) -> None:
        """Fill the disk with Redis's data completely."""
        # Writing beyond the end of the disk fails, as intended. The check protects a real disk.
        fill = f"head --bytes=2G /dev/zero > {FILLER} || true"
        self.shell(host, f"mountpoint --quiet {DATA_FOLDER} && {{ {fill}; }}")

    def free_disk(self, host: str) -> None:
        """Remove the file that fills the disk."""
        self.shell(host, f"rm --force {FILLER}")

    def step_clock(self, host: str, seconds: int) -> None:
        """Kill a host's nodes; systemd restarts them with a clock that is `seconds` ahead."""
        self.shell(
            host,
            f"echo +{seconds} > {CLOCK} && mkdir --parents $(dirname {CLOCK_DROP_IN})"
            f" && printf '{CLOCK_SETTINGS}' > {CLOCK_DROP_IN} && systemctl daemon-reload"
            " && systemctl kill -s KILL 'wsnode@*'",
        )

    def restore_clock(self, host: str, *, check: bool = True) -> None:
        """Step the clock of the running nodes back to the machine's time."""
        step = f"echo +0 > {CLOCK}; rm --force {CLOCK_DROP_IN}; systemctl daemon-reload"
        self.shell(host, step, check=check)

    def playbook(self, *arguments: str) -> None:
        """Run a playbook."""
        program = ["ansible-playbook", f"--inventory={self.inventory}"]
        command([*program, *arguments, *self.variables], seconds=PLAYBOOK)

    def wsfleet(self, *arguments: str, check: bool = True) -> str:
        """Run `wsfleet`, and return its output."""
        fleet = f"--fleet={self.fleet_file}"
        return command(["wsfleet", *arguments, fleet], check=check, seconds=PLAYBOOK).stdout

    def primary(self) -> str:
        """Return the host of the Redis primary, according to Sentinel."""
        servers = self.groups["redis"]
        if len(servers) == 1:
            return servers[0]
        ask = "redis-cli-auth -p 26379 SENTINEL GET-MASTER-ADDR-BY-NAME wsfleet"
        address = self.shell(servers[0], ask).split()[0]
        return next(host for host in servers if self.address(host) == address)

    def active_balancer(self) -> str:
        """Return the balancer that has the virtual address."""
        balancers = self.groups["loadbalancers"]
        show = f"ip -brief address show to {self.url.rpartition('/')[2]}"
        return next((host for host in balancers if self.shell(host, show)), balancers[0])

    def connections(self) -> dict[str, dict[str, int]]:
        """Return the number of connections of each running node, by the host in the inventory."""
        status = json.loads(self.wsfleet("status", "--json", check=False) or "{}")
        found: dict[str, dict[str, int]] = {}
        for host in self.groups["wsnodes"]:
            name = self._variables[host].get("wsnode_host_name") or host
            found[host] = {
                node["name"]: node["connections"]
                for node in status.get("nodes", [])
                if host_of(node["name"]) == name and node["connections"] is not None
            }
        return found

    def close_connections(self, node: str) -> None:
        """Close a node's connections at the active balancer: their clients reconnect."""
        ask = f'python3 -c "{ADMIN}" "shutdown sessions server nodes/{node}"'
        if answer := self.shell(self.active_balancer(), ask).strip():
            raise CommandError(f"HAProxy: {answer}")

    def find_problem(self) -> str | None:
        """Return the first problem of the cluster; None if it is healthy."""
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
        """Undo all faults, and start every machine and service."""
        for host in self.hosts:
            self.podman("unpause", host, check=False)
            self.podman("start", host)
            self.unfilter(host)
        for group, hosts in self.groups.items():
            for host in hosts:
                for unit in UNITS[group]:
                    # A unit that is not installed here, or waits for the boot, is not an error.
                    resume = f"systemctl kill -s CONT '{unit}'; systemctl start --all '{unit}'"
                    self.shell(host, resume, check=False)
        for host in self.groups["wsnodes"]:
            self.restore_clock(host, check=False)
        for host in self.groups["redis"]:
            self.free_disk(host)

    def _container(self, host: str) -> str:
        return f"wsfleet-{_checkout()}-{self.name}-{host}"

    def _nft(self, host: str, script: str) -> None:
        inspect = ["podman", "inspect", "--format={{.State.Pid}}", self._container(host)]
        namespace = f"--net=/proc/{command([*SUDO, *inspect]).stdout.strip()}/ns/net"
        command([*SUDO, "nsenter", namespace, "nft", "-f", "-"], stdin=script)


def by_node(connections: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return the connections of each node, from those of all hosts: see `Cluster.connections`."""
    return {name: count for nodes in connections.values() for name, count in nodes.items()}


def _checkout() -> str:
    """Return the name of this checkout, as in playbooks/local/vars.yml."""
    return hashlib.sha1(str(ROOT).encode(), usedforsecurity=False).hexdigest()[:8]

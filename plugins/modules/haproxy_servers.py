#!/usr/bin/python
"""Make a running HAProxy have the servers that its configuration file has, without a reload."""

from __future__ import annotations

import csv
import io
import ipaddress
import re
import socket
import time
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: haproxy_servers
short_description: Servers of a running HAProxy, as its configuration has them
description:
  - Adds and deletes servers of backends through the admin socket, which HAProxy supports from 3.0
    on. A reload would leave an old process with the open WebSockets.
  - Reloads nothing itself. If a reload is needed, O(ignore:reload) of the result says why.
options:
  config:
    description:
      - Text of the configuration file, with the servers of the backends, and with a hash of all
        other settings in C(setenv WSFLEET_SETTINGS), the mark of a process.
    type: str
    required: true
  backends:
    description: Backends whose servers are the nodes. A missing backend is ignored.
    type: list
    elements: str
    default: [nodes, static, console]
  socket:
    description: The admin socket.
    type: path
    default: /run/haproxy/admin.sock
  wait:
    description: Seconds to wait for the last connections of a removed server.
    type: int
    default: 5
  timeout:
    description:
      - Seconds that check mode waits until the process agrees with the configuration. After a
        reload, the new process takes a while to start.
    type: int
    default: 0
author: wsfleet
"""

EXAMPLES = r"""
- name: Add and delete servers of the running process
  wsfleet.wsfleet.haproxy_servers:
    config: "{{ lookup('ansible.builtin.template', 'haproxy.cfg.j2') }}"
  register: _haproxy_running
"""

RETURN = r"""
reload:
  description: Why the process must be reloaded; empty if it agrees with the configuration.
  type: str
  returned: always
added:
  description:
    - New servers, and those whose address, cookie, port of health checks or use of TLS changed;
      a changed weight is set while the server runs.
  type: list
  returned: always
removed:
  description: Deleted servers, and those that changed.
  type: list
  returned: always
"""

MARK = "WSFLEET_SETTINGS"
BACKENDS = ["nodes", "static", "console"]
FIRST_RELEASE = (3, 0)
"""The first release whose `add server` accepts a cookie."""


@dataclass(frozen=True)
class Server:
    """A server of a backend, as a configuration or a running process has it."""

    backend: str
    name: str
    address: str
    cookie: str
    check_port: int
    tls: bool
    weight: int = field(default=1, compare=False)
    """It changes while the server runs, so servers that differ in it are the same."""

    def __str__(self) -> str:
        """Return the server as a line of a configuration."""
        tls = " ssl" if self.tls else ""
        check = f"check port {self.check_port}"
        cookie = self.cookie or "-"
        weight = f"weight {self.weight}"
        return f"server {self.full_name} {self.address} cookie {cookie} {weight} {check}{tls}"

    @property
    def full_name(self) -> str:
        """Its name in commands."""
        return f"{self.backend}/{self.name}"


@dataclass(frozen=True)
class Config:
    """A configuration: its mark, and its server lines without their first word."""

    mark: str
    lines: dict[Server, str]


class Refused(Exception):  # noqa: N818 - it is HAProxy's word
    """HAProxy refused a command."""


def parse_config(text: str, backends: Container[str]) -> Config:
    """Read the mark, and the servers of these backends.

    Raises:
        ValueError: it has no mark.
    """
    mark = re.search(rf"^\s+setenv {MARK} (\S+)$", text, re.MULTILINE)
    if not mark:
        raise ValueError(f"the configuration has no 'setenv {MARK}'")
    lines = {}
    section: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if not line[0].isspace():
            section = words
        elif section[0] == "backend" and section[1] in backends and words[0] == "server":
            address = numeric(words[2])
            cookie = words[words.index("cookie") + 1] if "cookie" in words else ""
            check_port = words[words.index("port") + 1] if "port" in words else port_of(address)
            weight = int(words[words.index("weight") + 1]) if "weight" in words else 1
            server = Server(
                section[1], words[1], address, cookie, int(check_port), "ssl" in words, weight
            )
            lines[server] = " ".join(words[1:])
    return Config(mark[1], lines)


def port_of(address: str) -> str:
    """Return the port of an address."""
    return address.rpartition(":")[2]


def numeric(address: str) -> str:
    """Return HOST:PORT as HAProxy prints it: names are resolved, IPv6 has brackets."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        try:
            ip = ipaddress.ip_address(socket.getaddrinfo(host, None)[0][4][0])
        except OSError:
            return address  # HAProxy reports it when it reads the file
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"


def parse_state(text: str) -> dict[tuple[str, str], tuple[int, bool, int]]:
    """Read `show servers state`: the port of health checks, the use of TLS and the weight.

    The keys are the names of the backend and the server. The port is 0 if HAProxy checks the
    server's own port.
    """
    rows = csv.DictReader(text.partition("# ")[2].splitlines(), delimiter=" ")
    return {
        (row["be_name"], row["srv_name"]): (
            int(row["srv_check_port"]),
            row["srv_use_ssl"] == "1",
            int(row["srv_uweight"]),
        )
        for row in rows
    }


def parse_stat(
    text: str, backends: Container[str], state: Mapping[tuple[str, str], tuple[int, bool, int]]
) -> set[Server]:
    """Return the servers of these backends, from `show stat` and the result of `parse_state`."""
    rows = csv.DictReader(io.StringIO(text.removeprefix("# ")))
    servers = set()
    for row in rows:
        backend, name, address = row["pxname"], row["svname"], row["addr"]
        if backend in backends and row["type"] == "2":  # not the backend itself
            check_port, tls, weight = state[backend, name]
            check_port = check_port or int(port_of(address))
            servers.add(Server(backend, name, address, row["cookie"], check_port, tls, weight))
    return servers


def steps(
    wanted: Iterable[Server], running: Iterable[Server]
) -> tuple[list[Server], list[Server], list[Server]]:
    """Return servers to add, to delete, and to add after that because their name was in use."""
    wanted, running = set(wanted), set(running)
    names = {server.full_name for server in running}
    new, gone = wanted - running, running - wanted

    def by_name(servers: Iterable[Server]) -> list[Server]:
        return sorted(servers, key=lambda server: server.full_name)

    return (
        by_name(server for server in new if server.full_name not in names),
        by_name(gone),
        by_name(server for server in new if server.full_name in names),
    )


class Process:
    """A client of the admin socket of a HAProxy process."""

    def __init__(self, path: str, backends: Container[str], wait: int) -> None:
        self._path = path
        self._backends = backends
        self._wait = wait

    def ask(self, command: str) -> str:
        """Send one command, and return the answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(self._wait + 10)
            connection.connect(self._path)
            connection.sendall(command.encode() + b"\n")
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode().strip()

    def _must(self, command: str, answer: str = "") -> None:
        """Send one command and check its answer.

        Raises:
            Refused: the answer is another one.
        """
        said = self.ask(command)
        if said != answer:
            raise Refused(f"HAProxy says to '{command}': {said or 'nothing'}")

    @property
    def mark(self) -> str:
        """The mark of the settings of its start."""
        return self.ask(f"show env {MARK}").removeprefix(f"{MARK}=")

    @property
    def release(self) -> str:
        """Its release."""
        found = re.search(r"^Version: (\S+)", self.ask("show info"), re.MULTILINE)
        return found[1] if found else "0.0"

    @property
    def servers(self) -> set[Server]:
        """Its servers."""
        state = parse_state(self.ask("show servers state"))
        return parse_stat(self.ask("show stat"), self._backends, state)

    def add(self, server: Server, line: str) -> None:
        """Add a server by its line, with health checks; it takes clients at once."""
        name = server.full_name
        self._must(f"add server {server.backend}/{line}", "New server registered.")
        self._must(f"enable health {name}")
        self._must(f"enable server {name}")

    def weigh(self, server: Server) -> None:
        """Give a server its weight; open connections stay."""
        self._must(f"set server {server.full_name} weight {server.weight}")

    def delete(self, server: Server) -> None:
        """Delete a server after its last connection has ended."""
        name = server.full_name
        self._must(f"set server {name} state maint")
        self._must(f"wait {self._wait}s srv-removable {name}", "Done.")
        self._must(f"del server {name}", "Server deleted.")


def reweighed(wanted: Iterable[Server], running: Iterable[Server]) -> list[Server]:
    """Return the servers that run with another weight than the wanted one."""
    weights = {server: server.weight for server in running}
    return sorted(
        (server for server in wanted if weights.get(server, server.weight) != server.weight),
        key=lambda server: server.full_name,
    )


def why_reload(process: Process, config: Config, *, check: bool) -> str:
    """Change the servers; return why a reload is needed, or an empty text."""
    if process.mark != config.mark:
        return "settings other than the servers changed"
    try:
        for server in [] if check else reweighed(config.lines, process.servers):
            process.weigh(server)
    except Refused as error:
        return str(error)
    first, gone, then = steps(config.lines, process.servers)
    if not (first or gone or then):
        return ""
    release = process.release
    if tuple(int(part) for part in release.split(".")[:2]) < FIRST_RELEASE:
        return f"HAProxy {release} cannot add servers with cookies"
    if check:
        return ""
    try:
        for server in first:
            process.add(server, config.lines[server])
        for server in gone:
            process.delete(server)
        for server in then:
            process.add(server, config.lines[server])
    except Refused as error:
        return str(error)
    return "" if process.servers == set(config.lines) else "its servers still differ"


def main() -> None:
    """Run as Ansible does."""
    module = AnsibleModule(
        argument_spec={
            "config": {"type": "str", "required": True},
            "backends": {"type": "list", "elements": "str", "default": BACKENDS},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
            "wait": {"type": "int", "default": 5},
            "timeout": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        config = parse_config(params["config"], params["backends"])
    except ValueError as error:
        module.fail_json(msg=str(error))
    process = Process(params["socket"], params["backends"], params["wait"])
    deadline = time.monotonic() + (params["timeout"] if module.check_mode else 0)
    while True:
        try:
            before = process.servers
            reload = why_reload(process, config, check=module.check_mode)
        except OSError as error:
            if not module.check_mode:
                module.fail_json(msg=f"HAProxy does not answer on {params['socket']}: {error}")
            # It is missing before the first run.
            before, reload = set(), "HAProxy does not run"
        if not reload or time.monotonic() >= deadline:
            break
        time.sleep(0.2)
    after = set(config.lines)

    def text(servers: set[Server]) -> str:
        return "".join(f"{line}\n" for line in sorted(map(str, servers)))

    module.exit_json(
        changed=bool(reload) or text(before) != text(after),
        reload=reload,
        added=sorted(server.full_name for server in after - before),
        removed=sorted(server.full_name for server in before - after),
        diff={
            "before_header": "servers of the running HAProxy",
            "after_header": "servers of the running HAProxy",
            "before": text(before),
            "after": text(after),
        },
    )


if __name__ == "__main__":
    main()

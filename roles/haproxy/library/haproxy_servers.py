#!/usr/bin/python
"""Make a running HAProxy have the servers that its configuration file has, without a reload."""

from __future__ import annotations

import csv
import io
import ipaddress
import re
import socket
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: haproxy_servers
short_description: Servers of a running HAProxy, as its configuration has them
description:
  - Adds and deletes servers of backends through the admin socket, which HAProxy can from 3.0 on
    with all that a server line of ours says. No reload means no old process that lingers with the
    open WebSockets.
  - Reloads nothing itself. Where a reload is needed O(ignore:reload) of the result says why.
options:
  config:
    description:
      - Text of the configuration file. The servers of the backends are read from it, and in its
        C(setenv WSFLEET_SETTINGS) the mark of all else that a process must have been started with.
    type: str
    required: true
  backends:
    description: Backends whose servers are the nodes; not every configuration has all of them.
    type: list
    elements: str
    default: [nodes, static, console]
  socket:
    description: The admin socket.
    type: path
    default: /run/haproxy/admin.sock
  wait:
    description: Seconds that a server which goes may take to end its last connections.
    type: int
    default: 5
author: wsfleet
"""

EXAMPLES = r"""
- name: Tell the running process which servers there are
  haproxy_servers:
    config: "{{ lookup('ansible.builtin.template', 'haproxy.cfg.j2') }}"
  register: _haproxy_running
"""

RETURN = r"""
reload:
  description: Why the process must be reloaded; empty if it has all that the configuration has.
  type: str
  returned: always
added:
  description:
    - Servers that it did not have, or had with another address, cookie, port for checks or use of
      TLS.
  type: list
  returned: always
removed:
  description: Servers that it should not have, or not like that.
  type: list
  returned: always
"""

MARK = "WSFLEET_SETTINGS"
BACKENDS = ["nodes", "static", "console"]
FIRST_RELEASE = (3, 0)
"""Before it `add server` knows no cookie."""


@dataclass(frozen=True)
class Server:
    """What both the configuration and a running process say of a server of a backend."""

    backend: str
    name: str
    address: str
    cookie: str
    check_port: int
    tls: bool

    def __str__(self) -> str:
        """In the words of a configuration."""
        tls = " ssl" if self.tls else ""
        check = f"check port {self.check_port}"
        cookie = self.cookie or "-"
        return f"server {self.full_name} {self.address} cookie {cookie} {check}{tls}"

    @property
    def full_name(self) -> str:
        """Its name in commands."""
        return f"{self.backend}/{self.name}"


@dataclass(frozen=True)
class Config:
    """What a configuration says: its mark, and server lines (without their first word)."""

    mark: str
    lines: dict[Server, str]


class Refused(Exception):  # noqa: N818 - it is HAProxy's word
    """HAProxy did not do what it was asked for."""


def parse_config(text: str, backends: Container[str]) -> Config:
    """Read what matters here, of these backends.

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
            server = Server(section[1], words[1], address, cookie, int(check_port), "ssl" in words)
            lines[server] = " ".join(words[1:])
    return Config(mark[1], lines)


def port_of(address: str) -> str:
    """Return the port of an address."""
    return address.rpartition(":")[2]


def numeric(address: str) -> str:
    """HOST:PORT as HAProxy tells it: names are resolved, IPv6 has brackets."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        try:
            ip = ipaddress.ip_address(socket.getaddrinfo(host, None)[0][4][0])
        except OSError:
            return address  # HAProxy will not know it either, and says so when it reads the file
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"


def parse_state(text: str) -> dict[tuple[str, str], tuple[int, bool]]:
    """Return each server's port for checks, and whether it speaks TLS, of `show servers state`.

    Servers have their backend's name and their own.

    The port is 0 where HAProxy checks the server's own.
    """
    rows = csv.DictReader(text.partition("# ")[2].splitlines(), delimiter=" ")
    return {
        (row["be_name"], row["srv_name"]): (int(row["srv_check_port"]), row["srv_use_ssl"] == "1")
        for row in rows
    }


def parse_stat(
    text: str, backends: Container[str], state: Mapping[tuple[str, str], tuple[int, bool]]
) -> set[Server]:
    """Return the servers of these backends, of `show stat` and what `parse_state` returns."""
    rows = csv.DictReader(io.StringIO(text.removeprefix("# ")))
    servers = set()
    for row in rows:
        backend, name, address = row["pxname"], row["svname"], row["addr"]
        if backend in backends and row["type"] == "2":  # not the backend itself
            check_port, tls = state[backend, name]
            check_port = check_port or int(port_of(address))
            servers.add(Server(backend, name, address, row["cookie"], check_port, tls))
    return servers


def steps(
    wanted: Iterable[Server], running: Iterable[Server]
) -> tuple[list[Server], list[Server], list[Server]]:
    """Say what to add, what to delete, and what to add after that because its name was taken."""
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
    """The process behind an admin socket."""

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
        """Send one command that has one good answer.

        Raises:
            Refused: it was another one.
        """
        said = self.ask(command)
        if said != answer:
            raise Refused(f"HAProxy says to '{command}': {said or 'nothing'}")

    @property
    def mark(self) -> str:
        """The mark of the settings that it was started with."""
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
        """Add a server by its line; it takes clients at once, and is checked."""
        name = server.full_name
        self._must(f"add server {server.backend}/{line}", "New server registered.")
        self._must(f"enable health {name}")
        self._must(f"enable server {name}")

    def delete(self, server: Server) -> None:
        """Delete a server, when its last connection has ended."""
        name = server.full_name
        self._must(f"set server {name} state maint")
        self._must(f"wait {self._wait}s srv-removable {name}", "Done.")
        self._must(f"del server {name}", "Server deleted.")


def why_reload(process: Process, config: Config, *, check: bool) -> str:
    """Change the servers, and say why that was not enough, if it was not."""
    if process.mark != config.mark:
        return "settings other than the servers changed"
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
    return "" if process.servers == set(config.lines) else "it has not the servers it was told"


def main() -> None:
    """Run as Ansible does."""
    module = AnsibleModule(
        argument_spec={
            "config": {"type": "str", "required": True},
            "backends": {"type": "list", "elements": "str", "default": BACKENDS},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
            "wait": {"type": "int", "default": 5},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        config = parse_config(params["config"], params["backends"])
    except ValueError as error:
        module.fail_json(msg=str(error))
    process = Process(params["socket"], params["backends"], params["wait"])
    try:
        before = process.servers
        reload = why_reload(process, config, check=module.check_mode)
    except OSError as error:
        if not module.check_mode:
            module.fail_json(msg=f"HAProxy does not answer on {params['socket']}: {error}")
        # Before the first run there is none.
        before, reload = set(), "HAProxy does not run"
    after = set(config.lines)

    def text(servers: set[Server]) -> str:
        return "".join(f"{line}\n" for line in sorted(map(str, servers)))

    module.exit_json(
        changed=bool(reload) or before != after,
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

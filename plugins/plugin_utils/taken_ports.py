"""The ports of a machine's services that another program listens on."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

OWN = re.compile(r'users:\(\("(haproxy|redis-|prometheus|wsfleet|systemd)|cgroup:\S*/wsnode@')
"""Processes that the roles start: by name, and a node, whose name may be Python's, by unit."""
WILDCARDS = {"*", "0.0.0.0", "::"}  # noqa: S104 - compared, not bound
PASSED_ON = {"haproxy_acme_port"}
"""Ports that belong to a program of the operator's, to which HAProxy connects."""


def taken_ports(
    shown: str, ports: Mapping[int, str], addresses: Collection[str]
) -> list[dict[str, str]]:
    """Return the sockets of other programs that keep a service from listening.

    `shown` is the output of `ss --no-header --listening --tcp --numeric --processes --cgroup`.
    `ports` are those of the services, with the variable of each, and `addresses` are where these
    listen.
    """
    found = []
    for line in shown.splitlines():
        _, _, _, local, *_ = line.split()
        host, _, port = local.rpartition(":")
        address = host.strip("[]").partition("%")[0]
        process = re.search(r'users:\(\("(.*?)",pid=(\d+)', line)
        if process is None or OWN.search(line):
            continue
        variable = ports.get(int(port))
        if variable and variable not in PASSED_ON and address in {*WILDCARDS, *addresses}:
            program = f"{process[1]} (process {process[2]})"
            found.append({"socket": local, "program": program, "variable": variable})
    return found

#!/usr/bin/python
"""Tell a running HAProxy on which ports it checks the nodes."""

from __future__ import annotations

import csv
import socket

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: haproxy_check_ports
short_description: Ports of the health checks of a running HAProxy
description:
  - Sets the port that HAProxy checks a server on, in all backends that have the server. The
    configuration file says the same for the next start.
  - A HAProxy that does not run, and a server that it does not have, are no errors. A process that
    is started later has what the file says.
options:
  ports:
    description: The port of each server, by its name.
    type: dict
    required: true
  socket:
    description: The admin socket.
    type: path
    default: /run/haproxy/admin.sock
author: wsfleet
"""

EXAMPLES = r"""
- name: Check node1-8001 on its private port
  haproxy_check_ports:
    ports: { node1-8001: 9001 }
"""

RETURN = r"""
up:
  description: Servers that were up by checks on another port.
  type: list
  returned: always
"""

STOPPED = "0"
"""`srv_op_state` of a server that is down."""


class RefusedError(Exception):
    """HAProxy did not do what it was asked for."""


def ask(path: str, command: str) -> str:
    """Send one command to the admin socket; return the answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(path)
        connection.sendall(command.encode() + b"\n")
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode().strip()


def differing(state: str, ports: dict[str, int]) -> list[dict[str, str]]:
    """Return the rows of `show servers state` of servers that are checked on another port.

    A server without a port of its own for checks has 0 there, and is checked on its port.
    """
    rows = csv.DictReader(state.partition("# ")[2].splitlines(), delimiter=" ")
    return [
        row
        for row in rows
        if row["srv_name"] in ports
        and (int(row["srv_check_port"]) or int(row["srv_port"])) != ports[row["srv_name"]]
    ]


def set_port(path: str, row: dict[str, str], port: int) -> None:
    """Set the port that a server is checked on.

    Raises:
        RefusedError: HAProxy does not do it.
    """
    command = f"set server {row['be_name']}/{row['srv_name']} check-port {port}"
    if answer := ask(path, command):
        raise RefusedError(f"HAProxy says to '{command}': {answer}")


def main() -> None:
    """Run as Ansible does."""
    module = AnsibleModule(
        argument_spec={
            "ports": {"type": "dict", "required": True},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
        },
        supports_check_mode=True,
    )
    path = module.params["socket"]
    ports = {name: int(port) for name, port in module.params["ports"].items()}
    try:
        rows = differing(ask(path, "show servers state"), ports)
        if not module.check_mode:
            for row in rows:
                set_port(path, row, ports[row["srv_name"]])
    except OSError:
        rows = []  # it does not run
    except RefusedError as error:
        module.fail_json(msg=str(error))
    up = {row["srv_name"] for row in rows if row["srv_op_state"] != STOPPED}
    module.exit_json(changed=bool(rows), up=sorted(up))


if __name__ == "__main__":
    main()

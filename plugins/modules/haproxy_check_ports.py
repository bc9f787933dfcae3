#!/usr/bin/python
"""Set the ports of the health checks of a running HAProxy."""

from __future__ import annotations

import csv
import socket

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: haproxy_check_ports
short_description: Ports of the health checks of a running HAProxy
description:
  - Sets the port of a server's health checks in all backends that have the server. The
    configuration file has the same port for the next start.
  - A stopped HAProxy and an unknown server are no errors; a later process reads the file.
options:
  ports:
    description: The port of each server by its name.
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
  wsfleet.wsfleet.haproxy_check_ports:
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
    """HAProxy refused a command."""


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

    A check port of 0 is the server's own port.
    """
    rows = csv.DictReader(state.partition("# ")[2].splitlines(), delimiter=" ")
    return [
        row
        for row in rows
        if row["srv_name"] in ports
        and (int(row["srv_check_port"]) or int(row["srv_port"])) != ports[row["srv_name"]]
    ]


def set_port(path: str, row: dict[str, str], port: int) -> None:
    """Set the port of a server's health checks.

    Raises:
        RefusedError: HAProxy refuses it.
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

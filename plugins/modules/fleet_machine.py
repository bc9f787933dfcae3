#!/usr/bin/python
"""Read what the roles need to know of a machine, in one task."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: fleet_machine
short_description: Read what the roles need to know of a machine
description:
  - Reads in one task what facts and several commands would read in one task each. It changes
    nothing.
author: wsfleet
"""

EXAMPLES = r"""
- name: Read the state of the machine
  wsfleet.wsfleet.fleet_machine:
  register: fleet_machine
"""

RETURN = r"""
distribution:
  description: C(ID) of os-release(5).
  type: str
  returned: always
version:
  description: C(VERSION_ID) of os-release(5); empty if there is none.
  type: str
  returned: always
init:
  description: The name of process 1.
  type: str
  returned: always
hostname:
  description: The name that the machine has itself.
  type: str
  returned: always
python:
  description: Version and architecture of /usr/bin/python3; empty without it.
  type: str
  returned: always
addresses:
  description: The interfaces with their addresses, as C(ip -json address show) has them.
  type: list
  elements: dict
  returned: always
sockets:
  description: The output of C(ss --no-header --listening --tcp --numeric --processes --cgroup).
  type: str
  returned: always
packages:
  description:
    - A line for each Debian package, with its status, its name, and what it provides; empty without
      dpkg.
  type: str
  returned: always
ssh_ports:
  description: The ports of sshd; empty if there is none.
  type: list
  elements: int
  returned: always
firewall_mark:
  description: The chain that names the rules of the role firewall in the kernel, or an empty text.
  type: str
  returned: always
"""

# Debian's Python, which need not be the one that Ansible uses: the nodes run with it.
PYTHON = "/usr/bin/python3"
PYTHON_ASKED = "import platform as p; print(p.python_version(), p.machine())"
PACKAGES = r"--showformat=${db:Status-Status} ${Package} ${Provides}\n"


class Machine:
    """The machine where the module runs."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module

    def output(self, *command: str, optional: bool = False) -> str:
        """Return the output of a command; of an optional one that fails it is empty.

        The module fails with the error of a command that is not optional.
        """
        try:
            code, output, error = self._module.run_command([*command], handle_exceptions=False)
        except OSError as missing:
            code, output, error = 127, "", str(missing)
        if code and not optional:
            self._module.fail_json(msg=f"{' '.join(command)}: {error.strip() or output.strip()}")
        return "" if code else str(output)

    @property
    def release(self) -> dict[str, str]:
        """The values of os-release(5)."""
        file = Path("/etc/os-release")
        lines = file.read_text().splitlines() if file.exists() else []
        pairs = (line.partition("=")[::2] for line in lines)
        return {name: value.strip("\"'") for name, value in pairs}

    def read(self) -> dict[str, object]:
        """Return the values that RETURN describes."""
        listing = ("--no-header", "--listening", "--tcp", "--numeric", "--processes", "--cgroup")
        # Another ssh server may be in use, and nftables may not be installed yet.
        sshd = self.output("sshd", "-T", optional=True)
        rules = self.output("nft", "--terse", "list", "table", "inet", "wsfleet", optional=True)
        mark = re.search(r"\bmark_[0-9a-f]+\b", rules)
        release = self.release
        return {
            "distribution": release.get("ID", ""),
            "version": release.get("VERSION_ID", ""),
            "init": Path("/proc/1/comm").read_text().strip(),
            "hostname": os.uname().nodename,
            "python": self.output(PYTHON, "-Ic", PYTHON_ASKED, optional=True).strip(),
            "addresses": json.loads(self.output("ip", "-json", "address", "show")),
            "sockets": self.output("ss", *listing),
            "packages": self.output("dpkg-query", "--show", PACKAGES, optional=True),
            "ssh_ports": [int(port) for port in re.findall(r"(?m)^port (\d+)$", sshd)],
            "firewall_mark": mark[0] if mark else "",
        }


def main() -> None:
    """Run as Ansible does."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, **Machine(module).read())


if __name__ == "__main__":
    main()

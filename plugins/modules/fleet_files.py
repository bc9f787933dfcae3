#!/usr/bin/python
"""Write files, folders, links and the drop-in files of units in one task."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wsfleet.wsfleet.plugins.module_utils.written_files import (
    FILES_SPEC,
    write_files,
)

DOCUMENTATION = r"""
module: fleet_files
short_description: Write files, folders, links and drop-in files of units in one task
description:
  - Does in one task what M(ansible.builtin.file), M(ansible.builtin.copy) and
    M(ansible.builtin.template) do in one task for each file. The content is rendered on the control
    machine.
  - A file gets its owner, its mode and its content at once, by a rename within its folder.
  - The entries are done in order. An error leaves the entries after it untouched.
  - A unit file or drop-in file with more open files (C(LimitNOFILE)) than the machine allows is an
    error. systemd would silently start the service with fewer, and HAProxy then exits.
extends_documentation_fragment: wsfleet.wsfleet.files
author: wsfleet
"""

EXAMPLES = r"""
- name: Write the arguments of the exporter
  wsfleet.wsfleet.fleet_files:
    files:
      - path: /etc/default/exporter
        content: "{{ lookup('ansible.builtin.template', 'exporter.j2') }}"
        mode: "0644"
    drop_ins:
      exporter.service: "{{ lookup('ansible.builtin.template', 'service.conf.j2') }}"
"""

RETURN = r"""
changed_paths:
  description: The paths that were changed.
  type: list
  elements: str
  returned: always
"""


def main() -> None:
    """Run as Ansible does."""
    module = AnsibleModule(argument_spec=FILES_SPEC, supports_check_mode=True)
    module.exit_json(**write_files(module))


if __name__ == "__main__":
    main()

"""Work on the control machine, for an inventory that makes root of everybody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]


def test_the_control_machine_is_not_asked_for_root(tmp_path: Path) -> None:
    """`ansible_become: true` is about the hosts; there may be no sudo here, or one that asks."""
    hosts = {"one": {"ansible_host": "192.0.2.1"}}
    inventory = {
        "all": {
            # Of another user than root: these tests may be root's, who need not become it.
            "vars": {
                "ansible_become": True,
                "ansible_become_user": "nobody",
                "ansible_become_exe": "/bin/false",
            },
            "children": {
                group: {"hosts": hosts} for group in ("loadbalancers", "wsnodes", "redis")
            },
        }
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "playbooks/certificates.yml",
            f"-i{tmp_path}/hosts.yml",
        ],
        cwd=ROOT,
        env=os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "tls" / "one.pem").exists()

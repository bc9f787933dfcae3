"""Hardened machines: all of it works, and what another umask made before is mended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.waiting import until

if TYPE_CHECKING:
    from molecule.conftest import Cluster

HOSTS = ("trixie", "bookworm")
ROOT = Path(__file__).parents[3]


def on(cluster: Cluster, host: str, command: str) -> str:
    """Run a command on a machine as root; Ansible, unlike testinfra, knows sudo's password."""
    ansible = str(Path(sys.executable).with_name("ansible"))
    done = subprocess.run(
        [ansible, host, f"-i{cluster.inventory}", "-b", "--one-line", "-mshell", f"-a{command}"],
        env=os.environ
        | {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_LOAD_CALLBACK_PLUGINS": "0",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.partition("(stdout)")[2].strip()


@pytest.mark.parametrize("host", HOSTS)
def test_the_machine_is_hardened(cluster: Cluster, host: str) -> None:
    """Otherwise the other tests say nothing."""
    assert on(cluster, host, "umask") == "0027"
    assert "noexec" in on(cluster, host, "findmnt -no OPTIONS /tmp || grep ' /tmp ' /proc/mounts")
    assert "hidepid" in on(cluster, host, "grep ^proc.*/proc.proc /proc/mounts")


def test_all_is_well(cluster: Cluster) -> None:
    """Clients are served, their cookies lead them back, and no unit has failed."""
    cluster.well()
    cluster.output("check", "stickiness", cluster.url, "--seconds", "2")
    for host in HOSTS:
        assert on(cluster, host, "systemctl list-units --failed --no-legend --plain") == ""


def test_prometheus_reaches_all(cluster: Cluster) -> None:
    """The exporters read what they tell of."""
    expected = {"wsfleet": 2, "node": 2, "haproxy": 1, "redis": 1}
    until(lambda: cluster.targets_up("trixie") == expected, "all targets are up", 60)
    assert len(cluster.query("trixie", "wsfleet_certificate_expiry_seconds")) == 3


def test_what_another_umask_made_is_mended(cluster: Cluster) -> None:
    """Services cannot read their files: the next run repairs the modes, and they run again."""
    on(
        cluster,
        "all",
        "chmod -R go= /opt/wsfleet $(ls -d /usr/local/sbin/* /etc/wsfleet /etc/prometheus/*.yml "
        "/etc/haproxy/tls /etc/redis/tls /etc/systemd/system/*.d 2> /dev/null)"
        " && systemctl kill --signal KILL wsnode@8001",
    )
    cluster.play("site.yml")
    cluster.well()
    test_all_is_well(cluster)
    assert cluster.changed(cluster.play("site.yml")) == []


def test_a_backup_is_made_and_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """By a user whose sudo asks, also on a run that fails."""
    backup = tmp_path / "dump.rdb"
    cluster.play("playbooks/backup.yml", "-e", f"redis_backup={backup}")
    assert backup.read_bytes().startswith(b"REDIS")
    assert backup.stat().st_mode & 0o777 == 0o600
    state = json.dumps({"redis_backup": str(tmp_path / "file" / "dump.rdb")})
    (tmp_path / "file").touch()  # no folder can be made there
    assert cluster.playbook("playbooks/backup.yml", "-e", state).returncode != 0
    assert on(cluster, "bookworm", "ls -d /var/backups/wsfleet 2> /dev/null || true") == ""

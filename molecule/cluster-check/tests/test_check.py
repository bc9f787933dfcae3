"""`site.yml --check --diff`: it runs through, says what would be done, and changes nothing."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from molecule.conftest import Cluster

Check = Callable[[Path, tuple[str, ...]], dict[str, set[str]]]

FRESH = Path(__file__).parents[1] / "fresh" / "inventory"
ROOT = Path(__file__).parents[3]
#: All that the roles can do.
SETTINGS: dict[str, Any] = {
    "autoscale_enabled": True,
    "fleet_tls": True,
    "keepalived_virtual_address": "{{ vm_subnet }}.10",
    "monitoring_receiver": {"webhook_configs": [{"url": "http://192.0.2.1/secret-of-the-hook"}]},
    "redis_password": "secret-of-the-redis-servers",
    "wsnode_app": "main:app",
    "wsnode_app_environment": {"SECRET": "secret-of-the-application"},
    "wsnode_app_processes": 1,
    "wsnode_app_redis": True,
    "wsnode_app_source": str(ROOT / "examples" / "tutorial"),
    "wsnode_config": {"http_api": {"key": "secret-of-the-api"}},
}
#: What is in files that have secrets, and nowhere else.
SECRETS = ("secret-of-", "masterauth ", "auth-pass ", "REDIS_PASSWORD=", "PRIVATE KEY")


@pytest.fixture
def check(cluster: Cluster, tmp_path: Path) -> Check:
    """Check what would be done: which hosts each task would change, in all that the roles can do.

    The check itself has changed nothing, and has told no secret.
    """

    def run(inventory: Path, hosts: tuple[str, ...]) -> dict[str, set[str]]:
        way = cluster.inventory / "group_vars" / "all" / "vms.yml"
        public = tmp_path / "public.pem"
        files = {"fleet_tls_directory": str(tmp_path), "haproxy_tls_certificates": [str(public)]}
        settings = json.dumps(SETTINGS | files)
        machines = type(cluster)(inventory)
        machines.play("playbooks/certificates.yml", f"-e@{way}", "-e", settings)
        parts = [tmp_path / f"{hosts[0]}.{part}" for part in ("pem", "key")]
        public.write_text("".join(part.read_text() for part in parts))
        for host in hosts:
            cluster.on(host, "touch /run/before")
        output = machines.play("site.yml", "--check", "--diff", f"-e@{way}", "-e", settings)
        for host in hosts:
            assert cluster.on(host, "find /etc /opt /usr /root -newer /run/before") == ""
        assert [secret for secret in SECRETS if secret in output] == []
        assert not re.search(r"(failed|ignored|rescued)=[^0]", output)
        changed: dict[str, set[str]] = defaultdict(set)
        for task in output.split("\nTASK [")[1:]:
            name = task.partition("]")[0].removeprefix("wsfleet.wsfleet.")
            changed[name] |= set(re.findall(r"^changed: \[([\w.-]+)", task, re.MULTILINE))
        return changed

    return run


def test_fresh_machines(cluster: Cluster, check: Check) -> None:
    """They have no package, user or folder of the roles; one cannot even ask apt."""
    cluster.on("fresh3", "dpkg --remove python3-apt && rm -r /var/lib/apt/lists")
    changed = check(FRESH, ("fresh1", "fresh2", "fresh3"))
    assert changed["fleet : List the packages to install"] == {"fresh3"}
    assert changed["fleet : Install packages"] == {"fresh1", "fresh2"}
    assert changed["redis : Write wsfleet.conf and the password of the admin user"] == {
        "fresh1",
        "fresh2",
        "fresh3",
    }
    assert changed["sentinel : Write wsfleet-sentinel.conf"] == {"fresh1", "fresh2", "fresh3"}
    assert changed["wsnode : Write wsnode@.service"] == {"fresh2", "fresh3"}
    assert changed["wsnode : Start or restart wsnode-redis"] == {"fresh2", "fresh3"}
    assert changed["wsnode : Open the socket"] == {"fresh2", "fresh3"}
    assert changed["haproxy : Write the configuration"] == {"fresh1", "fresh2"}
    settings = "Write keepalived.conf and the settings of the service"
    assert changed[f"keepalived : {settings}, and start, restart or reload keepalived"] == {
        "fresh1",
        "fresh2",
    }
    assert changed["monitoring : Write prometheus.yml and wsfleet-rules.yml"] == {"fresh1"}
    command = "Write the environment and the unit of the service, and start or restart it"
    assert changed[f"wsnode : {command}"] == {"fresh1", "fresh2"}


def test_installed_machines_and_new_certificates(cluster: Cluster, check: Check) -> None:
    """It says which certificates would be written, and which services would run with them."""
    changed = check(cluster.inventory, ("trixie", "bookworm"))
    assert changed["haproxy : Copy the certificates with their keys"] == {"trixie"}
    assert changed["haproxy : Write the configuration"] == {"trixie"}
    assert changed["fleet : Install host.pem and host.key"] == {"trixie", "bookworm"}
    assert changed["redis : Restart redis-server"] == {"trixie"}

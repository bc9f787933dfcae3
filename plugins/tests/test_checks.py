"""The checks before a machine is touched: groups, addresses, limits, requirements of roles."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.wsfleet.wsfleet.plugins.plugin_utils.addresses import (
    all_addresses,
    interface_of,
    interface_towards,
    missing_addresses,
    netloc,
)
from ansible_collections.wsfleet.wsfleet.plugins.plugin_utils.cluster_members import fleet_members
from ansible_collections.wsfleet.wsfleet.plugins.plugin_utils.inventory_mistakes import (
    fleet_mistakes,
)
from ansible_collections.wsfleet.wsfleet.plugins.plugin_utils.refusal import refusal
from ansible_collections.wsfleet.wsfleet.plugins.plugin_utils.taken_ports import taken_ports

ROOT = Path(__file__).resolve().parents[2]

GROUPS = {"loadbalancers": ["lb1"], "wsnodes": ["node1"], "redis": ["redis1"]}
HOSTS: dict[str, dict[str, Any]] = {
    "lb1": {"ansible_host": "10.0.0.11"},
    "node1": {"ansible_host": "10.0.0.21"},
    "redis1": {"ansible_host": "10.0.0.31", "redis_allow_no_password": True},
}
SHOWN: list[dict[str, Any]] = [
    {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}]},
    {
        "ifname": "eth0",
        "addr_info": [
            {"local": "10.0.0.11", "prefixlen": 24},
            {"local": "fd00::11", "prefixlen": 64},
            {"local": "fe80::1", "prefixlen": 64},
        ],
    },
    {
        "ifname": "eth1",
        "addr_info": [
            {"local": "203.0.113.11", "prefixlen": 24},
            {"local": "203.0.113.10", "prefixlen": 32},
        ],
    },
    {"ifname": "wg0"},
]


def run_ansible(folder: Path, inventory: dict[str, Any], *playbook: str | dict[str, Any]) -> str:
    """Run a playbook of the project, or a play; the output is one line."""
    hosts = folder / "hosts.yml"
    hosts.write_text(yaml.safe_dump(inventory))
    arguments = []
    for each in playbook:
        if isinstance(each, dict):
            (folder / "play.yml").write_text(yaml.safe_dump([each]))
            arguments.append(str(folder / "play.yml"))
        else:
            arguments.append(each)
    environment = os.environ | {
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    }
    result = subprocess.run(
        ["ansible-playbook", "-i", str(hosts), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode != 0, result.stdout
    return " ".join((result.stdout + result.stderr).split())


OTHER_GROUPS = {
    "balancers": {"hosts": {"lb1": {"ansible_host": "10.0.0.11"}}},
    "nodes": {"hosts": {"node1": {"ansible_host": "10.0.0.21"}}},
}


@pytest.mark.parametrize(
    ("inventory", "expected"),
    [
        (
            OTHER_GROUPS,
            "'redis' has no host (the shared state): add one to the inventory. The inventory has ",
        ),
        (OTHER_GROUPS, "the groups 'balancers' and 'nodes'."),
        ({}, "The group 'loadbalancers' has no host"),
    ],
)
@pytest.mark.parametrize("playbook", ["site", "playbooks/rolling_update", "playbooks/monitoring"])
def test_other_groups_are_an_error(
    tmp_path: Path, inventory: Any, expected: str, playbook: str
) -> None:
    """An inventory without our groups does not end well by doing nothing."""
    output = run_ansible(tmp_path, inventory, f"{playbook}.yml")
    assert expected in output
    assert "UNREACHABLE" not in output


PLAYBOOKS = ["backup", "certificates", "redis_restart", "restore", "rollback"]


@pytest.mark.parametrize("playbook", [*PLAYBOOKS, "scale_in"])
def test_every_playbook_wants_its_group(tmp_path: Path, playbook: str) -> None:
    """A playbook about a group that is not there fails as well."""
    output = run_ansible(tmp_path, OTHER_GROUPS, f"playbooks/{playbook}.yml")
    assert "Could not match supplied host pattern" in output


@pytest.mark.parametrize(
    ("roles", "group", "expected"),
    [
        (["keepalived"], "loadbalancers", "needs the role 'wsfleet.wsfleet.haproxy' before it"),
        (["sentinel"], "redis", "needs the role 'wsfleet.wsfleet.redis' before it"),
        (["keepalived"], "others", "keepalived' is for hosts of the group 'loadbalancers'"),
        (["haproxy"], "others", "haproxy' is for hosts of the group 'loadbalancers'"),
        (["redis"], "others", "redis' is for hosts of the group 'redis', and one is not"),
        (["wsnode"], "others", "wsnode' is for hosts of the group 'wsnodes'"),
        (["wsnode"], "wsnodes", "wsnode' needs a host in the group 'redis', and there is none"),
        (["autoscale"], "loadbalancers", "autoscale' needs a host in the group 'wsnodes'"),
        (["monitoring"], "monitoring", "monitoring' needs a host in the group 'redis'"),
        (["journal"], "others", "journal' needs a host in the group 'monitoring'"),
        (["base"], "others", "UNREACHABLE"),
        (["firewall"], "others", "UNREACHABLE"),
        (["node_exporter"], "others", "UNREACHABLE"),
    ],
)
def test_a_role_alone_reports_its_requirements(
    tmp_path: Path, roles: list[str], group: str, expected: str
) -> None:
    """A role that needs another one, or groups, says so first; the others begin their work."""
    host = {"ansible_host": "192.0.2.1", "ansible_ssh_common_args": "-o ConnectTimeout=1"}
    inventory = {group: {"hosts": {"one": host}}}
    play = {
        "hosts": "all",
        "gather_facts": False,
        "roles": [f"wsfleet.wsfleet.{role}" for role in roles],
    }
    output = run_ansible(tmp_path, inventory, play)
    assert expected in output
    assert ("UNREACHABLE" in output) == (expected == "UNREACHABLE")
    assert "undefined" not in output


def test_a_role_alone_checks_the_variables_that_roles_share(tmp_path: Path) -> None:
    """Before its first task on the host, with the name of the variable."""
    host = {"ansible_host": "192.0.2.1", "fleet_tls": "ja"}
    play = {"hosts": "all", "gather_facts": False, "roles": ["wsfleet.wsfleet.haproxy"]}
    output = run_ansible(tmp_path, {"loadbalancers": {"hosts": {"one": host}}}, play)
    assert "fleet_tls must be true or false, and is 'ja'" in output
    assert "UNREACHABLE" not in output


def test_interfaces_are_found_by_address() -> None:
    """That which has an address, and that whose network an address belongs to."""
    assert interface_of(SHOWN, "10.0.0.11") == interface_of(SHOWN, "fd00:0::11") == "eth0"
    assert interface_of(SHOWN, "10.0.0.12") == interface_of(SHOWN, "lb1.test") == ""
    assert interface_towards(SHOWN, "203.0.113.10") == "eth1"
    assert interface_towards(SHOWN, "fd00::10") == "eth0"
    assert interface_towards(SHOWN, "198.51.100.1") == ""
    assert all_addresses(SHOWN) == ["10.0.0.11", "fd00::11", "203.0.113.11", "203.0.113.10"]


def test_addresses_that_no_interface_has_are_found() -> None:
    """Wildcards, loopback and names are left to the services."""
    fine = ["10.0.0.11", "fd00::11", "::", "127.0.0.1", "::1", "lb1.test", "*"]
    assert missing_addresses(SHOWN, fine) == []
    assert missing_addresses(SHOWN, [*fine, "10.0.0.99", "fd00::9"]) == ["10.0.0.99", "fd00::9"]


def test_a_port_follows_an_address() -> None:
    """IPv6 is in brackets (RFC 3986, 3.2.2)."""
    assert netloc("10.0.0.1", 80) == "10.0.0.1:80"
    assert netloc("fd00::1", 80) == "[fd00::1]:80"
    assert netloc("", "80") == ":80"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"fleet_address": "203.0.113.99"}, "lb1 has 203.0.113.99, on which its services would li"),
        ({"haproxy_stats_bind": ["203.0.113.98"]}, "203.0.113.98, on which its services would lis"),
        ({"haproxy_bind": ["203.0.113.97"]}, "(see haproxy_bind)"),
        ({"keepalived_interface": "eth9"}, "lb1 has no interface eth9, see keepalived_interface"),
    ],
)
def test_an_address_that_the_machine_has_not_is_an_error(
    tmp_path: Path, variables: dict[str, Any], expected: str
) -> None:
    """It is found with the machine's check, before anything is changed."""
    sound = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "fleet_address": "127.0.0.1",
    }
    inventory = {"loadbalancers": {"hosts": {"lb1": sound | variables}}}
    tasks = [
        {"ansible.builtin.import_role": {"name": "wsfleet.wsfleet.fleet", "tasks_from": "network"}}
    ]
    play = {"hosts": "all", "gather_facts": False, "tasks": tasks}
    assert expected in run_ansible(tmp_path, inventory, play)


@pytest.mark.parametrize(
    ("local", "name", "taken"),
    [
        ("*:80", "apache2", True),
        ("0.0.0.0:80", "apache2", True),
        ("[::]:80", "apache2", True),
        ("10.0.0.11:80", "apache2", True),
        ("[fd00::11]:80", "apache2", True),
        ("127.0.0.9:80", "apache2", False),
        ("10.0.0.11%eth0:80", "apache2", True),
        ("*:8080", "apache2", False),
        ("*:8888", "certbot", False),
        ("*:80", "haproxy", False),
        ("10.0.0.11:80", "prometheus-redi", False),
        ("*:80", "", False),
        ("*:80", "python3", True),
    ],
)
def test_ports_of_other_programs_are_found(local: str, name: str, taken: bool) -> None:
    """Where a service would listen; not its own, nor those of a program that it connects to."""
    process = f'users:(("{name}",pid=7,fd=3),("{name}",pid=8,fd=3))' if name else ""
    shown = f"LISTEN 0      4096   {local}    0.0.0.0:*    {process}\n"
    ports = {80: "haproxy_port", 8888: "haproxy_acme_port"}
    expected = {"socket": local, "program": f"{name} (process 7)", "variable": "haproxy_port"}
    found = taken_ports(shown, ports, ["10.0.0.11", "fd00::11"])
    assert found == ([expected] if taken else [])
    node = shown.replace("\n", " cgroup:/system.slice/system-wsnode.slice/wsnode@8001.service\n")
    assert taken_ports(node, ports, ["10.0.0.11", "fd00::11"]) == []


def test_a_port_of_another_program_is_an_error(tmp_path: Path) -> None:
    """It is found with the machine's check, before a restart ends the process that serves."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        host = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "fleet_address": "127.0.0.1",
            "redis_port": port,
            "redis_allow_no_password": True,
        }
        tasks = [
            {
                "ansible.builtin.import_role": {
                    "name": "wsfleet.wsfleet.fleet",
                    "tasks_from": "network",
                }
            }
        ]
        play = {"hosts": "all", "gather_facts": False, "tasks": tasks}
        output = run_ansible(tmp_path, {"redis": {"hosts": {"redis1": host}}}, play)
    assert f"(process {os.getpid()}) listens on 127.0.0.1:{port} of redis1" in output
    assert "stop that program, or change redis_port" in output


@pytest.mark.parametrize(
    ("host", "variables", "expected"),
    [
        ("lb1", {"haproxy_maxconn": 600_000}, "is 600000, and must be between 1 and 521788"),
        ("lb1", {"haproxy_maxconn": "0"}, "haproxy_maxconn of the host 'lb1' is 0, and must be"),
        ("node1", {"wsnode_max_connections": 60_000}, "no more ports for its connections to one"),
        ("redis1", {"redis_maxclients": 2_000_000}, "1048576 open files (fs.nr_open)"),
        (
            "lb1",
            {"autoscale_enabled": True, "autoscale_connections_high": 10_000},
            "but a node accepts 10000 connections (wsnode_max_connections)",
        ),
        (
            "lb1",
            {"ansible_host": "FD00::11"},
            "write it in the canonical form, fd00::11 (RFC 5952)",
        ),
        ("lb1", {"ansible_host": "fe80::11"}, "is link-local, fe80::11"),
        ("lb1", {"fleet_address": "0.0.0.0"}, "is 0.0.0.0, where no other host reaches it"),  # noqa: S104 - refused
        ("lb1", {"fleet_address": "127.0.0.1"}, "is 127.0.0.1, where no other host reaches it"),
        ("lb1", {"fleet_address": "ff02::1"}, "is ff02::1, where no other host reaches it"),
        ("lb1", {"haproxy_bind": ["10.0.0.11", ""]}, "which would be all addresses: remove it"),
        ("lb1", {"haproxy_stats_bind": "10.0.0.11,"}, "remove the comma too many"),
        ("node1", {"firewall_operators": "10.0.0.300"}, "has '10.0.0.300', which is neither an"),
        ("node1", {"firewall_operators": "office.test"}, "neither an address nor a network"),
        ("lb1", {"haproxy_cookie": ""}, "haproxy_cookie of the host 'lb1' is '': use letters"),
        ("lb1", {"haproxy_cookie": "WS NODE"}, "use letters, digits, '_' and '-'"),
        ("lb1", {"haproxy_cookie": "a.b"}, "use letters, digits, '_' and '-'"),
        ("lb1", {"fleet_base_url": "ws.test"}, "write it with its scheme, like https://ws.exa"),
        ("lb1", {"keepalived_virtual_address": "fd00:0::1"}, "the canonical form, fd00::1 ("),
        (
            "lb1",
            {"keepalived_virtual_address": "fd00::1"},
            "address of 'lb1' has the other IP version",
        ),
    ],
)
def test_limits_and_spellings_are_checked(
    host: str, variables: dict[str, Any], expected: str
) -> None:
    """Limits above the kernel's, and addresses in an unusual form, are errors."""
    (mistake,) = fleet_mistakes(GROUPS, HOSTS | {host: HOSTS[host] | variables})
    assert expected in mistake


def test_a_machine_knows_whom_it_connects_to() -> None:
    """The answers come from there, and are let in without the kernel's table."""
    groups = GROUPS | {"monitoring": ["mon1"]}
    members = fleet_members(groups, HOSTS | {"mon1": {"ansible_host": "fd00::41"}})
    assert {"address": "10.0.0.21", "ports": [8001, 9001]} in members["talks"]["lb1"]
    assert {"address": "fd00::41", "ports": [19532]} in members["talks"]["lb1"]
    assert {"address": "10.0.0.31", "ports": [6379]} in members["talks"]["node1"]
    assert members["talks"]["redis1"] == [{"address": "fd00::41", "ports": [19532]}]
    assert [*members["ports"]["mon1"]] == [9090, 9093, 9100, 9121, 19532]
    assert members["ports"]["redis1"][6379] == "redis_port"


@pytest.mark.parametrize(
    ("variables", "roles"),
    [
        ({}, {"lb1": ["firewall", "haproxy"], "redis1": ["firewall", "redis"]}),
        ({"firewall_enabled": "no"}, {"node1": ["wsnode"], "lb1": ["haproxy"]}),
        (
            {"keepalived_virtual_address": "10.0.0.10"},
            {"lb1": ["firewall", "haproxy", "keepalived"]},
        ),
        ({"rebalance_enabled": True}, {"lb1": ["firewall", "wsnode", "haproxy"]}),
        ({"wsnode_app_redis": True}, {"node1": ["firewall", "wsnode", "haproxy"]}),
    ],
)
def test_the_roles_of_a_host_have_their_packages(
    variables: dict[str, Any], roles: dict[str, list[str]]
) -> None:
    """The role base installs the packages of all of them at once."""
    base = {"firewall_enabled": True, "rebalance_enabled": False}
    hosts = {name: given | base | variables for name, given in HOSTS.items()}
    found = fleet_members(GROUPS, hosts)["roles"]
    assert {name: found[name] for name in roles} == roles
    named = yaml.safe_load((ROOT / "roles/fleet/vars/main/packages.yml").read_text())
    assert {role for each in found.values() for role in each} <= named["fleet_role_packages"].keys()


def test_only_missing_packages_are_installed(tmp_path: Path) -> None:
    """Also one whose configuration alone is left, and a version, which apt must compare."""
    listed = "installed haproxy \ninstalled chrony time-daemon\nconfig-files curl \n"
    play = {
        "hosts": "all",
        "gather_facts": False,
        "vars": {
            "fleet_packages": ["haproxy", "time-daemon", "curl", "chrony=4.3"],
            "fleet_machine": {"packages": listed},
        },
        "tasks": [
            {"ansible.builtin.import_role": {"name": "wsfleet.wsfleet.fleet"}},
            {"ansible.builtin.fail": {"msg": "missing: {{ _fleet_missing_packages | join(' ') }}"}},
        ],
    }
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    output = run_ansible(tmp_path, {"all": {"hosts": {"one": here}}}, play)
    assert "missing: time-daemon curl chrony=4.3" in output


def test_monitoring_adds_roles_to_every_host() -> None:
    """A second Redis adds the Sentinels."""
    groups = GROUPS | {"redis": ["redis1", "redis2"], "monitoring": ["redis2"]}
    hosts = HOSTS | {"redis2": {"ansible_host": "10.0.0.32"}}
    roles = fleet_members(groups, hosts)["roles"]
    assert {"node_exporter", "journal"} <= set(roles["node1"]) & set(roles["redis1"])
    assert {"redis", "sentinel", "monitoring"} <= set(roles["redis2"])
    assert "monitoring" not in roles["redis1"]


def test_a_refusal_has_no_secrets() -> None:
    """The validator's words are all there, but for what went into the file."""
    result = {
        "msg": "failed to validate",
        "stderr": "client.token.hmac_secret_key: 'a-secret-key' is short; http_api.keyy is unknown",
        "stdout": "",
    }
    secrets = {"client": {"token": {"hmac_secret_key": "a-secret-key"}}, "keys": ["x", "a-secret"]}
    assert refusal(result, secrets) == (
        "failed to validate\nclient.token.hmac_secret_key: '***' is short; http_api.keyy is unknown"
    )


def test_a_task_without_a_log_reports_its_error(tmp_path: Path) -> None:
    """As the roles do it: what is registered has the message that no_log hides."""
    folder = tmp_path / "file"
    play = {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {
                "ansible.builtin.copy": {
                    "content": "key: a-secret-key",
                    "dest": str(folder),
                    "validate": "grep --no-such-option-of-a-secret-key %s",
                },
                "no_log": True,
                "register": "written",
                "ignore_errors": True,
            },
            {
                "ansible.builtin.import_role": {"name": "wsfleet.wsfleet.fleet"},
            },
            {
                "ansible.builtin.assert": {
                    "that": "written is not failed",
                    "fail_msg": "{{ written | wsfleet.wsfleet.refusal(['a-secret-key']) }}",
                }
            },
        ],
    }
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    output = run_ansible(tmp_path, {"all": {"hosts": {"one": here}}}, play)
    assert "no-such-option-of-***" in output
    assert "a-secret-key" not in output

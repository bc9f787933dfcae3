"""The inventory's check: a mistake stops site.yml before a host is touched, and is explained."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import certifi
import pytest
import yaml
from ansible_collections.wsfleet.wsfleet.plugins.plugin_utils.cluster_members import (
    fleet_hostnames,
    fleet_members,
)
from ansible_collections.wsfleet.wsfleet.plugins.plugin_utils.inventory_mistakes import (
    fleet_mistakes,
)
from ansible_collections.wsfleet.wsfleet.plugins.plugin_utils.redis_access import redis_passwords
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles" / "fleet"

GROUPS = {"loadbalancers": ["lb1"], "wsnodes": ["node1", "node2"], "redis": ["redis1"]}
HOSTS: dict[str, dict[str, Any]] = {
    "lb1": {"ansible_host": "10.0.0.11"},
    "node1": {"ansible_host": "10.0.0.21"},
    "node2": {"ansible_host": "10.0.0.22"},
    **{
        f"redis{n}": {"ansible_host": f"10.0.0.3{n}", "redis_allow_no_password": True}
        for n in (1, 2, 3)
    },
}
PASSWORD = "a password with / and @"  # noqa: S105
REDIS = ["redis1", "redis2", "redis3"]
ONE_HOST = {group: ["all1"] for group in GROUPS}
TWO_BALANCERS = GROUPS | {"loadbalancers": ["lb1", "lb2"]}
LB2 = {"lb2": {"ansible_host": "10.0.0.12"}}
WITH_ADDRESS = {
    "lb1": {"keepalived_virtual_address": "10.0.0.10"},
    "lb2": LB2["lb2"] | {"keepalived_virtual_address": "10.0.0.10"},
}


def hosts(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sound inventory's host variables, with changes by host."""
    variables = copy.deepcopy(HOSTS)
    for host, change in changes.items():
        variables.setdefault(host, {}).update(change)
    return variables


def test_a_sound_inventory_has_no_mistake() -> None:
    """Neither several machines nor one that does everything is a mistake."""
    assert fleet_mistakes(GROUPS, HOSTS) == []
    assert fleet_mistakes(GROUPS | {"redis": REDIS}, HOSTS) == []
    assert fleet_mistakes(TWO_BALANCERS, hosts(**WITH_ADDRESS)) == []
    dns = hosts(lb1={"fleet_base_url": "http://ws.test"}, **LB2)
    assert fleet_mistakes(TWO_BALANCERS, dns) == []
    assert (
        fleet_mistakes(ONE_HOST, {"all1": {"redis_password": PASSWORD, "ansible_host": "::1"}})
        == []
    )


@pytest.mark.parametrize(
    ("groups", "changes", "expected"),
    [
        ({"redis": []}, {}, "The group 'redis' has no host"),
        ({"wsnodes": []}, {}, "The group 'wsnodes' has no host"),
        ({"loadbalancers": []}, {}, "The group 'loadbalancers' has no host"),
        (
            {"redis": ["redis1", "node1"]},
            {"node1": {"redis_allow_no_password": True}},
            "has 2 hosts: the failure of 1 leaves no majority, and stops Redis. Use 1 or 3 hosts.",
        ),
        (
            {"redis": REDIS},
            {"redis2": {"redis_password": PASSWORD}},
            "redis_password differs between",
        ),
        (
            {"redis": REDIS},
            {"redis3": {"sentinel_port": 6379}},
            "Port 6379 of the host 'redis3' is wanted twice, by 'redis_port' and 'sentinel_port'",
        ),
        (
            {},
            {"redis1": {"redis_password": "change-me"}},
            "redis_password of the host 'redis1' is too short",
        ),
        (
            {},
            {"node2": {"ansible_host": "10.0.0.21"}},
            "'node1' and 'node2' have the same address, 10.0.0.21",
        ),
        (
            {},
            {"node2": {"fleet_address": "10.0.0.21"}},
            "'node1' and 'node2' have the same address, 10.0.0.21",
        ),
        (
            {},
            {"node2": {"wsnode_host_name": "node1"}},
            "the same cookie, node1-8001: give each its own wsnode_host_name",
        ),
        ({}, {"node2": {"wsnode_host_name": "a b"}}, "is not valid in a cookie"),
        (
            {},
            {"node2": {"wsnode_name": "n2"}},
            "wsnode_name of the host 'node2' does not exist any more",
        ),
        ({}, {"lb1": {"haproxy_private_paths": []}}, "are on a private port, wsnode_internal_port"),
        ({}, {"node2": {"fleet_address": "n2.test"}}, "set fleet_address, or firewall_enabled"),
        (
            {},
            {"node2": {"wsnode_processes": 0}},
            "wsnode_processes of the host 'node2' must be 1 or more",
        ),
        (
            {},
            {"node2": {"wsnode_port": 70000, "wsnode_internal_port": 9001}},
            "wsnode_port of the host 'node2' is no port: 70000",
        ),
        (
            {},
            {"node2": {"wsnode_port": "eight"}},
            "wsnode_port of the host 'node2' must be a whole number, and is 'eight'.",
        ),
        (
            {},
            {"lb1": {"haproxy_stats_port": 80}},
            "Port 80 of the host 'lb1' is wanted twice",
        ),
        (
            {},
            {"lb1": {"haproxy_stats_port": 443, "haproxy_tls_certificates": ["ws.pem"]}},
            "Port 443 of the host 'lb1' is wanted twice",
        ),
        (
            {"redis": ["node1"]},
            {
                "node1": {
                    "redis_port": 8002,
                    "wsnode_processes": 2,
                    "redis_password": PASSWORD,
                }
            },
            "Port 8002 of the host 'node1' is wanted twice, by 'wsnode_port' and 'redis_port'",
        ),
        (
            {},
            {"node1": {"wsnode_internal_port": 8002, "wsnode_processes": 2}},
            "Port 8002 of the host 'node1' is wanted twice, by 'wsnode_port' and 'wsnode_internal",
        ),
        (
            {},
            {"node1": {"wsnode_internal_port": 0}},
            "wsnode_internal_port of the host 'node1' is no port: 0",
        ),
        (
            {"monitoring": ["lb1"]},
            {"lb1": {"haproxy_stats_port": 9100}},
            "Port 9100 of the host 'lb1' is wanted twice, by 'haproxy_stats_port' and 'node_exp",
        ),
        (
            {"monitoring": ["redis1"]},
            {"redis1": {"redis_port": 9090}},
            "Port 9090 of the host 'redis1' is wanted twice",
        ),
        (
            TWO_BALANCERS,
            LB2,
            "'lb1' and 'lb2' have no common address: set keepalived_virtual",
        ),
        (TWO_BALANCERS, WITH_ADDRESS | LB2, "differs between the balancers"),
        (
            {},
            {"lb1": {"keepalived_virtual_address": "10.0.0"}},
            "is not an IP address: '10.0.0'",
        ),
        (
            {},
            {"lb1": {"keepalived_virtual_address": "10.0.0.31"}},
            "is the address of the host 'redis1'",
        ),
        (
            {},
            {"redis1": {"redis_allow_no_password": False}},
            "redis_password is empty for the host 'redis1'",
        ),
        (
            {},
            {"lb1": {"haproxy_cookie_samesite": "none"}},
            "browsers accept such a cookie only with Secure: set haproxy_cookie_secure: true",
        ),
        (
            {},
            {
                "lb1": {
                    "haproxy_cookie_samesite": None,
                    "haproxy_cookie_secure": False,
                    "haproxy_tls_acme_certificates": ["/ws.pem"],
                }
            },
            "browsers accept such a cookie only with Secure",
        ),
        (
            TWO_BALANCERS,
            {
                "lb1": WITH_ADDRESS["lb1"] | {"haproxy_cookie_samesite": "strict"},
                "lb2": WITH_ADDRESS["lb2"],
            },
            "haproxy_cookie_samesite differs between the balancers",
        ),
        (
            TWO_BALANCERS,
            {
                "lb1": WITH_ADDRESS["lb1"] | {"haproxy_cookie": "NODE"},
                "lb2": WITH_ADDRESS["lb2"],
            },
            "haproxy_cookie differs between the balancers",
        ),
        (
            {},
            {"lb1": {"haproxy_accept_proxy": "10.0.0.0/8,proxy.test"}},
            "has 'proxy.test', which is neither an address nor a network",
        ),
        (
            {},
            {"lb1": {"haproxy_accept_proxy": ["::1"]}},
            "let the proxy on this machine connect to 10.0.0.11",
        ),
        *(
            (
                {},
                {"lb1": {"haproxy_stickiness": value}},
                f"haproxy_stickiness of the host 'lb1' is '{value}': make it cookie, source, path",
            )
            for value in ("", "cookies", "path 0", "path x", "header", "header X Y", "query a&b")
        ),
        (
            TWO_BALANCERS,
            {
                "lb1": WITH_ADDRESS["lb1"] | {"haproxy_stickiness": "path"},
                "lb2": WITH_ADDRESS["lb2"],
            },
            "haproxy_stickiness differs between the balancers",
        ),
        (
            {},
            {"lb1": {"haproxy_static_paths": "/static/,assets"}},
            "haproxy_static_paths of the host 'lb1' has 'assets', which does not begin a path",
        ),
        (
            {},
            {"lb1": {"haproxy_acme_port": 8404}},
            "wanted twice, by 'haproxy_stats_port' and 'haproxy_acme_port'",
        ),
        (
            {},
            {"lb1": {"haproxy_tls_certificates": [__file__, "/nowhere/ws.pem"]}},
            "haproxy_tls_certificates names /nowhere/ws.pem, which does not exist",
        ),
    ],
)
def test_mistakes_are_named(groups: dict[str, Any], changes: dict[str, Any], expected: str) -> None:
    """Each mistake is one line that names the host or group, and says how to mend it."""
    mistakes = fleet_mistakes(GROUPS | groups, hosts(**changes))
    assert len(mistakes) == 1
    assert expected in mistakes[0]


@pytest.mark.parametrize(
    "value", ["source", "path", "path 2", "header X-Room", "query room_id", "query a.b"]
)
def test_ways_to_stick_are_no_mistakes(value: str) -> None:
    """Beside the cookie, the default."""
    assert fleet_mistakes(GROUPS, hosts(lb1={"haproxy_stickiness": value})) == []


def test_members_have_names_addresses_and_urls() -> None:
    """HAProxy, the nodes and the command line are configured from these members."""
    variables = hosts(
        node2={
            "wsnode_processes": 2,
            "wsnode_host_name": "n2",
            "fleet_address": "192.168.0.2",
        },
        lb1={"haproxy_port": 8080},
        redis1={"redis_password": PASSWORD},
    )
    members = fleet_members(GROUPS, variables)
    assert [node["name"] for node in members["nodes"]] == [
        "node1-8001",
        "n2-8001",
        "n2-8002",
    ]
    assert members["nodes"][2]["port"] == 8002
    assert members["nodes"][2]["internal_port"] == 9002
    assert members["nodes"][2]["url"] == "http://192.168.0.2:9002"
    assert members["loadbalancers"][0]["url"] == "http://10.0.0.11:8080"
    assert members["redis_urls"] == {
        user: f"redis://{user}:{redis_passwords(PASSWORD)[user]}@10.0.0.31:6379/0"
        for user in ("cli", "node")
    }


def test_private_ports_follow_the_public_ones() -> None:
    """They are 1000 above, unless the inventory has another first one."""
    variables = hosts(node1={"wsnode_port": 7001}, node2={"wsnode_internal_port": "8101"})
    nodes = fleet_members(GROUPS, variables)["nodes"]
    assert [(node["port"], node["internal_port"]) for node in nodes] == [(7001, 8001), (8001, 8101)]


def test_nodes_with_tls_are_asked_by_it() -> None:
    """Host by host, so that a running cluster can be changed; HAProxy looks for the host's name."""
    members = fleet_members(GROUPS, hosts(node2={"fleet_tls": True, "wsnode_host_name": "n2"}))
    plain, tls = members["nodes"]
    assert (plain["tls"], plain["url"], plain["host"]) == (False, "http://10.0.0.21:9001", "node1")
    assert (tls["tls"], tls["url"], tls["host"]) == (True, "https://10.0.0.22:9001", "n2")
    schemes = [target["scheme"] for target in members["targets"]["wsfleet"]]
    assert schemes == ["http", "https"]


def test_prometheus_scrapes_each_target_once() -> None:
    """Each process has a job's target; a machine with several tasks is one machine."""
    groups = GROUPS | {"redis": REDIS, "monitoring": ["lb1", "mon1"]}
    variables = hosts(
        node1={"wsnode_processes": 2}, mon1={"ansible_host": "fd00::41"}, lb1=WITH_ADDRESS["lb1"]
    )
    members = fleet_members(groups, variables)
    assert members["virtual_address"] == "10.0.0.10"
    targets = {
        job: {target["name"]: target["address"] for target in targets}
        for job, targets in members["targets"].items()
    }
    assert targets["wsfleet"]["node1-8002"] == "10.0.0.21:9002"
    assert targets["haproxy"] == {"lb1": "10.0.0.11:8404"}
    assert list(targets["redis"]) == list(targets["sentinel"]) == REDIS
    assert list(targets["node"]) == ["lb1", "node1", "node2", *REDIS, "mon1"]
    assert targets["node"]["mon1"] == "[fd00::41]:9100"
    assert targets["autoscale"] == {}
    assert fleet_members(GROUPS, HOSTS)["targets"]["sentinel"] == []
    scaled = fleet_members(GROUPS, hosts(lb1={"autoscale_enabled": True}))["targets"]["autoscale"]
    assert scaled == [{"name": "lb1", "address": "10.0.0.11:8405"}]


def ports_from(flows: list[dict[str, Any]], address: str) -> list[int]:
    """Return the ports that are open to an address outside firewall_operators."""
    return sorted(
        port
        for flow in flows
        if flow["public"] or address in flow["sources"]
        for port in flow["ports"]
    )


@pytest.mark.parametrize(
    ("source", "lb1", "node1", "redis1"),
    [
        ("anybody", [80, 443], [], []),
        ("lb1", [80, 443], [8001, 9001], []),
        ("node1", [80, 443, 8404], [8001, 9001], [6379, 26379]),
        ("redis2", [80, 443], [], [6379, 26379]),
        ("mon1", [80, 443, 8404, 9100], [9001, 9100], [6379, 9100, 26379]),
    ],
)
def test_ports_are_open_to_those_who_use_them(
    source: str, lb1: list[int], node1: list[int], redis1: list[int]
) -> None:
    """The public is let in to the balancers; everybody else has reasons of his own."""
    variables = hosts(
        lb1={"haproxy_tls_certificates": ["ws.pem"]}, mon1={"ansible_host": "10.0.0.41"}
    )
    groups = GROUPS | {"redis": REDIS, "monitoring": ["mon1"]}
    flows = fleet_members(groups, variables)["flows"]
    address = variables.get(source, {}).get("ansible_host", "203.0.113.1")
    found = {host: ports_from(flows[host], address) for host in ("lb1", "node1", "redis1")}
    assert found == {"lb1": lb1, "node1": node1, "redis1": redis1}


def test_challenges_get_from_each_balancer_to_each() -> None:
    """The firewall lets HAProxy in to the other balancer's ACME client, and nobody else."""
    acme = {"haproxy_acme_port": 8888}
    flows = fleet_members(TWO_BALANCERS, hosts(lb1=acme, lb2=LB2["lb2"] | acme))["flows"]
    for address, ports in (("10.0.0.11", [80, 8888]), ("10.0.0.12", [80, 8888]), ("any", [80])):
        assert ports_from(flows["lb2"], address) == ports


def test_a_cookie_for_pages_of_other_sites_is_no_mistake_with_tls() -> None:
    """By a certificate here, or where something in front ends TLS."""
    for secure in (
        {"haproxy_cookie_secure": True},
        {"haproxy_cookie_secure": "yes"},
        {"haproxy_tls_acme_certificates": ["/ws.pem"]},
    ):
        variables = hosts(lb1={"haproxy_cookie_samesite": "None"} | secure)
        assert fleet_mistakes(GROUPS, variables) == []


@pytest.mark.parametrize("enabled", ["autoscale_enabled", "rebalance_enabled"])
def test_the_autoscaler_and_the_rebalancer_are_let_in(enabled: str) -> None:
    """A balancer that runs one asks Redis, nodes and balancers; where none runs it may not."""
    flows = fleet_members(TWO_BALANCERS, hosts(lb1={enabled: True}, **LB2))["flows"]
    assert ports_from(flows["redis1"], "10.0.0.11") == [6379]
    assert ports_from(flows["redis1"], "10.0.0.12") == []


@pytest.mark.parametrize("stickiness", ["source", "path 2"])
def test_rebalancing_needs_the_cookie(stickiness: str) -> None:
    """With another stickiness the mistake names both variables."""
    variables = {"rebalance_enabled": True, "haproxy_stickiness": stickiness}
    (mistake,) = fleet_mistakes(GROUPS, hosts(lb1=variables))
    assert "rebalance_enabled of the host 'lb1' needs haproxy_stickiness: cookie." in mistake
    assert "set rebalance_enabled: false" in mistake
    assert fleet_mistakes(GROUPS, hosts(lb1={"rebalance_enabled": True})) == []
    members = fleet_members(GROUPS, hosts(lb1=variables))
    assert members["stickiness"] == stickiness


def test_nodes_have_the_weight_of_their_host() -> None:
    """Each process has it; 1 is the default."""
    nodes = fleet_members(GROUPS, hosts(node1={"wsnode_weight": "3"}))["nodes"]
    assert {node["host"]: node["weight"] for node in nodes} == {"node1": 3, "node2": 1}
    (mistake,) = fleet_mistakes(GROUPS, hosts(node1={"wsnode_weight": 300}))
    assert "wsnode_weight of the host 'node1' is 300, and must be between 1 and 256" in mistake


def test_several_redis_servers_are_found_by_their_sentinels() -> None:
    """The URL names every Sentinel and the master, and the user of both kinds of server."""
    from wsfleet.config.redis_url import RedisURL

    variables = hosts(**{name: {"redis_password": PASSWORD} for name in REDIS})
    variables["redis2"]["sentinel_port"] = 5000
    url = fleet_members(GROUPS | {"redis": REDIS}, variables)["redis_urls"]["node"]
    password = redis_passwords(PASSWORD)["node"]
    assert url == (
        f"redis+sentinel://node:{password}@10.0.0.31:26379,10.0.0.32:5000,10.0.0.33:26379/wsfleet/0"
        f"?sentinel_username=node&sentinel_password={password}"
    )
    parsed = RedisURL.parse(url)
    assert (parsed.kind, parsed.master, parsed.database) == ("sentinel", "wsfleet", 0)
    assert (parsed.sentinel_username, parsed.sentinel_password) == ("node", password)


def test_redis_is_found_with_tls(tmp_path: Path) -> None:
    """The URL says so and names the CA, and Prometheus is told as well."""
    from wsfleet.config.redis_url import RedisURL

    variables = hosts(**{name: {"fleet_tls": True} for name in REDIS})
    ca = tmp_path / "a path" / "ca.pem"
    one = fleet_members(GROUPS, variables, str(ca))
    assert one["redis_urls"]["cli"].startswith("rediss://10.0.0.31:6379/0?ssl_ca_certs=/")
    variables |= {name: variables[name] | {"redis_password": PASSWORD} for name in REDIS}
    three = fleet_members(GROUPS | {"redis": REDIS}, variables, str(ca))
    ca.parent.mkdir()
    ca.symlink_to(certifi.where())
    parsed = RedisURL.parse(three["redis_urls"]["node"])
    assert (parsed.scheme, parsed.kind, parsed.ca) == ("rediss", "sentinel", str(ca))
    assert parsed.sentinel_username == "node"
    assert [three["tls"], fleet_members(GROUPS, HOSTS)["tls"]] == [True, False]
    targets = three["targets"]
    assert targets["redis"][0] == {"name": "redis1", "address": "rediss://10.0.0.31:6379"}
    assert targets["sentinel"][0]["address"] == "rediss://10.0.0.31:26379"


def test_each_redis_user_has_a_password_of_his_own() -> None:
    """None is another's, or the one they are made from; another one makes others."""
    passwords = redis_passwords(PASSWORD)
    assert len({PASSWORD, *passwords.values()}) == 1 + len(passwords)
    assert not set(redis_passwords(f"{PASSWORD}!").values()) & set(passwords.values())
    assert set(redis_passwords("").values()) == {""}


@pytest.mark.parametrize(
    ("balancer", "expected"),
    [
        ({}, "http://10.0.0.11"),
        ({"keepalived_virtual_address": "10.0.0.10"}, "http://10.0.0.10"),
        (
            {"keepalived_virtual_address": "fd00::a", "haproxy_port": 8080},
            "http://[fd00::a]:8080",
        ),
        (
            {
                "keepalived_virtual_address": "10.0.0.10",
                "fleet_base_url": "https://ws.test",
            },
            "https://ws.test",
        ),
        ({"haproxy_tls_certificates": ["ws.pem"]}, "http://10.0.0.11"),
        (
            {"haproxy_tls_acme_certificates": ["/ws.pem"], "haproxy_tls_redirect": True},
            "https://10.0.0.11",
        ),
    ],
)
def test_clients_are_sent_to(balancer: dict[str, Any], expected: str) -> None:
    """The URL that is said, else the virtual address, else the first balancer."""
    assert fleet_members(GROUPS, hosts(lb1=balancer))["base_url"] == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, None),
        ({"version": "12"}, None),
        ({"distribution": "ubuntu", "version": "24.04"}, "runs ubuntu 24.04"),
        ({"version": "11"}, "support Debian 12 and 13 with systemd"),
        ({"init": "openrc"}, "(openrc)"),
    ],
)
def test_other_systems_are_refused(
    tmp_path: Path, facts: dict[str, str], expected: str | None
) -> None:
    """The machines' check lets Debian 12 and 13 with systemd pass, and says what else there is."""
    debian = {"distribution": "debian", "version": "13", "init": "systemd"}
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "tasks": [
            {"ansible.builtin.set_fact": {"fleet_machine": debian | facts}},
            {
                "ansible.builtin.import_role": {
                    "name": "wsfleet.wsfleet.fleet",
                    "tasks_from": "machine",
                }
            },
        ],
    }
    playbook = tmp_path / "machine.yml"
    playbook.write_text(yaml.safe_dump([play]))
    result = run_ansible("-i", "localhost,", "-c", "local", str(playbook))
    assert result.returncode == (2 if expected else 0), result.stdout
    assert (expected or "failed=0 skipped=2") in " ".join(result.stdout.split())


def run_site(tmp_path: Path, inventory: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run site.yml against hosts that do not exist: touching one would be UNREACHABLE."""
    path = tmp_path / "hosts.yml"
    path.write_text(yaml.safe_dump(inventory))
    return run_ansible("-i", str(path), "site.yml")


def tls_hosts(folder: Path) -> dict[str, dict[str, Any]]:
    """The sound inventory's host variables, with TLS between all machines."""
    tls = {"fleet_tls": True, "fleet_tls_directory": str(folder)}
    return {name: HOSTS[name] | tls for group in GROUPS.values() for name in group}


def test_certificates_that_are_missing_are_named(tmp_path: Path) -> None:
    """With TLS each host has files of its own beside the CA's; without it nobody asks for them."""
    variables = tls_hosts(tmp_path)
    names = ["ca.pem", *(f"{host}.{end}" for host in variables for end in ("pem", "key"))]
    for name in names:
        (tmp_path / name).touch()
    assert fleet_mistakes(GROUPS, variables) == []
    for name in ("ca.pem", "node1.key"):
        (tmp_path / name).unlink()
    (mistake,) = fleet_mistakes(GROUPS, variables)
    assert f"{tmp_path} lacks 'ca.pem' and 'node1.key': run playbooks/certi" in mistake
    for host in variables.values():
        del host["fleet_tls_directory"]
        host["inventory_dir"] = "/nowhere"
    (mistake,) = fleet_mistakes(GROUPS, variables)
    assert "/nowhere/tls lacks 'ca.pem', 'lb1.pem'" in mistake


def self_signed(name: str, *subjects: x509.GeneralName) -> bytes:
    """Return a certificate with a common name and subject alternative names, as PEM."""
    key = generate_private_key(SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    ends = now + timedelta(1)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, ends)
    if subjects:
        builder = builder.add_extension(x509.SubjectAlternativeName(subjects), critical=False)
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


ADDRESS = x509.IPAddress(ip_address("10.0.0.21"))


@pytest.mark.parametrize(
    ("name", "subjects", "mistakes"),
    [
        ("node1", [x509.DNSName("n1.test"), ADDRESS], []),
        ("N1.test", [ADDRESS], []),
        ("node1", [x509.DNSName("*.test"), ADDRESS], []),
        ("node1", [ADDRESS], ["n1.test, the wsnode_host_name of the host 'node1'"]),
        ("n1.test", [x509.DNSName("n1")], ["10.0.0.21, the fleet_address of the host 'node1'"]),
        ("node1", [], ["n1.test, the wsnode", "10.0.0.21, the fleet"]),
    ],
)
def test_the_certificate_of_a_renamed_host_is_a_mistake(
    tmp_path: Path, name: str, subjects: list[x509.GeneralName], mistakes: list[str]
) -> None:
    """HAProxy and all other clients would take each of its nodes for a stranger."""
    variables = tls_hosts(tmp_path)
    variables["node1"]["wsnode_host_name"] = "n1.test"
    for host in variables:
        for file in ("ca.pem", f"{host}.pem", f"{host}.key"):
            (tmp_path / file).touch()
    assert fleet_mistakes(GROUPS, variables) == []  # one that is encrypted is not read
    (tmp_path / "node1.pem").write_bytes(self_signed(name, *subjects))
    found = fleet_mistakes(GROUPS, variables)
    assert len(found) == len(mistakes)
    for mistake, words in zip(found, mistakes, strict=True):
        assert f"The certificate {tmp_path}/node1.pem is not valid for {words}" in mistake
        assert "run playbooks/certificates.yml" in mistake


def test_all_redis_servers_speak_tls_or_none() -> None:
    """They would not understand each other."""
    variables = hosts(redis2={"fleet_tls": True})
    (mistake,) = fleet_mistakes(GROUPS | {"redis": REDIS}, variables)
    assert mistake.startswith("fleet_tls differs between the hosts of the group 'redis'")


def end_soon(folder: Path, old: x509.Certificate, days: int) -> None:
    """Replace the certificate of lb1 by one that ends in a number of days."""
    builder = x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), old.serial_number)
    builder = builder.not_valid_before(old.not_valid_before_utc)
    builder = builder.not_valid_after(datetime.now(UTC) + timedelta(days))
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    new = builder.sign(key, SHA256())
    (folder / "lb1.pem").write_bytes(new.public_bytes(Encoding.PEM))


def test_certificates_are_made_once_and_renewed_in_time(tmp_path: Path) -> None:
    """A second run makes only what is missing or ends soon; the keys are for nobody else."""
    inventory = tmp_path / "hosts.yml"
    groups = GROUPS | {"wsnodes": ["node1"]}
    variables = hosts(redis1={"fleet_address": "redis1.test"}, node1={"wsnode_host_name": "n1"})
    inventory.write_text(yaml.safe_dump(inventory_of(groups, variables)))

    def make() -> str:
        made = run_ansible("-i", str(inventory), "playbooks/certificates.yml")
        assert made.returncode == 0, made.stdout
        return made.stdout

    def certificate(name: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate((tmp_path / "tls" / f"{name}.pem").read_bytes())

    def names(name: str) -> list[str]:
        extension = x509.SubjectAlternativeName
        return [
            str(each.value)
            for each in certificate(name).extensions.get_extension_for_class(extension).value
        ]

    make()
    ca = certificate("ca")
    assert names("node1") == ["10.0.0.21", "n1", "127.0.0.1", "localhost"]
    assert names("redis1") == ["redis1.test", "redis1", "127.0.0.1", "localhost"]
    for name in ("lb1", "node1", "redis1"):
        certificate(name).verify_directly_issued_by(ca)
    days = certificate("node1").not_valid_after_utc - datetime.now(UTC)
    assert timedelta(396) < days < timedelta(398)
    for key in (tmp_path / "tls").glob("*.key"):
        assert key.stat().st_mode & 0o777 == 0o600
    assert "changed=1" not in make()
    end_soon(tmp_path / "tls", certificate("lb1"), 20)
    (tmp_path / "tls" / "redis1.pem").unlink()
    assert make().count("changed=1") == 2
    days = certificate("lb1").not_valid_after_utc - datetime.now(UTC)
    assert days > timedelta(396)
    variables["node1"]["wsnode_host_name"] = "n2"
    inventory.write_text(yaml.safe_dump(inventory_of(groups, variables)))
    assert make().count("changed=1") == 1
    assert names("node1")[1] == "n2"
    assert ca == certificate("ca")


def run_ansible(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook at the project's root."""
    command = ["ansible-playbook", *arguments]
    environment = os.environ | {"ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


def inventory_of(
    groups: dict[str, list[str]], variables: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The inventory file's form of groups and host variables."""
    local = {"ansible_ssh_common_args": "-o ConnectTimeout=1 -o BatchMode=yes"}
    return {
        group: {"hosts": {name: local | variables[name] for name in names}}
        for group, names in groups.items()
    }


@pytest.mark.parametrize(
    ("groups", "changes", "expected"),
    [
        ({"redis": []}, {}, "The group 'redis' has no host"),
        ({}, {"node2": {"ansible_host": "10.0.0.21"}}, "have the same address"),
        ({}, {"node2": {"wsnode_host_name": "node1"}}, "have the same cookie"),
        ({}, {"lb1": {"haproxy_stats_port": 80}}, "wanted twice"),
        ({}, {"lb1": {"autoscale_enabled": True, "haproxy_port": 8405}}, "wanted twice"),
        ({}, {"node1": {"ansible_host": "{{ nowhere }}"}}, "'node1' cannot be read"),
    ],
)
def test_site_stops_before_it_touches_a_host(
    tmp_path: Path, groups: dict[str, Any], changes: dict[str, Any], expected: str
) -> None:
    """site.yml ends with the mistake, and no connection was tried."""
    result = run_site(tmp_path, inventory_of(GROUPS | groups, hosts(**changes)))
    assert result.returncode == 2, result.stdout
    assert expected in result.stdout
    assert "UNREACHABLE" not in result.stdout


@pytest.mark.parametrize("variables", [{}, {"haproxy_cookie": "NODE"}])
def test_the_fleet_file_is_json_that_the_command_line_reads(variables: dict[str, str]) -> None:
    """The template's keys are the model's, and both have the same default for the cookie."""
    from wsfleet.config.fleet_file import COOKIE, Fleet

    members = fleet_members(GROUPS, hosts(lb1=variables))
    fleet = Fleet.model_validate_json(
        json.dumps(
            {
                "base_url": members["base_url"],
                "cookie": members["cookie"],
                "redis_url": members["redis_urls"]["cli"],
                "nodes": {node["name"]: node["url"] for node in members["nodes"]},
                "loadbalancers": {lb["name"]: lb["stats_url"] for lb in members["loadbalancers"]},
            }
        )
    )
    assert fleet.cookie == variables.get("haproxy_cookie", COOKIE)


def test_the_fleet_file_has_the_fields_of_the_model() -> None:
    """A field that the role does not write would silently have its default."""
    from wsfleet.config.fleet_file import Fleet

    written = yaml.safe_load((ROLE / "vars/main/main.yml").read_text())
    assert {*written["fleet_file"], "logs", "hosts"} == set(Fleet.model_fields)


def way_to(**variables: Any) -> list[str]:
    """The command that reaches the host that collects the logs, with these variables."""
    groups = GROUPS | {"monitoring": ["mon1", "lb1"]}
    variables["inventory_hostname"] = "mon1"
    command: list[str] = fleet_members(groups, hosts(mon1=variables))["logs"]
    return command


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ansible_host": "203.0.113.41", "fleet_address": "10.0.0.41"}, ["203.0.113.41"]),
        ({"ansible_ssh_host": "203.0.113.41"}, ["203.0.113.41"]),
        ({"ansible_port": 2222}, ["-p", "2222"]),
        ({"ansible_ssh_port": "2222"}, ["-p", "2222"]),
        ({"ansible_user": "deploy"}, ["-l", "deploy"]),
        ({"ansible_ssh_user": "deploy"}, ["-l", "deploy"]),
        ({"ansible_private_key_file": "/keys/of us"}, ["-i", "/keys/of us"]),
        ({"ansible_ssh_private_key_file": "/key"}, ["-i", "/key"]),
        ({"ansible_private_key_file": "~/key"}, ["-i", str(Path("~/key").expanduser())]),
        ({"ansible_private_key_file": "keys/us"}, ["-i", str(Path("keys/us").absolute())]),
        ({"ansible_ssh_args": "-F /etc/ours"}, ["-F", "/etc/ours"]),
        (
            {"ansible_ssh_common_args": "-o 'ProxyCommand=nc %h %p'"},
            ["-o", "ProxyCommand=nc %h %p"],
        ),
        ({"ansible_ssh_extra_args": "-J jump"}, ["-J", "jump"]),
        ({"ansible_ssh_timeout": 3}, ["-o", "ConnectTimeout=3"]),
        ({"ansible_host_key_checking": False}, ["-o", "StrictHostKeyChecking=no"]),
        ({"ansible_ssh_executable": "/opt/ssh"}, ["/opt/ssh"]),
    ],
)
def test_logs_are_read_as_ansible_gets_there(variables: dict[str, Any], words: list[str]) -> None:
    """The first host of `monitoring` is reached by the ssh variables of the inventory."""
    command = " ".join(f"<{word}>" for word in way_to(**variables))
    assert " ".join(f"<{word}>" for word in words) in command


def test_logs_are_read_by_a_command_that_ends_with_the_host() -> None:
    """The shell command follows; it is missing without a collector, and here it needs no ssh."""
    program, *options, host = way_to()
    assert (program, options[:2], host) == ("ssh", ["-o", "BatchMode=yes"], "mon1")
    assert way_to(ansible_connection="local") == ["sh", "-c"]
    assert fleet_members(GROUPS, HOSTS)["logs"] == []


def test_the_fleet_file_keeps_the_hostnames_of_hosts_outside_of_a_run(tmp_path: Path) -> None:
    """A run with `--limit` adds those it knows; a host that the inventory lost goes."""
    inventory = tmp_path / "hosts.yml"
    variables = hosts()
    for name in variables:
        variables[name]["ansible_connection"] = "local"
    inventory.write_text(yaml.safe_dump(inventory_of(GROUPS, variables)))
    before = {"node2": "second", "lb1": "old", "gone": "first"}
    (tmp_path / ".fleet.json").write_text(json.dumps({"hosts": before}))
    play = {
        "hosts": "lb1",
        "gather_facts": False,
        "tasks": [
            {"ansible.builtin.set_fact": {"fleet_machine": {"hostname": "balancer"}}},
            {
                "ansible.builtin.import_role": {
                    "name": "wsfleet.wsfleet.fleet",
                    "tasks_from": "file",
                }
            },
        ],
    }
    playbook = tmp_path / "file.yml"
    playbook.write_text(yaml.safe_dump([play]))
    done = run_ansible("-i", str(inventory), str(playbook))
    assert done.returncode == 0, done.stdout
    document = json.loads((tmp_path / ".fleet.json").read_text())
    assert document["hosts"] == {"node2": "second", "lb1": "balancer"}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"hosts": 5}', '{"hosts": null}'])
def test_a_broken_fleet_file_is_replaced(tmp_path: Path, text: str) -> None:
    """It has no hostnames then but those of this run."""
    path = tmp_path / "fleet.json"
    path.write_text(text)
    found = {"node1": "first"}
    for each in (path, tmp_path / "missing"):
        assert fleet_hostnames(found, str(each), ["node1", "node2"]) == found

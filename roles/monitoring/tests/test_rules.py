"""The alert rules: nothing fires in a quiet cluster, and each alert in its own trouble alone."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROLE = Path(__file__).resolve().parents[1]
DOCS = ROLE.parents[1] / "docs" / "operations.md"

MINUTES = 400
SHORT = 45
"""Minutes of a case that is not about memory: that is looked at over six hours."""
NODES = ("node1-8001", "node2-8001")
REDIS = ("redis1", "redis2", "redis3")
Series = dict[str, str]


def always(value: float) -> str:
    """A gauge that stays as it is."""
    return f"{value}x{MINUTES}"


def rising(by_the_minute: float) -> str:
    """A counter."""
    return f"0+{by_the_minute}x{MINUTES}"


def quick(name: str, instance: str) -> Series:
    """A histogram of ten a minute, all below 10 ms."""
    return {
        f'{name}_seconds_bucket{{job="wsfleet",instance="{instance}",le="{le}"}}': rising(10)
        for le in ("0.01", "2.5", "+Inf")
    }


def quiet() -> Series:
    """Two nodes with clients, two balancers, three Redis servers with their Sentinels."""
    series: Series = {}
    for node in NODES:
        of = f'job="wsfleet",instance="{node}"'
        series |= {
            f"up{{{of}}}": always(1),
            f"wsfleet_ready{{{of}}}": always(1),
            f"wsfleet_drain_wanted{{{of}}}": always(0),
            f"wsfleet_redis_connected{{{of}}}": always(1),
            f'wsfleet_connections{{{of},protocol="plain"}}': always(400),
            f'wsfleet_connections{{{of},protocol="centrifuge"}}': always(100),
            f"wsfleet_handshakes{{{of}}}": always(1),
            f"wsfleet_max_connections{{{of}}}": always(10000),
            f"wsfleet_weight{{{of}}}": always(1),
            f"wsfleet_connections_opened_total{{{of}}}": rising(20),
            f"wsfleet_pubsub_probe_seconds_count{{{of}}}": rising(30),
            f"process_resident_memory_bytes{{{of}}}": always(9e7),
        }
        series |= quick("wsfleet_publish", node) | quick("wsfleet_delivery", node)
        for event in ("connect", "publish"):
            labels = f'{{{of},event="{event}",namespace=""'
            series |= {
                f'wsfleet_handler_seconds_bucket{labels},le="{le}"}}': rising(10)
                for le in ("0.01", "5.0", "+Inf")
            }
            series |= {
                f"wsfleet_handler_seconds_count{labels}}}": rising(10),
                f'wsfleet_handler_errors_total{labels},reason="timeout"}}': always(0),
            }
    for balancer in ("lb1", "lb2"):
        of = f'job="haproxy",instance="{balancer}"'
        series |= {
            f"up{{{of}}}": always(1),
            f"haproxy_process_current_connections{{{of}}}": always(1000),
            f"haproxy_process_max_connections{{{of}}}": always(100000),
            f'wsfleet_haproxy_workers{{job="node",instance="{balancer}"}}': always(2),
            f'wsfleet_certificate_expiry_seconds{{job="node",instance="{balancer}"}}': always(2e6),
        }
    series['node_network_address_info{job="node",instance="lb1",address="10.0.0.10"}'] = always(1)
    for server in REDIS:
        of = f'job="redis",instance="{server}"'
        role = "master" if server == "redis1" else "slave"
        series |= {
            f"up{{{of}}}": always(1),
            f"redis_up{{{of}}}": always(1),
            f'redis_instance_info{{{of},role="{role}"}}': always(1),
            f"redis_connected_slaves{{{of}}}": always(2 if role == "master" else 0),
            f"redis_aof_last_write_status{{{of}}}": always(1),
            f"redis_aof_last_bgrewrite_status{{{of}}}": always(1),
            f"redis_memory_used_bytes{{{of}}}": always(1e8),
            f"redis_memory_max_bytes{{{of}}}": always(1e9),
            f'redis_up{{job="sentinel",instance="{server}"}}': always(1),
            f'redis_sentinel_master_ckquorum_status{{job="sentinel",instance="{server}"}}': (
                always(1)
            ),
        }
    for machine in ("lb1", "lb2", "node1", "node2", *REDIS):
        of = f'job="node",instance="{machine}"'
        series |= {
            f"up{{{of}}}": always(1),
            f'node_filesystem_avail_bytes{{{of},fstype="ext4",mountpoint="/"}}': always(5e9),
            f'node_filesystem_size_bytes{{{of},fstype="ext4",mountpoint="/"}}': always(1e10),
            f'node_filesystem_avail_bytes{{{of},fstype="tmpfs",mountpoint="/run"}}': always(0),
            f'node_filesystem_size_bytes{{{of},fstype="tmpfs",mountpoint="/run"}}': always(1e9),
            f"node_memory_MemAvailable_bytes{{{of}}}": always(5e9),
            f"node_memory_MemTotal_bytes{{{of}}}": always(8e9),
            f"node_nf_conntrack_entries{{{of}}}": always(40),
            f"node_nf_conntrack_entries_limit{{{of}}}": always(32768),
        }
    return series


NODE1 = 'job="wsfleet",instance="node1-8001"'
APP_PROCESS = (
    'node_systemd_unit_state{job="node",instance="node1",name="wsfleet-app@1.service",'
    'state="active",type="notify"}'
)
GONE = ""
TROUBLES: dict[str, Series] = {
    "NodeDown": {f"up{{{NODE1}}}": always(0)},
    "NodeNotReady": {f"wsfleet_ready{{{NODE1}}}": always(0)},
    "ConnectionsUnbalanced": {f'wsfleet_connections{{{NODE1},protocol="plain"}}': always(3000)},
    "ReconnectStorm": {f"wsfleet_connections_opened_total{{{NODE1}}}": rising(2000)},
    "ConnectionsNearLimit": {f"wsfleet_max_connections{{{NODE1}}}": always(600)},
    "PublishSlow": {
        f'wsfleet_publish_seconds_bucket{{{NODE1},le="0.01"}}': rising(9),
    },
    "DeliverySlow": {
        f'wsfleet_delivery_seconds_bucket{{{NODE1},le="0.01"}}': rising(9),
    },
    "PubSubStalled": {f"wsfleet_pubsub_probe_seconds_count{{{NODE1}}}": always(7)},
    "HandlerErrors": {
        f'wsfleet_handler_errors_total{{{NODE1},event="published"}}': rising(1),
    },
    "ApplicationFailing": {
        f'wsfleet_handler_errors_total{{{NODE1},event="connect",namespace="",reason="timeout"}}': (
            rising(1)
        ),
    },
    "ApplicationSlow": {
        f'wsfleet_handler_seconds_bucket{{{NODE1},event="publish",namespace="",le="0.01"}}': (
            rising(9)
        ),
    },
    "ApplicationProcessDown": {APP_PROCESS: always(0)},
    "EventLoopBlocked": {f"wsfleet_event_loop_blocked_seconds_total{{{NODE1}}}": rising(1)},
    "NodeMemoryGrows": {f"process_resident_memory_bytes{{{NODE1}}}": rising(1e6)},
    "RedisDown": {'redis_up{job="sentinel",instance="redis3"}': always(0)},
    "RedisWithoutPrimary": {
        'redis_instance_info{job="redis",instance="redis1",role="master"}': GONE
    },
    "RedisReplicaMissing": {'redis_connected_slaves{job="redis",instance="redis1"}': always(1)},
    "SentinelQuorum": {
        f'redis_sentinel_master_ckquorum_status{{job="sentinel",instance="{server}"}}': always(0)
        for server in REDIS
    },
    "RedisAOFFailing": {'redis_aof_last_write_status{job="redis",instance="redis1"}': always(0)},
    "RedisMemoryNearlyFull": {
        'redis_memory_used_bytes{job="redis",instance="redis1"}': always(9.5e8)
    },
    "BalancerDown": {'up{job="haproxy",instance="lb2"}': always(0)},
    "VirtualAddress": {
        'node_network_address_info{job="node",instance="lb2",address="10.0.0.10"}': always(1)
    },
    "HAProxyOldWorkers": {'wsfleet_haproxy_workers{job="node",instance="lb1"}': always(5)},
    "CertificateExpires": {
        'wsfleet_certificate_expiry_seconds{job="node",instance="lb1"}': always(1e6)
    },
    "ExporterDown": {'up{job="node",instance="node2"}': always(0)},
    "DiskNearlyFull": {
        'node_filesystem_avail_bytes{job="node",instance="node1",fstype="ext4",mountpoint="/"}': (
            always(5e8)
        )
    },
    "ConntrackNearlyFull": {'node_nf_conntrack_entries{job="node",instance="lb1"}': always(3e4)},
    "MemoryNearlyFull": {'node_memory_MemAvailable_bytes{job="node",instance="lb1"}': always(7e8)},
}
"""The differences from `quiet` where an alert fires."""

HARMLESS: dict[str, Series] = {
    "nothing": {},
    "an application with a process of its own": {APP_PROCESS: always(1)},
    "a drain": {
        f"wsfleet_ready{{{NODE1}}}": always(0),
        f"wsfleet_drain_wanted{{{NODE1}}}": always(1),
        f'wsfleet_connections{{{NODE1},protocol="plain"}}': always(0),
        f'wsfleet_connections{{{NODE1},protocol="centrifuge"}}': always(0),
    },
    "few clients, all on one node": {
        f'wsfleet_connections{{job="wsfleet",instance="{node}",protocol="{protocol}"}}': (
            always(100 if (node, protocol) == ("node1-8001", "plain") else 0)
        )
        for node in NODES
        for protocol in ("plain", "centrifuge")
    },
    "more clients on a node of more weight": {
        f"wsfleet_weight{{{NODE1}}}": always(3),
        f'wsfleet_connections{{{NODE1},protocol="plain"}}': always(3000),
    },
    "memory that more clients take": {
        f"process_resident_memory_bytes{{{NODE1}}}": rising(1e6),
        f'wsfleet_connections{{{NODE1},protocol="plain"}}': f"400+1x{MINUTES}",
    },
    "Redis without a limit": {'redis_memory_max_bytes{job="redis",instance="redis1"}': always(0)},
    "an address that has moved": {
        'node_network_address_info{job="node",instance="lb1",address="10.0.0.10"}': GONE,
        'node_network_address_info{job="node",instance="lb2",address="10.0.0.10"}': always(1),
    },
}


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file as the role writes it, with its defaults, for a cluster that has everything."""
    template = (ROLE / "templates" / "rules.yml.j2").read_text()
    first, _, template = template.partition("\n")  # tells Ansible the brackets
    brackets = yaml.safe_load(f"{{{first.removeprefix('#jinja2: ')}}}")
    environment = jinja2.Environment(
        **brackets,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        autoescape=False,  # noqa: S701 - no HTML
    )
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    text = environment.from_string(template).render(
        {f"_{name}": value for name, value in defaults.items()},
        ansible_managed="by the test",
        groups={"redis": REDIS},
        fleet_members={"virtual_address": "10.0.0.10"},
    )
    path = tmp_path_factory.mktemp("rules") / "rules.yml"
    path.write_text(text)
    return path


def alerts(rules: Path) -> list[dict[str, Any]]:
    """All of them."""
    groups = yaml.safe_load(rules.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def promtool(*arguments: str | Path) -> None:
    """Run it; what it does not like is the assertion's text."""
    result = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def fire(rules: Path, cases: dict[str, tuple[Series, list[str]]]) -> None:
    """Let promtool play the cases, and compare what fires at their end."""
    tests = [
        {
            "name": name,
            "interval": "1m",
            "input_series": [
                {"series": series, "values": values}
                for series, values in (quiet() | changes).items()
                if values is not GONE
            ],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": f"{MINUTES if 'emory' in name else SHORT}m",
                    "exp_samples": [
                        {"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in expected
                    ],
                }
            ],
        }
        for name, (changes, expected) in cases.items()
    ]
    path = rules.with_name("tests.yml")
    document = {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}
    path.write_text(yaml.safe_dump(document))
    promtool("test", "rules", path)


def test_prometheus_takes_the_rules(rules: Path) -> None:
    """Every expression and every text can be read."""
    promtool("check", "rules", rules)


def test_nothing_fires_without_trouble(rules: Path) -> None:
    """In a quiet cluster, and in one where something happens that is meant."""
    fire(rules, {name: (changes, []) for name, changes in HARMLESS.items()})


def test_each_alert_fires_in_its_trouble_alone(rules: Path) -> None:
    """One thing that goes wrong is one alert."""
    assert {alert["alert"] for alert in alerts(rules)} == set(TROUBLES)
    fire(rules, {name: (changes, [name]) for name, changes in TROUBLES.items()})


def test_a_frozen_redis_is_down(rules: Path) -> None:
    """As one is that refuses connections, though its exporter waits for it and is silent too."""
    of = 'job="redis",instance="redis2"'
    frozen = {f"up{{{of}}}": always(0), f"redis_up{{{of}}}": GONE}
    fire(rules, {"a frozen replica": (frozen, ["RedisDown"])})


def test_a_node_that_is_full_of_handshakes_is_nearly_full(rules: Path) -> None:
    """An application that is slow to accept fills a node without connections."""
    handshakes = {f"wsfleet_handshakes{{{NODE1}}}": always(9000)}
    fire(rules, {"a slow application": (handshakes, ["ConnectionsNearLimit"])})


def test_each_alert_says_what_to_do(rules: Path) -> None:
    """A summary, a description, and a link to a section of the operator's handbook."""
    headings = re.findall(r"^#+ (\w+)$", DOCS.read_text(), re.MULTILINE)
    for alert in alerts(rules):
        annotations = alert["annotations"]
        assert annotations.keys() == {"summary", "description", "runbook_url"}, alert
        assert annotations["runbook_url"].endswith(f"docs/operations.md#{alert['alert'].lower()}")
        assert alert["alert"] in headings
        assert alert["labels"]["severity"] in ("critical", "warning")


def test_one_redis_and_one_balancer_have_fewer_alerts() -> None:
    """Without replicas, Sentinels and a virtual address, no alert reports their absence."""
    template = (ROLE / "templates" / "rules.yml.j2").read_text()
    conditions = re.findall(r"\[% if (.+?) %\](.+?)\[% endif %\]", template, re.DOTALL)
    found = {what: re.findall(r"alert: (\w+)", block) for what, block in conditions}
    assert found == {
        "groups.redis | length > 1": ["RedisReplicaMissing", "SentinelQuorum"],
        "fleet_members.virtual_address": ["VirtualAddress"],
    }

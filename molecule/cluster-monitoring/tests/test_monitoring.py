"""Everything is asked, nothing is told while all is well, and trouble is, until it is over."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import websockets
import yaml

from lab.waiting import until

if TYPE_CHECKING:
    from molecule.conftest import Cluster

    Trouble = Callable[[Cluster], AbstractContextManager[None]]

ROOT = Path(__file__).parents[3]
WATCHERS = ("trixie", "bookworm")
RECEIVED = "/run/webhook.jsonl"
CHAT = ROOT / "examples" / "chat"
#: Nodes without an application have none of these: the last test deploys one.
METRICS_OF_APPLICATIONS = [
    "node_systemd_unit_state",
    "wsfleet_handler_seconds_bucket",
    "wsfleet_handler_seconds_count",
]
RECEIVER = f"""
from http.server import BaseHTTPRequestHandler, HTTPServer
class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open("{RECEIVED}", "ab") as file:
            file.write(body.strip() + b"\\n")
        self.send_response(200)
        self.end_headers()
HTTPServer(("", 9999), Receiver).serve_forever()
"""


def metrics(cluster: Cluster) -> list[str]:
    """The names of all metrics that the rules use."""
    groups = cluster.prometheus("trixie", "rules")["groups"]
    text = "\n".join(rule["query"] for group in groups for rule in group["rules"])
    return sorted(set(re.findall(r"\b(?:(?:wsfleet|redis|haproxy|node|process)_\w+|up\b)", text)))


def told(cluster: Cluster, status: str) -> dict[str, set[str]]:
    """Return the senders of alerts with this status, by the alert and its object."""
    news: dict[str, set[str]] = {}
    for line in cluster.on("trixie", f"cat {RECEIVED}").splitlines():
        message = json.loads(line)
        for alert in message["alerts"]:
            if alert["status"] == status:
                about = f"{alert['labels']['alertname']} {alert['labels'].get('instance')}"
                news.setdefault(about, set()).add(message["externalURL"])
    return news


def start_receiver(cluster: Cluster) -> None:
    """Have somebody who is told, on one of the machines."""
    cluster.on("trixie", f"touch {RECEIVED}")
    cluster.host("trixie").check_output(
        "systemctl is-active webhook || systemd-run --unit webhook python3 -c %s", RECEIVER
    )


@pytest.fixture(scope="module", autouse=True)
def _receiver(cluster: Cluster) -> None:
    """Somebody who is told."""
    start_receiver(cluster)


@pytest.mark.parametrize("host", WATCHERS)
def test_services_are_sandboxed(cluster: Cluster, host: str) -> None:
    """The services that listen here have few other rights."""
    for service in ("", "-alertmanager", "-redis-exporter", "-node-exporter"):
        unit = f"prometheus{service}"
        security = cluster.on(host, f"systemd-analyze security --no-pager {unit}")
        assert float(security.rpartition(": ")[2].split()[0]) <= 2.2, unit


@pytest.mark.parametrize("host", WATCHERS)
def test_every_target_is_up(cluster: Cluster, host: str) -> None:
    """Nodes, HAProxy, Redis and machines, by the names of the inventory."""
    expected = {
        ("haproxy", "trixie"),
        ("node", "bookworm"),
        ("node", "trixie"),
        ("redis", "trixie"),
        ("wsfleet", "bookworm-8001"),
        ("wsfleet", "trixie-8001"),
    }

    def up() -> set[tuple[str, str]]:
        labels = [each["metric"] for each in cluster.query(host, "up == 1")]
        return {(label["job"], label["instance"]) for label in labels}

    until(lambda: up() == expected, f"{host} sees everything")
    assert len(cluster.query(host, "redis_up == 1")) == 1  # its password is the right one


def test_the_rules_ask_for_what_there_is(cluster: Cluster) -> None:
    """A rule about a metric that nobody has would never fire, and nobody would notice."""
    names = metrics(cluster)
    assert len(names) > 20, names
    for host in WATCHERS:
        missing = [name for name in names if not cluster.query(host, name)]
        assert missing == METRICS_OF_APPLICATIONS


def test_each_certificate_has_an_end(cluster: Cluster) -> None:
    """Of the balancer, and of each machine for the others: all are valid for more than a year."""
    query = "count by (instance) (wsfleet_certificate_expiry_seconds - time() > 390 * 86400)"
    found = cluster.query(WATCHERS[0], query)
    counts = {each["metric"]["instance"]: each["value"][1] for each in found}
    assert counts == {"trixie": "2", "bookworm": "1"}


def logs(cluster: Cluster, *options: str) -> list[dict[str, Any]]:
    """Return the output of `wsfleet logs`."""
    output = cluster.output("logs", "--since", "1h", "--json", *options)
    return [json.loads(line) for line in output.splitlines()]


def test_the_journals_of_all_machines_are_in_one_place(cluster: Cluster) -> None:
    """Nodes, balancer and Redis, the collector's own machine among them."""

    def units() -> set[tuple[str, str]]:
        return {(line["host"], line["unit"]) for line in logs(cluster)}

    expected = {
        ("trixie", "haproxy.service"),
        ("trixie", "wsnode@8001.service"),
        ("bookworm", "wsnode@8001.service"),
    }
    until(lambda: expected <= units(), "all have sent what they have to say", 60)


def came_and_went(cluster: Cluster, node: str) -> bool:
    """Whether a node has told of both."""
    return {"connection_opened", "connection_closed"} <= {
        line["event"] for line in logs(cluster, "--node", node)
    }


def test_a_client_that_comes_and_goes_is_two_lines(cluster: Cluster) -> None:
    """With its node, and why it went and after how long."""
    cluster.output("check", "stickiness", cluster.url, "--seconds", "1")

    for node in cluster.fleet["nodes"]:
        until(partial(came_and_went, cluster, node), f"{node} has told of both", 60)
        told = logs(cluster, "--node", node)
        last = [line for line in told if line["event"] == "connection_closed"][-1]
        assert {"client_id", "code", "reason", "duration"} <= last["fields"].keys()
        assert last["node"] == node


def test_the_journals_take_no_more_than_they_may(cluster: Cluster) -> None:
    """The timer is set, and what it starts works."""
    cluster.on("trixie", "systemctl is-active wsfleet-journal-vacuum.timer")
    cluster.on("trixie", "systemctl start wsfleet-journal-vacuum.service")


def test_every_panel_of_grafanas_dashboard_has_something_to_show(cluster: Cluster) -> None:
    """Prometheus has an answer to each, also in a quiet cluster, where only nobody is refused."""
    path = ROOT / "roles/monitoring/files/grafana-dashboard.json"
    questions = [
        target["expr"].replace("$__rate_interval", "1m")
        for panel in json.loads(path.read_text())["panels"]
        for target in panel["targets"]
    ]
    for host in WATCHERS:
        answers = {each: cluster.query(host, each) for each in questions}
        empty = [question for question, answer in answers.items() if not answer]
        assert empty == ["sum by (reason) (rate(wsfleet_connections_refused_total[1m]))"]


def test_grafana_gets_its_dashboard_where_it_is(cluster: Cluster) -> None:
    """Its folder says that it is there; a host without it is left alone."""
    folder = "/etc/grafana/provisioning"
    assert not cluster.host("bookworm").file("/var/lib/wsfleet-dashboards").exists
    # Only what the role sees of Grafana: the package is not in Debian.
    unit = (
        "[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=/usr/bin/touch /run/grafana\\n"
    )
    cluster.on("bookworm", f"mkdir -p {folder}/dashboards {folder}/datasources")
    cluster.on("bookworm", f"printf '{unit}' > /run/systemd/system/grafana-server.service")
    cluster.on("bookworm", "systemctl daemon-reload")
    try:
        cluster.play("playbooks/monitoring.yml")
        dashboard = json.loads(
            cluster.on("bookworm", "cat /var/lib/wsfleet-dashboards/wsfleet.json")
        )
        assert dashboard["uid"] == "wsfleet"
        assert ":9090" in cluster.on("bookworm", f"cat {folder}/datasources/wsfleet.yml")
        assert cluster.host("bookworm").file("/run/grafana").exists  # it was started again
    finally:
        cluster.on("bookworm", "rm -r /etc/grafana /run/systemd/system/grafana-server.service")
        cluster.on("bookworm", "systemctl daemon-reload")


@pytest.mark.parametrize("host", WATCHERS)
def test_a_healthy_cluster_has_no_alerts(cluster: Cluster, host: str) -> None:
    """Not even about to be told, and all rules could be evaluated."""
    until(lambda: cluster.prometheus(host, "alerts")["alerts"] == [], "no alert fires", 60)
    groups = cluster.prometheus(host, "rules")["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
    assert told(cluster, "firing") == {}


def test_old_workers_of_haproxy_are_counted(cluster: Cluster) -> None:
    """A reload leaves the worker that has an open WebSocket, until that ends."""

    def workers() -> int:
        (result,) = cluster.query("trixie", "wsfleet_haproxy_workers")
        return int(result["value"][1])

    until(lambda: workers() == 1, "the old worker has ended")
    with cluster.wsfleet("load", cluster.url, "--clients", "4", "--duration", "60") as load:
        try:
            until(lambda: sum(cluster.connections().values()) == 4, "clients are in")
            cluster.on("trixie", "systemctl reload haproxy")
            until(lambda: workers() == 2, "an old worker is counted")
        finally:
            load.kill()
    until(lambda: workers() == 1, "it is gone")


@contextmanager
def stopped(cluster: Cluster, unit: str) -> Iterator[None]:
    """A unit of a node's host is away."""
    cluster.on("bookworm", f"systemctl stop {unit}")
    try:
        yield
    finally:
        cluster.on("bookworm", f"systemctl start {unit}")


def dead_node(cluster: Cluster) -> AbstractContextManager[None]:
    """A node is away."""
    return stopped(cluster, "wsnode@8001")


@contextmanager
def frozen_redis(cluster: Cluster) -> Iterator[None]:
    """Redis takes connections, and answers nothing."""
    cluster.on("trixie", "systemctl kill --signal STOP redis-server")
    try:
        yield
    finally:
        cluster.on("trixie", "systemctl kill --signal CONT redis-server")


@contextmanager
def full_node(cluster: Cluster) -> Iterator[None]:
    """A node has 36 of the 40 connections that it may have."""
    url, ca = cluster.fleet["nodes"]["bookworm-8001"], cluster.fleet["ca"]
    url = url.replace(":9001", ":8001")  # the one for clients
    load = ("load", url, "--ca", ca, "--clients", "36", "--rate", "1", "--duration", "120")
    with cluster.wsfleet(*load) as process:
        try:
            yield
        finally:
            process.kill()


TROUBLES: dict[Trouble, set[str]] = {
    dead_node: {"NodeDown bookworm-8001"},
    full_node: {"ConnectionsNearLimit bookworm-8001"},
    frozen_redis: {
        "RedisDown trixie",
        "RedisWithoutPrimary None",
        "NodeNotReady trixie-8001",
        "NodeNotReady bookworm-8001",
    },
}
"""Alerts of each, and what they are about."""


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
def test_alerts_and_their_end_are_sent(cluster: Cluster, trouble: Trouble) -> None:
    """By each of the watchers, to the webhook, and by its own alerts alone."""
    cluster.on("trixie", f"truncate --size 0 {RECEIVED}")
    everybody = {f"http://{cluster.address(host)}:9093" for host in WATCHERS}

    def by_everybody(status: str) -> set[str]:
        return {alert for alert, who in told(cluster, status).items() if who == everybody}

    with trouble(cluster):
        until(lambda: by_everybody("firing") >= TROUBLES[trouble], "it is told", 90)
    until(lambda: by_everybody("resolved") >= TROUBLES[trouble], "it is over", 90)
    assert set(told(cluster, "firing")) == TROUBLES[trouble]


def test_nobody_else_is_listened_to(cluster: Cluster) -> None:
    """Private addresses alone; what has Redis's password is on the loopback, and keeps it."""
    for host in WATCHERS:
        listening = cluster.on(host, "ss --listening --tcp --numeric --no-header").split()
        for port in (9090, 9093, 9100):
            assert {each for each in listening if each.endswith(f":{port}")} == {
                f"{cluster.address(host)}:{port}"
            }
        assert {each for each in listening if each.endswith(":9121")} == {"127.0.0.1:9121"}
        collector = {f"{cluster.address(host)}:19532"} if host == WATCHERS[0] else set()
        assert {each for each in listening if each.endswith(":19532")} == collector
        assert cluster.host(host).file("/etc/default/prometheus-redis-exporter").mode == 0o600


def test_all_services_come_back_when_the_machine_boots_before_the_network(
    cluster: Cluster,
) -> None:
    """Balancer, node, Redis and what watches over them, of which the machine has all."""
    cluster.boot_without_an_address("trixie")
    until(cluster.answers, "a client is answered", 60)
    for service in ("haproxy", "redis-server", "prometheus", "prometheus-alertmanager"):
        show = f"systemctl show --property NRestarts --value {service}"
        assert cluster.on("trixie", show) != "0", service
    test_every_target_is_up(cluster, "trixie")
    test_every_target_is_up(cluster, "bookworm")
    assert cluster.on("trixie", "systemctl list-units --failed --no-legend --plain") == ""
    show = "systemctl is-active keepalived systemd-journal-upload || true"
    until(lambda: cluster.on("trixie", show) == "active\nactive", "both run")


def test_it_changes_nothing_in_check_mode(cluster: Cluster) -> None:
    """The installed state is that of the inventory."""
    assert cluster.changed(cluster.play("playbooks/monitoring.yml", "--check")) == []


def test_a_node_that_leaves_is_not_missed(cluster: Cluster) -> None:
    """After scale_in.yml it is not scraped any more, so it fires no alert."""
    cluster.play("playbooks/scale_in.yml", "-e", "node=bookworm")

    def asked() -> set[tuple[str, str]]:
        return {
            (host, target["labels"]["instance"])
            for host in WATCHERS
            for target in cluster.prometheus(host, "targets", state="active")["activeTargets"]
            if target["labels"]["job"] == "wsfleet"
        }

    expected = {(host, "trixie-8001") for host in WATCHERS}
    until(lambda: asked() == expected, "both have forgotten it")


def test_an_application_and_its_processes_are_watched(cluster: Cluster) -> None:
    """Rules about handlers have their metrics, and a process that does not run is told by name."""
    given = {
        "wsnode_app": "chat.app:realtime",
        "wsnode_app_source": str(CHAT),
        "wsnode_app_processes": 1,
        "wsnode_app_check": "/",
        "wsnode_app_writable_paths": ["/var/lib/chat"],
        "wsnode_app_environment": {"CHAT_DATABASE": "/var/lib/chat/chat.db"},
        "wsnode_config": yaml.safe_load((CHAT / "wsfleet.yml").read_text()),
    }
    cluster.play("site.yml", "-e", json.dumps(given))
    asyncio.run(call_a_handler(cluster))
    for host in WATCHERS:
        for name in METRICS_OF_APPLICATIONS:
            until(partial(cluster.query, host, name), f"{host} has {name}")
    down = "ApplicationProcessDown bookworm"
    start_receiver(cluster)  # it has not outlived the boot
    with stopped(cluster, "wsfleet-app@1"):
        until(lambda: down in told(cluster, "firing"), "it is told", 90)
    until(lambda: down in told(cluster, "resolved"), "it is over", 90)


async def call_a_handler(cluster: Cluster) -> None:
    """Connect to each node as a client who has not signed in, which the chat's handler refuses."""
    for host in WATCHERS:
        url = f"wss://{cluster.address(host)}:8001/connection/websocket"
        async with websockets.connect(url, ssl=cluster.trusted) as client:
            await client.send(json.dumps({"id": 1, "connect": {}}))
            with pytest.raises(websockets.ConnectionClosed, match="sign in first"):
                await client.recv()

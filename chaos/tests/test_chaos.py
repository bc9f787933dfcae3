"""The schedule of a seed, the healing of faults, and their effects on clients."""

from __future__ import annotations

import ast
import http.server
import json
import math
import socket
import subprocess
import threading
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from chaos.clients import effects_by_fault, find_effects, timeline
from chaos.cluster import Cluster, CommandError
from chaos.faults import CONTROL, FAULTS
from chaos.schedule import schedule
from chaos.tests.support import GROUPS, Recorder, as_cluster
from lab.haproxy import HAPROXY_PROGRAM, haproxy_config
from lab.ports import free_port
from lab.processes import process
from lab.waiting import until


def test_of_the_command_line_only_its_tools_are_used() -> None:
    """Chaos measures and reports as the commands do, but runs them as programs."""
    modules = [
        node.module or ""
        for path in (Path(__file__).parents[1]).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
    ]
    used = {module.split(".")[2] for module in modules if module.startswith("wsfleet.cli.")}
    assert used == {"access", "errors", "measure"}
    assert "wsfleet.cli" not in modules


def test_a_seed_sets_the_schedule() -> None:
    """The same seed gives the same faults, targets and times; another seed gives others."""
    assert schedule(7, 60, GROUPS) == schedule(7, 60, GROUPS)
    assert schedule(7, 60, GROUPS) != schedule(8, 60, GROUPS)
    assert schedule(7, 60, GROUPS)[:11] == schedule(7, 10, GROUPS)


def test_a_run_begins_without_a_fault() -> None:
    """The control comes first and once, whichever faults are chosen."""
    for names in ([], ["node_isolated"], [CONTROL]):
        steps = schedule(3, 60, GROUPS, names)
        assert [step.name == CONTROL for step in steps] == [True, *[False] * (len(steps) - 1)]
    assert len(schedule(3, 60, GROUPS, [CONTROL])) == 1


def test_no_fault_is_repeated_before_all_were_used() -> None:
    """A run with as many steps as faults uses each of them."""
    steps = schedule(3, len(FAULTS) - 1, GROUPS)
    assert len(steps) == len(FAULTS)
    assert {step.name for step in steps} == set(FAULTS)


def test_targets_and_times_suit_the_fault() -> None:
    """The target is a host of the group, or a role; the duration is between the bounds."""
    for step in schedule(5, 300, GROUPS):
        fault = FAULTS[step.name]
        assert step.target in GROUPS.get(fault.target, [fault.target])
        assert fault.shortest <= step.hold <= fault.longest


def test_a_small_cluster_has_fewer_faults() -> None:
    """Faults that need more hosts are left out; without possible faults the schedule is empty."""
    small = {"loadbalancers": ["lb1"], "wsnodes": ["node1"], "redis": ["redis1"]}
    names = {step.name for step in schedule(1, 100, small)}
    assert "node_process_killed" in names
    assert not names & {"primary_without_replicas", "sentinel_killed", "node_drained"}
    assert len(schedule(1, 5, small, ["sentinel_killed"])) == 1  # the control


ENDS_BY_ITSELF = (CONTROL, "process_killed", "reloaded", "replaced", "updated")
HEALS = {name for name in FAULTS if not name.endswith(ENDS_BY_ITSELF)}


@pytest.mark.parametrize("name", sorted(HEALS))
@pytest.mark.parametrize("when", ["it began", "it was held"])
def test_a_fault_is_healed_whatever_happens(name: str, when: str) -> None:
    """A fault is healed even if its injection or the block raised."""
    orderly, cluster = Recorder(), Recorder()
    with FAULTS[name].make(as_cluster(orderly), "redis1"):
        began = len(orderly.done)
    cluster.fails = when == "it began"
    with (
        suppress(CommandError, KeyboardInterrupt),
        FAULTS[name].make(as_cluster(cluster), "redis1"),
    ):
        raise KeyboardInterrupt
    assert 0 < began < len(orderly.done)
    assert cluster.done[-1] == orderly.done[-1]


def test_a_one_way_fault_drops_one_direction() -> None:
    """Deaf drops inbound packets, mute outbound ones; a host's own address is not blocked."""
    rules = {}
    for name in ("node_deaf_to_redis", "node_mute_to_redis", "primary_without_replicas"):
        cluster = Recorder()
        with FAULTS[name].make(as_cluster(cluster), "redis1"):
            rules[name] = cluster.done[0]
    assert "ip saddr { redis2, redis3 } drop" in rules["node_deaf_to_redis"]
    assert "output" not in rules["node_deaf_to_redis"]
    assert "ip daddr { redis2, redis3 } drop" in rules["node_mute_to_redis"]
    assert "input" not in rules["node_mute_to_redis"]
    assert {"saddr", "daddr"} <= set(rules["primary_without_replicas"].split())


def test_effects_are_counted_for_the_right_fault() -> None:
    """A drop counts for the fault in which it began, a latency for that of the first send."""

    def event(kind: str, at: float, **fields: Any) -> dict[str, Any]:
        return {"event": kind, "at": at, **fields}

    message = {"publisher": 0, "sequence": 0}
    later = {"publisher": 0, "sequence": 1}
    log = [
        event("subscribed", 1.0, subscriber=0, recovering=False, recovered=False),
        event("disconnected", 5.0, subscriber=0),  # before the first fault: not counted
        event("subscribed", 6.0, subscriber=0, recovering=True, recovered=False),
        event("sent", 11.0, **message),
        event("disconnected", 12.0, subscriber=0),
        event("acknowledged", 13.0, **message),
        event("disconnected", 19.5, subscriber=1),  # between the faults: not counted
        event("sent", 21.0, **later),
        event("acknowledged", 21.5, **later),
        event("subscribed", 22.0, subscriber=0, recovering=True, recovered=False),
        event("received", 23.0, subscriber=0, **message),
        event("received", 24.0, subscriber=0, **message),  # a copy
    ]
    first, second = effects_by_fault(find_effects(log), [(10.0, 19.0), (20.0, math.inf)])
    assert (first["dropped"], first["unrecovered"]) == (1, 1)
    assert first["reconnect_max_ms"] == pytest.approx(10_000)
    assert first["ack_max_ms"] == pytest.approx(2000)
    assert first["delivery_max_ms"] == pytest.approx(12_000)
    assert (second["dropped"], second["reconnect_p50_ms"]) == (0, None)
    assert second["ack_max_ms"] == pytest.approx(500)
    assert second["delivery_max_ms"] is None
    delivery, dropped_at = timeline(find_effects(log), 1.0)
    assert dropped_at == [4.0, 11.0, 18.5]
    assert delivery.whole().count == 1  # not the copy
    assert [round(middle) for middle, _ in delivery.parts()] == [10]


class OneMachine(Cluster):
    """A cluster of which this machine is the balancer; `status` is what `wsfleet status` prints."""

    def __init__(self, status: dict[str, Any], socket: Path | None = None) -> None:
        self.groups = GROUPS
        self.status = status
        self.socket = socket
        self._variables = {"node1": {}, "node2": {"wsnode_host_name": "web2"}}

    def wsfleet(self, *_: str, check: bool = True) -> str:
        """Print the status."""
        return json.dumps(self.status)

    def active_balancer(self) -> str:
        """Return this machine."""
        return "lb1"

    def shell(self, host: str, text: str, *, check: bool = True) -> str:
        """Run a shell command here, with the socket of the test."""
        text = text.replace("/run/haproxy/admin.sock", str(self.socket))
        return subprocess.run(["sh", "-c", text], check=True, capture_output=True, text=True).stdout


def test_connections_are_those_of_the_hosts_nodes() -> None:
    """A node belongs to the host of its name; one that does not run is left out."""
    nodes = {"node1-8001": 3, "node1-8002": None, "web2-8001": 4, "other-8001": 5}
    status = {"nodes": [{"name": name, "connections": count} for name, count in nodes.items()]}
    assert OneMachine(status).connections() == {
        "node1": {"node1-8001": 3},
        "node2": {"web2-8001": 4},
    }
    assert OneMachine({}).connections() == {"node1": {}, "node2": {}}


class Node(http.server.BaseHTTPRequestHandler):
    """A node that is ready, and keeps every other request open."""

    def do_GET(self) -> None:
        """Answer /ready; else hold the connection until the balancer closes it."""
        self.send_response(200)
        self.end_headers()
        if self.path != "/ready":
            self.wfile.write(b"open")
            self.wfile.flush()
            self.connection.recv(1)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_haproxy_closes_the_connections_of_one_node(tmp_path: Path) -> None:
    """With the role's configuration a node's clients are disconnected, and others are not."""
    public, admin = free_port(), tmp_path / "admin.sock"
    config, urls = tmp_path / "haproxy.cfg", {}
    with ExitStack() as stack:
        for name in ("node1-8001", "node2-8001"):
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Node)
            stack.callback(server.server_close)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            urls[name] = f"http://127.0.0.1:{server.server_address[1]}"
        text = haproxy_config(urls, public, free_port())
        text = text.replace("global\n", f"global\n    stats socket {admin} level admin\n", 1)
        config.write_text(text)
        stack.enter_context(
            process([HAPROXY_PROGRAM, "-db", "-f", str(config)], tmp_path / "haproxy.log")
        )
        until(lambda: _ready(public), "HAProxy serves")
        clients = {name: stack.enter_context(_client(public, name)) for name in urls}
        cluster = OneMachine({}, admin)
        cluster.close_connections("node1-8001")
        assert clients["node1-8001"].recv(100) == b""
        clients["node2-8001"].settimeout(0.2)
        with pytest.raises(TimeoutError):
            clients["node2-8001"].recv(100)
        with pytest.raises(CommandError, match="No such"):
            cluster.close_connections("node9-8001")


def _ready(port: int) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2):
        return True
    return False


def _client(port: int, node: str) -> socket.socket:
    """Return a connection through the balancer to a node."""
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    request = f"GET /ws HTTP/1.1\r\nHost: x\r\nCookie: WSNODE={node}\r\n\r\n"
    client.sendall(request.encode())
    received = b""
    while b"open" not in received:
        received += client.recv(1000)
    return client

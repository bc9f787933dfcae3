"""The schedule of a seed, the healing of faults, and their effects on clients."""

from __future__ import annotations

import ast
import http.server
import json
import math
import socket
import subprocess
import threading
import time
import urllib.request
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chaos.clients import Clients, effects_by_fault, timeline
from chaos.cluster import Cluster, CommandError
from chaos.evenness import ClientCounts, Moves, is_even, moves
from chaos.faults import FAULTS
from chaos.run import clients_hit, run, spread
from chaos.schedule import Step, schedule
from lab.haproxy import HAPROXY_PROGRAM, haproxy_config
from lab.ports import free_port
from lab.processes import process
from lab.waiting import until

GROUPS = {
    "loadbalancers": ["lb1", "lb2"],
    "wsnodes": ["node1", "node2"],
    "redis": ["redis1", "redis2", "redis3"],
}


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
    assert schedule(7, 60, GROUPS)[:10] == schedule(7, 10, GROUPS)


def test_no_fault_is_repeated_before_all_were_used() -> None:
    """A run with as many steps as faults uses each of them."""
    steps = schedule(3, len(FAULTS), GROUPS)
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
    assert schedule(1, 5, small, ["sentinel_killed"]) == []


class Recorder:
    """A cluster that only records the calls, and can fail once."""

    groups = GROUPS

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fails = False

    def address(self, host: str) -> str:
        """Return the name in place of an address."""
        return host

    def __getattr__(self, name: str) -> Any:
        """Return a function that records its call."""

        def do(*arguments: str | int) -> None:
            self.done.append(" ".join(map(str, (name, *arguments))))
            if self.fails:
                self.fails = False
                raise CommandError(name)

        return do


HEALS = {name for name in FAULTS if not name.endswith(("process_killed", "reloaded", "updated"))}


@pytest.mark.parametrize("name", sorted(HEALS))
@pytest.mark.parametrize("when", ["it began", "it was held"])
def test_a_fault_is_healed_whatever_happens(name: str, when: str) -> None:
    """A fault is healed even if its injection or the block raised."""
    orderly, cluster = Recorder(), Recorder()
    with FAULTS[name].make(_as_cluster(orderly), "redis1"):
        began = len(orderly.done)
    cluster.fails = when == "it began"
    with (
        suppress(CommandError, KeyboardInterrupt),
        FAULTS[name].make(_as_cluster(cluster), "redis1"),
    ):
        raise KeyboardInterrupt
    assert 0 < began < len(orderly.done)
    assert cluster.done[-1] == orderly.done[-1]


def _as_cluster(recorder: Recorder) -> Cluster:
    return recorder  # type: ignore[return-value]


def test_a_one_way_fault_drops_one_direction() -> None:
    """Deaf drops inbound packets, mute outbound ones; a host's own address is not blocked."""
    rules = {}
    for name in ("node_deaf_to_redis", "node_mute_to_redis", "primary_without_replicas"):
        cluster = Recorder()
        with FAULTS[name].make(_as_cluster(cluster), "redis1"):
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
    first, second = effects_by_fault(log, [(10.0, 19.0), (20.0, math.inf)])
    assert (first["dropped"], first["unrecovered"]) == (1, 1)
    assert first["reconnect_max_ms"] == pytest.approx(10_000)
    assert first["ack_max_ms"] == pytest.approx(2000)
    assert first["delivery_max_ms"] == pytest.approx(12_000)
    assert (second["dropped"], second["reconnect_p50_ms"]) == (0, None)
    assert second["ack_max_ms"] == pytest.approx(500)
    assert second["delivery_max_ms"] is None
    delivery, dropped_at = timeline(log, 1.0)
    assert dropped_at == [4.0, 11.0, 18.5]
    assert delivery.whole().count == 1  # not the copy
    assert [round(middle) for middle, _ in delivery.parts()] == [10]


class Balanced(Recorder):
    """A cluster whose clients go to the node with the fewest when their connections are closed."""

    def __init__(self, counts: dict[str, int], *, stuck: bool = False) -> None:
        super().__init__()
        self.counts = counts
        self.stuck = stuck

    def connections(self) -> dict[str, dict[str, int]]:
        """Return the clients of each host's only node."""
        return {host: {f"{host}-8001": count} for host, count in self.counts.items()}

    def close_connections(self, node: str) -> None:
        """Assign the node's clients again, unless the balancer is stuck."""
        self.done.append(f"close {node}")
        if self.fails:
            self.fails = False
            raise CommandError(node)
        if self.stuck:
            return
        moved, self.counts[node.rpartition("-")[0]] = self.counts[node.rpartition("-")[0]], 0
        for _ in range(moved):
            self.counts[min(self.counts, key=self.counts.__getitem__)] += 1

    def find_problem(self) -> None:
        """Find no problem."""

    def primary(self) -> str:
        """Return the host of the primary."""
        return "redis1"


class Quiet:
    """Clients that publish nothing."""

    running = True

    def __init__(self, events: Path) -> None:
        self.events = events
        events.write_text(json.dumps({"event": "began", "time": 0.0}) + "\n")

    def __enter__(self) -> None:
        """Start nothing."""

    def __exit__(self, *_: object) -> None:
        """End nothing."""

    def wait_for_messages(self) -> None:
        """Wait for nothing."""

    def finish(self) -> dict[str, Any]:
        """Return a report without a problem."""
        return {"acknowledged": 0, "problems": []}


def _run(cluster: Recorder, steps: list[Step], folder: Path, even: float | None = None) -> Any:
    clients: Clients = Quiet(folder / "events.jsonl")  # type: ignore[assignment]
    return run(_as_cluster(cluster), steps, clients, 1, threading.Event(), even)


def test_clients_are_spread_before_a_fault() -> None:
    """A host without clients gets its share; an even cluster is left alone."""
    cluster = Balanced({"node1": 24, "node2": 0, "node3": 24})
    assert spread(_as_cluster(cluster), pause=0.01) == {"node1": 12, "node2": 12, "node3": 24}
    assert cluster.done == ["close node1-8001"]
    cluster = Balanced({"node1": 24, "node2": 0})
    cluster.fails = True
    assert spread(_as_cluster(cluster), pause=0.01) == {"node1": 12, "node2": 12}
    cluster = Balanced({"node1": 14, "node2": 10})
    assert spread(_as_cluster(cluster)) == {"node1": 14, "node2": 10}
    assert cluster.done == []
    standby = Balanced({"node1": 12, "node2": 12})
    standby.connections = lambda: {  # type: ignore[method-assign]
        **Balanced.connections(standby),
        "node3": {},
    }
    assert spread(_as_cluster(standby)) == {"node1": 12, "node2": 12, "node3": 0}
    assert standby.done == []


def test_a_fault_hits_the_clients_of_its_target() -> None:
    """A node's fault hits the clients of the node, every other fault hits all."""
    counts = {"node1": 5, "node2": 7}
    assert clients_hit(Step("node_isolated", "node2", 0, 0), counts) == 7
    assert clients_hit(Step("nodes_updated", "all", 0, 0), counts) == 12
    assert clients_hit(Step("primary_isolated", "primary", 0, 0), counts) == 12


def test_the_report_has_the_clients_that_a_fault_hit(tmp_path: Path) -> None:
    """Clients are spread first, and each fault has their number in the line and the document."""
    cluster = Balanced({"node1": 24, "node2": 0})
    steps = [
        Step("node_process_killed", "node2", 0, 0),
        Step("primary_process_killed", "primary", 0, 0),
    ]
    report = _run(cluster, steps, tmp_path)
    assert report.ok, report.problems
    assert [fault["hit"] for fault in report.data["faults"]] == [12, 24]
    assert report.data["not_counted"] == []


def test_a_fault_without_clients_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not injected, but tried again after all others; the run fails if it stays so."""
    monkeypatch.setattr("chaos.run.spread", lambda _: {"node1": 24, "node2": 0})
    cluster = Balanced({"node1": 24, "node2": 0}, stuck=True)
    steps = [Step("node_process_killed", host, 0, 0) for host in ("node2", "node1")]
    report = _run(cluster, steps, tmp_path)
    assert [fault["host"] for fault in report.data["faults"]] == ["node1"]
    assert report.data["not_counted"] == [{"name": "node_process_killed", "target": "node2"}]
    assert any("had no clients" in problem for problem in report.problems)
    assert [call for call in cluster.done if call.startswith("shell")] == [
        "shell node1 systemctl kill -s KILL 'wsnode@*'"
    ]
    lines = capsys.readouterr().err.splitlines()
    assert ["not counted" in line for line in lines] == [True, False, True]
    assert "24 clients" in lines[1]


class Rebalanced(Balanced):
    """A cluster of two nodes that moves one client each time it is asked for its connections."""

    def connections(self) -> dict[str, dict[str, int]]:
        """Return the counts, and move a client from node1 to node2 unless the cluster is stuck."""
        found = super().connections()
        if not self.stuck and self.counts["node1"] > self.counts["node2"]:
            self.counts["node1"] -= 1
            self.counts["node2"] += 1
        return found

    def wsfleet(self, *_: str, check: bool = True) -> str:
        """Print a round that began before all faults, and one of now."""
        now = datetime.now(UTC)
        rounds = [
            {"time": at.isoformat(timespec="milliseconds"), "shed": {"node1-8001": 3}}
            for at in (now - timedelta(hours=1), now)
        ]
        return json.dumps({"rounds": rounds})


def test_even_is_ten_per_cent_from_the_mean() -> None:
    """Or one client, where 10 % are less; no node is not even."""
    assert is_even({"node1": 450, "node2": 550})
    assert not is_even({"node1": 449, "node2": 551})
    assert is_even({"node1": 2, "node2": 4})
    assert not is_even({"node1": 0, "node2": 3})
    assert not is_even({})


def test_the_cluster_spreads_the_clients_after_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --even the report has the time, the rounds of the fault, and the counts over time."""
    monkeypatch.setattr("chaos.evenness.INTERVAL", 0.01)
    cluster = Rebalanced({"node1": 15, "node2": 9})
    steps = [Step("node_process_killed", "node1", 0, 0)]
    report = _run(cluster, steps, tmp_path, even=30)
    assert report.ok, report.problems
    fault = report.data["faults"][0]
    assert fault["even_after"] is not None
    assert fault["rebalancing"] == {"rounds": 1, "clients": 3}
    assert [call for call in cluster.done if call.startswith("close")] == []
    lines = report.figures[-1].lines
    assert lines["node1-8001"][0][0] == 0
    assert lines["node1-8001"][-1][1] == lines["node2-8001"][-1][1] + 1 or cluster.counts == {
        "node1": 12,
        "node2": 12,
    }


def test_clients_that_stay_uneven_are_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run fails, and says after how many seconds."""
    monkeypatch.setattr("chaos.evenness.INTERVAL", 0.01)
    cluster = Rebalanced({"node1": 15, "node2": 9}, stuck=True)
    steps = [Step("node_process_killed", "node1", 0, 0)]
    report = _run(cluster, steps, tmp_path, even=0.2)
    assert not report.ok
    assert any("not even after 0.2 s" in problem for problem in report.problems)


def test_a_host_that_does_not_serve_is_not_even(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clients of the others may be even: the host that was killed is still missing."""
    monkeypatch.setattr("chaos.evenness.INTERVAL", 0.01)
    cluster = Balanced({"node1": 12, "node2": 12})
    cluster.connections = lambda: {  # type: ignore[method-assign]
        **Balanced.connections(cluster),
        "node3": {},
    }
    counts = ClientCounts(_as_cluster(cluster))
    assert not counts.wait_until_even(0.1, threading.Event())
    assert {name: n for name, [(_, n), *_] in counts.lines.items()} == {
        "node1-8001": 12,
        "node2-8001": 12,
    }


def test_rounds_of_another_time_are_not_counted() -> None:
    """A round counts for the span in which it began."""
    cluster = _as_cluster(Rebalanced({"node1": 1, "node2": 1}))
    now = time.time()
    assert moves(cluster, now - 7200, now + 60) == Moves(2, 6)
    assert moves(cluster, now - 60, now + 60) == Moves(1, 3)
    assert moves(cluster, now + 60, now + 120) == Moves(0, 0)


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

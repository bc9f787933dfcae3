"""``wsfleet autoscale``: brings standby hosts in and drains hosts out; one of several decides."""

import math
import secrets
import signal
import socket
import sys
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from wsfleet.cli import CannotRun
from wsfleet.cli.access.fleet_file import Fleet
from wsfleet.cli.access.redis import DEAD_AFTER, connected, registry, server_infos
from wsfleet.cli.measure.report import Report, table
from wsfleet.cluster.autoscale_policy import (
    Action,
    Decision,
    Host,
    Load,
    Node,
    Place,
    Policy,
    decide,
    hosts_of,
)
from wsfleet.cluster.node_state import DRAIN, NOT_RUNNING, SERVE
from wsfleet.redis import key_names

LOG_LENGTH = 10_000
"""Decisions that are kept, or a few more."""
LEASES = 3
"""Intervals without a sign of the leader until another one leads."""

# lead(LEADER; TOKEN, MILLISECONDS): lead, or go on leading, unless another one does. Returns who
# leads.
LEAD = """
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then
  return leader
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""

# yield(LEADER; TOKEN): lead no more.
YIELD = """
return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1])
"""

# apply(LEADER, DESIRED, DRAINED, LOG; TOKEN, LENGTH, WANTED, ENTRY, {NODE, SEEN}...): WANTED is
# wanted of each NODE, and the log says so in ENTRY. Nothing is done, and 0 returned, if TOKEN does
# not lead any more, or if what is wanted of a node is not what it was SEEN to be: an operator was
# quicker. Returns 1 otherwise.
APPLY = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
for i = 5, #ARGV, 2 do
  if (redis.call('HGET', KEYS[2], ARGV[i]) or '') ~= ARGV[i + 1] then
    return 0
  end
end
for i = 5, #ARGV, 2 do
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[3])
  redis.call(ARGV[3] == 'drain' and 'SADD' or 'SREM', KEYS[3], ARGV[i])
end
redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[2], '*', 'decision', ARGV[4])
return 1
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to run: seconds between two looks, once or for ever, and whether anything is done."""

    policy: Policy
    interval: float = 5.0
    once: bool = False
    dry_run: bool = False
    as_json: bool = False
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None


class Metrics:
    """What Prometheus is told, in a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"wsfleet_autoscale_{name}", text, labels, registry=registry)

        self.redis = gauge("redis_connected", "1 if the last look at the fleet succeeded.")
        self.leader = gauge("leader", "1 if this autoscaler decides.")
        self.short = gauge("short", "1 if a host is needed, and none is in standby.")
        self.hosts = gauge("hosts", "Hosts, by where they are in the pool.", "place")
        self.connections = gauge("connections_per_node", "Average over the nodes that serve.")
        self.cpu = gauge("cpu_percent", "Average over the hosts that serve.")
        self.decisions = Counter(
            "wsfleet_autoscale_decisions",
            "Decisions that were carried out.",
            ["action"],
            registry=registry,
        )
        for place in Place:  # a series is there from the beginning, or its first change is not seen
            self.hosts.labels(place.value)
        for action in (Action.SCALE_IN, Action.SCALE_OUT):
            self.decisions.labels(action.value)

    def show(self, hosts: list[Host], decision: Decision) -> None:
        """Take over what was seen and decided."""
        places, load = Tally(host.place for host in hosts), Load.of(hosts)
        for place in Place:
            self.hosts.labels(place.value).set(places[place])
        self.connections.set(load.per_node if load.nodes else 0)
        self.cpu.set(load.per_host if load.hosts else 0)
        self.short.set(decision.action is Action.SCALE_OUT and not decision.hosts)


def run(find: Callable[[], Fleet], plan: Plan) -> None:
    """Look and decide until SIGTERM or SIGINT; the fleet is found anew each time, for it changes.

    Raises:
        CannotRun: there is no fleet file or the port for metrics is taken; with `once` also if
            Redis cannot be read, which otherwise is waited for.

    """
    find()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    autoscaler = Autoscaler(find, plan)
    if plan.metrics_port is not None:
        try:
            start_http_server(
                plan.metrics_port, plan.metrics_host, registry=autoscaler.metrics.registry
            )
        except OSError as error:
            raise CannotRun(
                f"cannot listen on {plan.metrics_host}:{plan.metrics_port}: {error.strerror}. "
                "Say another --metrics-port."
            ) from error
    try:
        while True:
            autoscaler.look()
            if plan.once or stop.wait(plan.interval):
                return
    finally:
        autoscaler.leave()


class Autoscaler:
    """One of the autoscalers of a fleet."""

    def __init__(self, find: Callable[[], Fleet], plan: Plan) -> None:
        self.metrics = Metrics()
        self._find = find
        self._plan = plan
        # The host's name is for people; the rest makes it a fencing token, which no other has.
        self._token = f"{socket.gethostname()}:{secrets.token_hex(8)}"
        self._leads = False
        self._redis: list[str] | None = None
        self._settled_at = -math.inf
        self._said: object = None

    def look(self) -> None:
        """Look at the fleet once, and do what is to be done.

        Raises:
            CannotRun: with `once`, if Redis or the fleet file cannot be read.

        """
        try:
            fleet = self._find()
            with connected(fleet.redis_url) as client:
                self._round(client, fleet)
        except CannotRun as error:
            if self._plan.once:
                raise
            self.metrics.redis.set(0)
            if self._said != error.message:
                print(f"wsfleet: {error.message}", file=sys.stderr, flush=True)
            self._said = error.message
            self._redis = []  # who answers next is another one
        else:
            self.metrics.redis.set(1)

    def leave(self) -> None:
        """Let another one lead; without Redis it finds out by itself."""
        if self._leads:
            try:
                with connected(self._find().redis_url) as client:
                    client.eval(YIELD, 1, key_names.AUTOSCALE_LEADER, self._token)
            except CannotRun as error:
                print(f"wsfleet: {error.message}", file=sys.stderr)

    def _round(self, client: Any, fleet: Fleet) -> None:
        settled = self._settled(client)  # a follower keeps count too: it may lead the next time
        if not self._plan.dry_run and not self._lead(client):
            return
        seconds, micros = client.time()
        hosts = hosts_of(nodes(client, fleet))
        if settled:
            decision = decide(
                self._plan.policy, hosts, now=seconds + micros / 1e6, last=_last_decision(client)
            )
        else:
            decision = Decision(
                Action.HOLD,
                f"Redis was away or is another one: nodes have {DEAD_AFTER:g} s for a sign of life",
            )
        self.metrics.show(hosts, decision)
        entry = _entry(hosts, decision)
        applied = False
        if decision.hosts and not self._plan.dry_run:
            applied = self._apply(client, decision, entry)
            if not applied:
                return  # decided upon what is true no more
            self.metrics.decisions.labels(decision.action.value).inc()
        self._say(
            (decision.action, entry["hosts"]),
            {"time": _iso(seconds), "applied": applied, **entry},
            f"{decision.action.value} {' '.join(entry['hosts'])}".rstrip() + f": {decision.reason}",
            always=applied,
        )

    def _settled(self, client: Any) -> bool:
        """Whether a node without a sign of life is gone, and not only late to find this Redis."""
        found = [info["run_id"] for info in server_infos(client)]
        if found != self._redis:
            if self._redis is not None:
                self._settled_at = time.monotonic() + DEAD_AFTER
            self._redis = found
        return time.monotonic() >= self._settled_at

    def _lead(self, client: Any) -> bool:
        lease = int(self._plan.interval * LEASES * 1000)
        leader = client.eval(LEAD, 1, key_names.AUTOSCALE_LEADER, self._token, lease)
        self._leads = leader == self._token
        self.metrics.leader.set(self._leads)
        if not self._leads:
            self._say(leader, {"action": "follow", "leader": leader}, f"{leader} decides")
        return self._leads

    def _apply(self, client: Any, decision: Decision, entry: dict[str, Any]) -> bool:
        wanted = SERVE if decision.action is Action.SCALE_OUT else DRAIN
        chosen = [node for host in decision.hosts for node in host.nodes]
        seen = [word for node in chosen for word in (node.name, node.wanted or "")]
        used = (
            key_names.AUTOSCALE_LEADER,
            key_names.DESIRED,
            key_names.AUTOSCALE_DRAINED,
            key_names.AUTOSCALE_LOG,
        )
        text = orjson.dumps(entry)
        return bool(
            client.eval(APPLY, len(used), *used, self._token, LOG_LENGTH, wanted, text, *seen)
        )

    def _say(self, what: object, document: Any, line: str, *, always: bool = False) -> None:
        """Print a line if it is news."""
        if always or what != self._said:
            print(orjson.dumps(document).decode() if self._plan.as_json else line, flush=True)
        self._said = what


def nodes(client: Any, fleet: Fleet) -> list[Node]:
    """Return all nodes, also those that do not run, with what is wanted of them."""
    wanted = client.hgetall(key_names.DESIRED)
    drained_by_us = client.smembers(key_names.AUTOSCALE_DRAINED)
    live = {name: said for name, said in registry(client).items() if said["live"]}
    return [
        Node(
            name=name,
            state=said.get("state", NOT_RUNNING),
            connections=int(said.get("connections", 0)),
            cpu=float(said.get("cpu", 0.0)),
            wanted=wanted.get(name),
            drained_by_us=name in drained_by_us,
        )
        for name in sorted({*fleet.nodes, *live})
        for said in [live.get(name, {})]
    ]


def log(fleet: Fleet, count: int) -> Report:
    """Show the last decisions, the newest at the end.

    Raises:
        CannotRun: Redis cannot be read.

    """
    with connected(fleet.redis_url) as client:
        entries = client.xrevrange(key_names.AUTOSCALE_LOG, count=count)[::-1]
    decisions = [
        {"time": _iso(_milliseconds(name) / 1000), **orjson.loads(fields["decision"])}
        for name, fields in entries
    ]
    columns = ("time", "", "hosts", ">connections/node", ">CPU %", "why")
    rows = (
        (
            decision["time"],
            decision["action"],
            " ".join(decision["hosts"]),
            decision["connections_per_node"],
            decision["cpu_percent"],
            decision["reason"],
        )
        for decision in decisions
    )
    return Report({"decisions": decisions}, [table("decisions", columns, rows)])


def _last_decision(client: Any) -> float | None:
    newest = client.xrevrange(key_names.AUTOSCALE_LOG, count=1)
    return _milliseconds(newest[0][0]) / 1000 if newest else None


def _milliseconds(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])


def _entry(hosts: list[Host], decision: Decision) -> dict[str, Any]:
    """What is written down of a decision: the reason, and the figures that it was made of."""
    places, load = Tally(host.place for host in hosts), Load.of(hosts)
    return {
        "action": decision.action.value,
        "hosts": [host.name for host in decision.hosts],
        "reason": decision.reason,
        "places": {place.value: places[place] for place in Place},
        "connections": load.connections,
        "connections_per_node": round(load.per_node, 1) if load.nodes else None,
        "cpu_percent": round(load.per_host, 1) if load.hosts else None,
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def policy(**settings: Any) -> Policy:
    """Return the policy that options describe.

    Raises:
        CannotRun: two of them contradict each other.

    """
    try:
        return Policy(**settings)
    except ValueError as error:
        raise CannotRun(f"{error}: mend one of the two.") from error

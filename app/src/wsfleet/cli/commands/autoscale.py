"""``wsfleet autoscale``: activate standby hosts and drain hosts, depending on the load."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from prometheus_client import start_http_server

from wsfleet.cli.access import autoscaling
from wsfleet.cli.access.elected_service import ElectedService, Schedule
from wsfleet.cli.access.fleet_file import Fleet, load_fleet
from wsfleet.cli.access.redis import connected, iso
from wsfleet.cli.errors import EXIT_OK, CannotRun
from wsfleet.cli.measure.autoscale_metrics import AutoscaleMetrics
from wsfleet.cli.measure.report import Report, emit, table
from wsfleet.cli.options import FleetFile
from wsfleet.cluster.autoscale_policy import (
    Action,
    Decision,
    Host,
    Load,
    Place,
    Policy,
    decide,
    hosts_of,
)
from wsfleet.cluster.node_state import DRAIN, SERVE
from wsfleet.config.settings import NODE_DEAD_AFTER
from wsfleet.redis import key_names


def _setting(name: str, text: str, **bounds: Any) -> Any:
    """Return an option that the autoscaler's service sets by the environment."""
    return typer.Option(
        f"--{name}",
        envvar=f"WSFLEET_AUTOSCALE_{name.replace('-', '_').upper()}",
        help=text,
        **bounds,
    )


Min = Annotated[int, _setting("min", "The fewest hosts that serve.", min=1)]
Max = Annotated[int, _setting("max", "The most hosts that serve.", min=1)]
Desired = Annotated[int, _setting("desired", "Hosts that serve before the first decision.", min=1)]
Step = Annotated[int, _setting("step", "Hosts brought in by one decision.", min=1)]
ConnectionsHigh = Annotated[
    float, _setting("connections-high", "Connections of a node above which to scale out.", min=0)
]
ConnectionsLow = Annotated[
    float, _setting("connections-low", "Connections of a node up to which to scale in.", min=0)
]
CpuHigh = Annotated[float, _setting("cpu-high", "Per cent of CPU above which to scale out.", min=0)]
CpuLow = Annotated[float, _setting("cpu-low", "Per cent of CPU up to which to scale in.", min=0)]
Margin = Annotated[
    float,
    _setting(
        "margin",
        "How far below the high thresholds the remaining hosts must be after a scale-in, 0 to 1.",
        min=0,
        max=1,
    ),
]
OutCooldown = Annotated[
    float, _setting("scale-out-cooldown", "Seconds from a decision to the next scale-out.", min=0)
]
InCooldown = Annotated[
    float, _setting("scale-in-cooldown", "Seconds from a decision to the next scale-in.", min=0)
]
Interval = Annotated[float, _setting("interval", "Seconds between two rounds.", min=0.1)]
MetricsHost = Annotated[str, _setting("metrics-host", "Address of the metrics for Prometheus.")]
MetricsPort = Annotated[
    int | None,
    _setting(
        "metrics-port",
        "Port of the metrics for Prometheus. Default: no metrics.",
        min=1,
        max=65535,
        show_default=False,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print decisions without carrying them out or leading.")
]
Once = Annotated[bool, typer.Option("--once", help="Run one round and exit.")]
Check = Annotated[bool, typer.Option("--check", help="Check the settings and exit.")]
Log = Annotated[bool, typer.Option("--log", help="Show the last decisions and exit.")]
Count = Annotated[int, typer.Option("--count", min=1, help="Number of decisions for --log.")]
JsonLines = Annotated[
    bool, typer.Option("--json", help="Print one JSON object for each decision, one a line.")
]


def command(
    minimum: Min = 2,
    maximum: Max = 10,
    desired: Desired = 2,
    step: Step = 1,
    connections_high: ConnectionsHigh = 7000.0,
    connections_low: ConnectionsLow = 3000.0,
    cpu_high: CpuHigh = 70.0,
    cpu_low: CpuLow = 30.0,
    margin: Margin = 0.1,
    scale_out_cooldown: OutCooldown = 60.0,
    scale_in_cooldown: InCooldown = 300.0,
    interval: Interval = 5.0,
    metrics_host: MetricsHost = "127.0.0.1",
    metrics_port: MetricsPort = None,
    dry_run: DryRun = False,
    once: Once = False,
    check: Check = False,
    log: Log = False,
    count: Count = 20,
    fleet: FleetFile = None,
    as_json: JsonLines = False,
) -> int:
    """Activate standby hosts and drain hosts, depending on the load.

    The load is connections and CPU. The command runs until SIGTERM. Several may run: one leads. A
    host that an operator drained is left alone.
    """
    settings = policy(
        min=minimum,
        max=maximum,
        desired=desired,
        step=step,
        connections_high=connections_high,
        connections_low=connections_low,
        cpu_high=cpu_high,
        cpu_low=cpu_low,
        margin=margin,
        scale_out_cooldown=scale_out_cooldown,
        scale_in_cooldown=scale_in_cooldown,
    )
    if log and not check:
        return emit(decision_log(load_fleet(fleet), count), as_json=as_json)
    if not check:
        schedule = Schedule(interval, once, dry_run, as_json)
        plan = AutoscalePlan(settings, schedule, metrics_host, metrics_port)
        run(lambda: load_fleet(fleet), plan)
    return EXIT_OK


@dataclass(frozen=True, slots=True)
class AutoscalePlan:
    """The rounds of an autoscaler, and the address of its metrics; without a port it has none."""

    policy: Policy
    schedule: Schedule
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None


def run(find: Callable[[], Fleet], plan: AutoscalePlan) -> None:
    """Run rounds until SIGTERM or SIGINT; `find` reads the fleet in each round, as it changes.

    Raises:
        CannotRun: the fleet file is missing, or the port for the metrics is taken; with `once` also
            if Redis cannot be read, for which the autoscaler otherwise waits.

    """
    find()
    autoscaler = Autoscaler(find, plan)
    if plan.metrics_port is not None:
        try:
            start_http_server(
                plan.metrics_port, plan.metrics_host, registry=autoscaler.metrics.registry
            )
        except OSError as error:
            raise CannotRun(
                f"cannot listen on {plan.metrics_host}:{plan.metrics_port}: {error.strerror}. "
                "Set another --metrics-port."
            ) from error
    autoscaler.run()


class Autoscaler(ElectedService):
    """One of the autoscalers of a fleet."""

    def __init__(self, find: Callable[[], Fleet], plan: AutoscalePlan) -> None:
        super().__init__(key_names.AUTOSCALE_LEADER, find, plan.schedule)
        self.metrics = AutoscaleMetrics()
        self._policy = plan.policy

    def on_redis(self, answers: bool) -> None:
        """Set the gauge."""
        self.metrics.redis.set(answers)

    def on_lead(self, leads: bool) -> None:
        """Set the gauge."""
        self.metrics.leader.set(leads)

    def round(self, client: Any, fleet: Fleet) -> None:
        """Read the fleet, decide, and carry the decision out."""
        settled = self.settled(client)
        if not self.leads(client):
            return
        seconds, micros = client.time()
        hosts = hosts_of(autoscaling.nodes(client, fleet))
        if settled:
            last = autoscaling.last_decision(client)
            decision = decide(self._policy, hosts, now=seconds + micros / 1e6, last=last)
        else:
            decision = Decision(
                Action.HOLD,
                "Redis was unreachable or has changed: "
                f"nodes have {NODE_DEAD_AFTER:g} s for a heartbeat",
            )
        self.metrics.show(hosts, decision)
        entry = _entry(hosts, decision)
        applied = False
        if decision.hosts and not self._schedule.dry_run:
            desired = SERVE if decision.action is Action.SCALE_OUT else DRAIN
            applied = autoscaling.apply(client, self.token, desired, decision.hosts, entry)
            if not applied:
                return  # the state has changed since it was read
            self.metrics.decisions.labels(decision.action.value).inc()
        self.say(
            (decision.action, entry["hosts"]),
            {"time": iso(seconds), "applied": applied, **entry},
            f"{decision.action.value} {' '.join(entry['hosts'])}".rstrip() + f": {decision.reason}",
            always=applied,
        )


def decision_log(fleet: Fleet, count: int) -> Report:
    """Return the report of the last decisions, the newest at the end.

    Raises:
        CannotRun: Redis cannot be read.

    """
    with connected(fleet.redis_url) as client:
        entries = autoscaling.decisions(client, count)
    decisions = [{"time": iso(seconds), **entry} for seconds, entry in entries]
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


def _entry(hosts: list[Host], decision: Decision) -> dict[str, Any]:
    """Return the log's entry of a decision: its reason, and the figures behind it."""
    places, load = Counter(host.place for host in hosts), Load.of(hosts)
    return {
        "action": decision.action.value,
        "hosts": [host.name for host in decision.hosts],
        "reason": decision.reason,
        "places": {place.value: places[place] for place in Place},
        "connections": load.connections,
        "connections_per_node": round(load.per_node, 1) if load.nodes else None,
        "cpu_percent": round(load.per_host, 1) if load.hosts else None,
    }


def policy(**settings: Any) -> Policy:
    """Return the policy that options describe.

    Raises:
        CannotRun: two of them contradict each other.

    """
    try:
        return Policy(**settings)
    except ValueError as error:
        raise CannotRun(f"{error}: change one of the two.") from error

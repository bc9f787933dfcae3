"""``wsfleet rebalance``: spread the clients over the nodes again."""

import re
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from wsfleet.cli.access import autoscaling, rebalancing
from wsfleet.cli.access.elected_service import ElectedService, Schedule
from wsfleet.cli.access.fleet_file import Fleet, load_fleet
from wsfleet.cli.access.redis import connected, iso
from wsfleet.cli.errors import EXIT_OK, CannotRun
from wsfleet.cli.measure.report import Report, emit, table
from wsfleet.cli.options import FleetFile, Json, Wait
from wsfleet.cluster.autoscale_policy import ObservedNode
from wsfleet.cluster.rebalance_policy import (
    RebalancePolicy,
    Round,
    Unevenness,
    decide,
    is_even,
    obstacle,
    plan,
    serving,
)
from wsfleet.config.settings import NODE_DEAD_AFTER
from wsfleet.redis import key_names

POLL = 0.5
"""Seconds between two reads of the registry."""


def _fraction(text: object) -> float:
    """Return 0.1 for "10%", "10 %" and "0.1"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)( ?%)?", str(text))
    value = float(found[1]) / (100 if found[2] else 1) if found else 1.0
    if not value < 1:
        raise typer.BadParameter(f"{text} is not a part of a node's share, such as 10%")
    return value


def _setting(name: str, variable: str, text: str, **bounds: Any) -> Any:
    """Return an option that the rebalancer's service sets by the environment."""
    return typer.Option(f"--{name}", envvar=f"WSFLEET_REBALANCE_{variable}", help=text, **bounds)


To = Annotated[
    float,
    _setting(
        "to",
        "TOLERANCE",
        "How far a node may be from its share of the clients, such as 10%.",
        parser=_fraction,
        metavar="PERCENT%",
    ),
]
Rate = Annotated[
    float, _setting("rate", "RATE", "Clients a second that all nodes together shed.", min=0.1)
]
Delay = Annotated[
    float,
    _setting(
        "delay", "DELAY", "With --run: seconds the nodes must be uneven before a round.", min=0
    ),
]
Cooldown = Annotated[
    float, _setting("cooldown", "COOLDOWN", "With --run: seconds from a round to the next.", min=0)
]
Interval = Annotated[
    float, _setting("interval", "INTERVAL", "With --run: seconds between two checks.", min=0.1)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the round without doing it.")]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0, help="Seconds to wait after the shedding.")
]
Service = Annotated[
    bool,
    typer.Option(
        "--run", help="Run until SIGTERM, with a round when needed. Several may run: one leads."
    ),
]
Check = Annotated[bool, typer.Option("--check", help="Check the settings and exit.")]
Hold = Annotated[
    int | None,
    typer.Option(
        "--hold",
        min=0,
        help="Forbid rounds of --run for this many seconds; 0 allows them again.",
        show_default=False,
    ),
]
Log = Annotated[bool, typer.Option("--log", help="Show the last rounds and exit.")]
Count = Annotated[int, typer.Option("--count", min=1, help="Number of rounds for --log.")]


def command(
    tolerance: To = 0.1,
    rate: Rate = 50.0,
    delay: Delay = 30.0,
    cooldown: Cooldown = 60.0,
    interval: Interval = 5.0,
    dry_run: DryRun = False,
    wait: Wait = True,
    timeout: Timeout = 60.0,
    service: Service = False,
    check: Check = False,
    hold: Hold = None,
    log: Log = False,
    count: Count = 20,
    fleet: FleetFile = None,
    as_json: Json = False,
) -> int:
    """Spread the clients over the nodes again, in one round.

    A node with more than its share asks the surplus to reconnect, and the balancer sends each of
    these clients to another node. Exit code 1 if the nodes are uneven afterwards, or with
    --dry-run now.
    """
    if check:
        return EXIT_OK
    where = load_fleet(fleet)
    rebalancing.check_stickiness(where)
    policy = RebalancePolicy(tolerance, delay, cooldown, rate)
    if service:
        schedule = Schedule(interval, dry_run=dry_run, as_json=as_json)
        Rebalancer(lambda: load_fleet(fleet), policy, schedule).run()
        return EXIT_OK
    if log:
        return emit(round_log(where, count), as_json=as_json)
    if hold is not None:
        with connected(where.redis_url) as client:
            rebalancing.hold(client, hold, "held by `wsfleet rebalance --hold`")
        return EXIT_OK
    report = run(where, policy, None if dry_run else timeout if wait else 0.0)
    if as_json:
        return emit(report, as_json=True)
    print("; ".join([report.data["result"], *report.problems]))
    return int(not report.ok)


def run(fleet: Fleet, policy: RebalancePolicy, timeout: float | None) -> Report:
    """Do one round, and wait `timeout` seconds more than it takes; None: only report it.

    Raises:
        CannotRun: Redis cannot be read, or the clients are being moved by something else.

    """
    with connected(fleet.redis_url) as client:
        nodes = autoscaling.nodes(client, fleet)
        if reason := obstacle(nodes):
            raise CannotRun(f"clients cannot be moved now: {reason}. Repeat the command later.")
        wanted = plan(serving(nodes), policy.tolerance)
        data: dict[str, Any] = {
            "result": wanted.reason,
            "shed": dict(wanted.shed),
            "connections": _connections(nodes),
        }
        if not wanted.shed:
            return Report(data)
        sheds = " and ".join(f"{name} sheds {count:,}" for name, count in wanted.shed.items())
        if timeout is None:
            return Report(data, problems=[f"{sheds} with a round"])
        rebalancing.begin(client, wanted, policy.rate)
        data["result"] += f": {sheds}"
        if timeout == 0:
            return Report(data)
        deadline = time.monotonic() + wanted.clients / policy.rate + timeout
        even = False
        while not even and time.monotonic() < deadline:
            time.sleep(POLL)
            nodes = autoscaling.nodes(client, fleet)
            even = not any(node.shedding for node in nodes) and is_even(
                serving(nodes), policy.tolerance
            )
    data["connections"] = _connections(nodes)
    after = ", ".join(f"{name} has {count:,}" for name, count in data["connections"].items())
    if even:
        data["result"] += f"; now {after}"
        return Report(data)
    return Report(data, problems=[f"still uneven after the round: {after}"])


def _connections(nodes: Sequence[ObservedNode]) -> dict[str, int]:
    return {node.name: node.connections for node in serving(nodes)}


def round_log(fleet: Fleet, count: int) -> Report:
    """Return the report of the last rounds, the newest at the end.

    Raises:
        CannotRun: Redis cannot be read.

    """
    with connected(fleet.redis_url) as client:
        entries = rebalancing.rounds(client, count)
    rounds = [{"time": iso(each.seconds), **each.entry} for each in entries]
    rows = (
        (
            each["time"],
            ", ".join(f"{node} {n:,}" for node, n in each["shed"].items()),
            each["reason"],
        )
        for each in rounds
    )
    return Report({"rounds": rounds}, [table("rounds", ("time", "clients shed", "why"), rows)])


class Rebalancer(ElectedService):
    """One of the rebalancers of a fleet."""

    def __init__(
        self, find: Callable[[], Fleet], policy: RebalancePolicy, schedule: Schedule
    ) -> None:
        super().__init__(key_names.REBALANCE_LEADER, find, schedule)
        self._policy = policy
        self._before: Unevenness | None = None

    def round(self, client: Any, fleet: Fleet) -> None:
        """Read the fleet, decide, and tell the nodes to shed."""
        settled = self.settled(client)
        if not self.leads(client):
            self._before = None
            return
        seconds, micros = client.time()
        wanted = self._decide(client, fleet, seconds + micros / 1e6, settled=settled)
        applied = False
        if wanted.shed and not self._schedule.dry_run:
            applied = rebalancing.begin(client, wanted, self._policy.rate, self.token)
            if not applied:
                return  # another process leads
            self._before = None
        shed = dict(wanted.shed)
        self.say(
            shed or re.sub(r"\d", "", wanted.reason),
            {"time": iso(seconds), "applied": applied, "shed": shed, "reason": wanted.reason},
            f"{' '.join(f'{node}: {count}' for node, count in shed.items()) or 'wait'}"
            f": {wanted.reason}",
            always=applied,
        )

    def _decide(self, client: Any, fleet: Fleet, now: float, *, settled: bool) -> Round:
        reason = rebalancing.held(client)
        if not settled:
            reason = (
                "Redis was unreachable or has changed: "
                f"nodes have {NODE_DEAD_AFTER:g} s for a heartbeat"
            )
        if reason is not None:
            self._before = None
            return Round(reason)
        last = rebalancing.rounds(client, 1)
        wanted, self._before = decide(
            self._policy,
            autoscaling.nodes(client, fleet),
            now=now,
            before=self._before,
            last=last[0].seconds if last else None,
        )
        return wanted

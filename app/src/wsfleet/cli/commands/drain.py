"""``wsfleet drain``: send the clients of nodes to the other nodes."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from wsfleet.cli.access.fleet_file import Fleet, load_fleet
from wsfleet.cli.access.redis import connected, registry
from wsfleet.cli.errors import CannotRun
from wsfleet.cli.measure.report import Report, emit, table
from wsfleet.cli.options import FleetFile, Json, Nodes, Timeout, Wait
from wsfleet.cluster.node_name import host_of
from wsfleet.cluster.node_state import DRAIN, DRAIN_STATES, NOT_RUNNING, READY, NodeState
from wsfleet.redis import key_names

#: Seconds between two reads of the registry.
POLL = 0.5

Show = Callable[[Sequence["NodeStatus"]], None]


def command(
    nodes: Nodes,
    timeout: Timeout = 120.0,
    wait: Wait = True,
    force: Annotated[
        bool, typer.Option("--force", help="Drain even if no other node is ready.")
    ] = False,
    standby: Annotated[
        bool,
        typer.Option(
            "--standby",
            help="Put the nodes into the warm pool, from which the autoscaler may bring them in. "
            "Default: they stay drained until `wsfleet undrain`.",
        ),
    ] = False,
    fleet: FleetFile = None,
    as_json: Json = False,
) -> int:
    """Send the clients of nodes to the other nodes.

    Clients leave at a limited rate. A drained node keeps running without clients, also after a
    restart, until `wsfleet undrain`.
    Exit code 1 if clients remain.
    """
    plan = DesiredStatePlan(nodes, DRAIN, timeout if wait else None, force, standby)
    return emit(run(load_fleet(fleet), plan, quiet=as_json), as_json=as_json)


@dataclass(frozen=True, slots=True)
class DesiredStatePlan:
    """Names of nodes or hosts, and their desired state, `DRAIN` or `SERVE`.

    `timeout` is in seconds; None means not to wait. `force` drains the last ready node as well.
    `standby` drains into the warm pool; else the autoscaler leaves the nodes alone.
    """

    names: Sequence[str]
    desired: str
    timeout: float | None = 120.0
    force: bool = False
    standby: bool = False


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node as the registry shows it.

    `state` is `READY`, a `NodeState`, `NOT_RUNNING`, or the reason why the node is not ready.
    """

    name: str
    state: str
    connections: int

    def reached(self, desired: str) -> bool:
        """Return whether the node is in its desired state; one that does not run is drained."""
        if desired == DRAIN:
            return self.state in (NodeState.DRAINED.value, NOT_RUNNING)
        return self.state not in (*DRAIN_STATES, NOT_RUNNING, NodeState.STARTING.value)

    def __str__(self) -> str:
        """Return one line for people."""
        return f"{self.name}: {self.state}, {self.connections:,} connections"


def run(fleet: Fleet, plan: DesiredStatePlan, *, quiet: bool) -> Report:
    """Set the desired state of nodes and wait until they reach it; `quiet` hides the progress.

    Raises:
        CannotRun: Redis cannot be read, a node is unknown, or no other node is ready.
        KeyboardInterrupt: the user ended the waiting; the desired state remains set.

    """
    with connected(fleet.redis_url) as client:
        known = registry(client)
        chosen = choose(plan.names, {*fleet.nodes, *known})
        if plan.desired == DRAIN and not plan.force:
            _keep_one_ready(known, chosen)
        mark = client.sadd if plan.standby else client.srem
        mark(key_names.AUTOSCALE_DRAINED, *chosen)
        client.hset(key_names.DESIRED, mapping=dict.fromkeys(chosen, plan.desired))
        began = time.monotonic()
        try:
            with _progress(quiet=quiet) as show:
                nodes = _wait(client, chosen, plan, show)
        except KeyboardInterrupt:
            _print_what_continues(plan)
            raise
    waited = plan.timeout is not None
    late = [node for node in nodes if waited and not node.reached(plan.desired)]
    data = {
        "wanted": plan.desired,
        "nodes": [asdict(node) for node in nodes],
        "seconds": round(time.monotonic() - began, 1),
    }
    return Report(data, [_table(nodes)], [f"{node}, after {plan.timeout:g} s" for node in late])


def choose(words: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the nodes that words name; a host's name without a port names all of its nodes.

    Raises:
        CannotRun: a word names no node.

    """
    names = sorted(known)
    chosen: set[str] = set()
    for word in words:
        found = {name for name in names if word in (name, host_of(name))}
        if not found:
            raise CannotRun(f"unknown node {word}: name one of {', '.join(names)}.")
        chosen |= found
    return sorted(chosen)


def _keep_one_ready(known: dict[str, dict[str, Any]], chosen: list[str]) -> None:
    """Raise CannotRun if every ready node is among the chosen ones."""
    others = [
        name
        for name, said in known.items()
        if said["live"] and said.get("state") == READY and name not in chosen
    ]
    if not others:
        raise CannotRun(
            "no other node is ready to take the clients: start or undrain another node first, or "
            "drain with --force."
        )


def _wait(client: Any, chosen: list[str], plan: DesiredStatePlan, show: Show) -> list[NodeStatus]:
    deadline = time.monotonic() + (plan.timeout or 0.0)
    while True:
        nodes = _read(client, chosen)
        show(nodes)
        if all(node.reached(plan.desired) for node in nodes) or time.monotonic() >= deadline:
            return nodes
        time.sleep(POLL)


def _read(client: Any, chosen: list[str]) -> list[NodeStatus]:
    known = registry(client)
    nodes = []
    for name in chosen:
        said = known.get(name, {"live": False})
        state = said.get("state", NOT_RUNNING) if said["live"] else NOT_RUNNING
        count = int(said.get("connections", 0)) if said["live"] else 0
        nodes.append(NodeStatus(name, state, count))
    return nodes


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Show]:
    """Yield a function that shows the nodes: a bar on a terminal, else a line for each change."""
    console = Console(highlight=False)
    if quiet:
        yield lambda nodes: None
    elif not console.is_terminal:
        seen: set[str] = set()

        def lines(nodes: Sequence[NodeStatus]) -> None:
            for line in (str(node) for node in nodes if str(node) not in seen):
                console.print(line, markup=False, soft_wrap=True)
                seen.add(line)

        yield lines
    else:
        columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=None)
            most = 0

            def bar(nodes: Sequence[NodeStatus]) -> None:
                nonlocal most
                left = sum(node.connections for node in nodes)
                most = max(most, left)
                text = f"{left:,} connections left"
                progress.update(task, total=most or None, completed=most - left, description=text)

            yield bar


def _print_what_continues(plan: DesiredStatePlan) -> None:
    names = " ".join(plan.names)
    if plan.desired == DRAIN:
        text = f"The drain continues. `wsfleet undrain {names}` ends it."
    else:
        text = f"The nodes will serve as soon as they can. `wsfleet drain {names}` cancels this."
    print(f"\n{text}", file=sys.stderr)


def _table(nodes: list[NodeStatus]) -> Any:
    rows = [(node.name, node.state, node.connections) for node in nodes]
    return table("nodes", ("node", "state", ">connections"), rows)

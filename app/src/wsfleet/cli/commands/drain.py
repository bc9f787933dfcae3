"""``wsfleet drain``, ``undrain`` and ``forget``: what is wanted of nodes, and how far they are."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from wsfleet.cli import CannotRun
from wsfleet.cli.access.fleet_file import Fleet
from wsfleet.cli.access.redis import DRAIN_STATES, connected, registry
from wsfleet.cli.measure.report import Report, table
from wsfleet.cluster.node_state import DRAIN, NOT_RUNNING
from wsfleet.redis import key_names

_POLL = 0.5  # seconds

Show = Callable[[Sequence["Node"]], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """Nodes or hosts, and what is wanted of them: `node_state.DRAIN` or `node_state.SERVE`.

    `timeout` is in seconds; None: do not wait. `force` lets the last ready node drain as well.
    """

    names: Sequence[str]
    wanted: str
    timeout: float | None = 120.0
    force: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A node as the registry shows it: `state` is ready, draining, drained or why not ready."""

    name: str
    state: str
    connections: int

    def is_as(self, wanted: str) -> bool:
        """Whether it is what was wanted; a node that does not run has no clients to send away."""
        if wanted == DRAIN:
            return self.state in (DRAIN_STATES[-1], NOT_RUNNING)
        return self.state not in (*DRAIN_STATES, NOT_RUNNING, "starting")

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.name}: {self.state}, {self.connections:,} connections"


def run(fleet: Fleet, plan: Plan, *, quiet: bool) -> Report:
    """Say what is wanted and wait until it is so; `quiet` shows nothing meanwhile.

    Raises:
        CannotRun: Redis cannot be read, there is no such node, or no other node is ready.
        KeyboardInterrupt: the waiting was ended; what was wanted stays so.

    """
    with connected(fleet.redis_url) as client:
        known = registry(client)
        chosen = choose(plan.names, {*fleet.nodes, *known})
        if plan.wanted == DRAIN and not plan.force:
            _spare_the_last(known, chosen)
        client.srem(key_names.AUTOSCALE_DRAINED, *chosen)  # an operator's word now
        client.hset(key_names.DESIRED, mapping=dict.fromkeys(chosen, plan.wanted))
        began = time.monotonic()
        try:
            with _progress(quiet=quiet) as show:
                nodes = _wait(client, chosen, plan, show)
        except KeyboardInterrupt:
            _say_what_goes_on(plan)
            raise
    waited = plan.timeout is not None
    late = [node for node in nodes if waited and not node.is_as(plan.wanted)]
    data = {
        "wanted": plan.wanted,
        "nodes": [asdict(node) for node in nodes],
        "seconds": round(time.monotonic() - began, 1),
    }
    return Report(data, [_table(nodes)], [f"{node}, after {plan.timeout:g} s" for node in late])


def forget(fleet: Fleet, names: Sequence[str], timeout: float) -> Report:
    """Leave no trace of nodes that are gone for good; `timeout` in seconds.

    Raises:
        CannotRun: Redis cannot be read, there is no such node, or one of them is alive.

    """
    with connected(fleet.redis_url) as client:
        known = registry(client)
        chosen = choose(names, {*fleet.nodes, *known, *client.hkeys(key_names.DESIRED)})
        alive = [name for name in chosen if known.get(name, {}).get("live")]
        if alive:
            raise CannotRun(f"{', '.join(alive)} still runs: stop and disable its service first.")
        deadline = time.monotonic() + timeout
        while (left := _traces(client, chosen)) and time.monotonic() < deadline:
            time.sleep(_POLL)
        client.hdel(key_names.DESIRED, *chosen)
        client.srem(key_names.AUTOSCALE_DRAINED, *chosen)
        for name in chosen:
            client.delete(key_names.samples(name))
    problems = [f"{key} is still there: is any node alive to clear it away?" for key in left]
    return Report({"forgotten": chosen, "left": left}, [], problems)


def choose(words: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the nodes that are meant; a host's name, without a port, means all of its nodes.

    Raises:
        CannotRun: a word means none.

    """
    names = sorted(known)
    chosen: set[str] = set()
    for word in words:
        found = {name for name in names if word in (name, name.rpartition("-")[0])}
        if not found:
            raise CannotRun(f"there is no node {word}, only {', '.join(names)}.")
        chosen |= found
    return sorted(chosen)


def _spare_the_last(known: dict[str, dict[str, Any]], chosen: list[str]) -> None:
    others = [
        name
        for name, said in known.items()
        if said["live"] and said.get("state") == "ready" and name not in chosen
    ]
    if not others:
        raise CannotRun(
            "no other node is ready, so their clients could go nowhere: "
            "start or undrain another one first, or say --force."
        )


def _wait(client: Any, chosen: list[str], plan: Plan, show: Show) -> list[Node]:
    deadline = time.monotonic() + (plan.timeout or 0.0)
    while True:
        nodes = _look(client, chosen)
        show(nodes)
        if all(node.is_as(plan.wanted) for node in nodes) or time.monotonic() >= deadline:
            return nodes
        time.sleep(_POLL)


def _look(client: Any, chosen: list[str]) -> list[Node]:
    known = registry(client)
    nodes = []
    for name in chosen:
        said = known.get(name, {"live": False})
        state = said.get("state", NOT_RUNNING) if said["live"] else NOT_RUNNING
        count = int(said.get("connections", 0)) if said["live"] else 0
        nodes.append(Node(name, state, count))
    return nodes


def _traces(client: Any, chosen: list[str]) -> list[str]:
    """Return what is left of nodes in the registry; the other nodes clear it away."""
    registered = client.zrange(key_names.NODES, 0, -1)
    left = [name for name in chosen if name in registered]
    every = [key for name in chosen for key in (key_names.node(name), key_names.node_clients(name))]
    return left + [key for key in every if client.exists(key)]


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Show]:
    """Yield what shows the nodes: a bar on a terminal, else a line for each change."""
    console = Console(highlight=False)
    if quiet:
        yield lambda nodes: None
    elif not console.is_terminal:
        seen: set[str] = set()

        def lines(nodes: Sequence[Node]) -> None:
            for line in (str(node) for node in nodes if str(node) not in seen):
                console.print(line, markup=False, soft_wrap=True)
                seen.add(line)

        yield lines
    else:
        columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=None)
            most = 0

            def bar(nodes: Sequence[Node]) -> None:
                nonlocal most
                left = sum(node.connections for node in nodes)
                most = max(most, left)
                text = f"{left:,} connections left"
                progress.update(task, total=most or None, completed=most - left, description=text)

            yield bar


def _say_what_goes_on(plan: Plan) -> None:
    names = " ".join(plan.names)
    if plan.wanted == DRAIN:
        text = f"The drain goes on. `wsfleet undrain {names}` ends it."
    else:
        text = f"The nodes serve as soon as they can. `wsfleet drain {names}` takes it back."
    print(f"\n{text}", file=sys.stderr)


def _table(nodes: list[Node]) -> Any:
    rows = [(node.name, node.state, node.connections) for node in nodes]
    return table("nodes", ("node", "state", ">connections"), rows)

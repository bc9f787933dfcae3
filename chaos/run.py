"""Run faults one after the other: the cluster is healthy again before the next one."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress

from chaos.clients import Clients, read_events
from chaos.cluster import Cluster, CommandError, by_node
from chaos.disconnects import read_connections, wait_for_disconnects
from chaos.evenness import ClientCounts, moves
from chaos.faults import FAULTS
from chaos.report import HEALTHY_TIMEOUT, ChannelResult, FaultResult, Outcome
from chaos.schedule import Step
from lab.waiting import attempts

#: Seconds in which clients must spread over the nodes, and until they have reconnected.
SPREAD_TIMEOUT, RECONNECT_PAUSE = 30.0, 3.0


def progress(text: str) -> None:
    """Print the progress of the run to stderr."""
    print(text, file=sys.stderr, flush=True)


def wait_until_healthy(
    find_problem: Callable[[], str | None], seconds: float = HEALTHY_TIMEOUT
) -> str | None:
    """Wait until the cluster is healthy; return its problem if the time is over."""
    problem: str | None = None
    for _ in attempts(seconds, 0.5):
        try:
            problem = find_problem()
        except CommandError as error:  # a booting machine answers nothing
            problem = str(error)
        if problem is None:
            break
    return problem


def count_clients(connections: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return the number of clients at each host with nodes."""
    return {host: sum(nodes.values()) for host, nodes in connections.items()}


def spread(
    cluster: Cluster, seconds: float = SPREAD_TIMEOUT, pause: float = RECONNECT_PAUSE
) -> dict[str, int]:
    """Spread the clients, and return the number of clients at each host with nodes.

    Clients stay where they are when a node returns. So while a host has less than half of an equal
    share, the connections of the fullest node are closed, and the balancer assigns them again.
    """
    for _ in attempts(seconds, pause):
        connections = cluster.connections()
        clients = count_clients(connections)
        counts = [clients[host] for host, nodes in connections.items() if nodes]
        if min(counts, default=0) and 2 * min(counts) * len(counts) >= sum(counts):
            return clients
        nodes = by_node(connections)
        if any(nodes.values()):
            # A balancer that has just booted may not answer yet: the next attempt asks again.
            with suppress(CommandError):
                cluster.close_connections(max(nodes, key=nodes.__getitem__))
    return count_clients(cluster.connections())


def clients_hit(step: Step, counts: Mapping[str, int]) -> int:
    """Return the number of clients at the target: all of them, unless it is one node's host."""
    if FAULTS[step.name].target == "wsnodes":
        return counts.get(step.target, 0)
    return sum(counts.values())


def run_fault(cluster: Cluster, step: Step, hit: int, stop: threading.Event) -> FaultResult:
    """Inject a fault, hold it, heal it, and wait until the cluster is healthy."""
    roles = {"primary": cluster.primary, "active": cluster.active_balancer}
    host = roles[step.target]() if step.target in roles else step.target
    result = FaultResult(step, host, hit, time.time())
    try:
        with FAULTS[step.name].make(cluster, host):
            stop.wait(step.hold)
            result.held = time.time() - result.began
    except CommandError as error:
        result.problem = str(error)
    result.healed = time.time()
    problem = wait_until_healthy(cluster.find_problem)
    if problem is None:
        result.healthy_after = time.time() - result.healed
    elif result.problem is None:
        result.problem = f"the cluster was not healthy after {HEALTHY_TIMEOUT:g} s: {problem}"
    return result


def wait_until_even(
    cluster: Cluster,
    counts: ClientCounts,
    result: FaultResult,
    seconds: float,
    stop: threading.Event,
) -> None:
    """Wait until the cluster has spread the clients by itself, and record its rounds."""
    if counts.wait_until_even(result.healed + seconds - time.time(), stop):
        result.even_after = time.time() - result.healed
    elif stop.is_set():
        return
    elif result.problem is None:
        result.problem = f"the clients were not even after {seconds:g} s"
    result.moves = moves(cluster, result.began, time.time())


def run(
    cluster: Cluster,
    steps: list[Step],
    channels: Sequence[Clients],
    seed: int,
    stop: threading.Event,
    *,
    even: float | None = None,
    application: bool = False,
) -> Outcome:
    """Run all steps while clients publish and subscribe; end early when `stop` is set.

    With `even`, the cluster must have spread the clients within that many seconds after each
    repair. With an `application`, deploy it first; it must be told of the end of each connection.

    Raises:
        CommandError: the cluster is not healthy at the start, or clients cannot use it.

    """
    cluster.heal()
    problem = wait_until_healthy(cluster.find_problem)
    if problem is not None:
        raise CommandError(f"the cluster is not healthy at the start: {problem}")
    if application:
        progress("deploying the application")
        cluster.playbook("playbooks/rolling_update.yml")
    outcome = Outcome(seed, len(steps), counts=ClientCounts(cluster) if even else None)
    try:
        with ExitStack() as stack:
            for clients in channels:
                stack.enter_context(clients)
            if outcome.counts is not None:
                stack.enter_context(outcome.counts)
            for clients in channels:
                clients.wait_for_messages()
            _run_steps(cluster, steps, channels, outcome, stop, even)
            verdicts = [clients.finish() for clients in channels]
    finally:
        cluster.heal()
    for clients, verdict in zip(channels, verdicts, strict=True):
        events = read_events(clients.events)
        outcome.channels.append(ChannelResult(clients.channel, verdict, clients.events, events))
    if application:
        connected = [read_connections(channel.events) for channel in outcome.channels]
        outcome.disconnects = wait_for_disconnects(cluster, set().union(*connected))
    return outcome


def _run_steps(
    cluster: Cluster,
    steps: list[Step],
    channels: Sequence[Clients],
    outcome: Outcome,
    stop: threading.Event,
    even: float | None,
) -> None:
    """Run the steps one after the other.

    A step whose target has no clients would prove nothing: it is repeated once, after all others.
    """
    faults, counts = outcome.faults, outcome.counts
    queue = deque((step, True) for step in steps)
    while queue:
        step, first = queue.popleft()
        stop.wait(step.pause)
        if stop.is_set() or not all(clients.running for clients in channels):
            return
        if faults:
            faults[-1].ended = min(faults[-1].ended, time.time())
        hit = clients_hit(step, spread(cluster))
        if not hit:
            progress(f"{step.name:25} {step.target:18} not counted: it has no clients")
            if first:
                queue.append((step, False))
            else:
                outcome.refused.append(step)
            continue
        result = run_fault(cluster, step, hit, stop)
        faults.append(result)
        if counts is not None and even and result.healthy_after is not None:
            wait_until_even(cluster, counts, result, even, stop)
        progress(str(result))
        if result.healthy_after is None:
            return

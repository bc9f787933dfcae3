"""``wsfleet forget``: delete the keys of nodes that are gone."""

import time
from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType

from wsfleet.cli.access.fleet_file import Fleet, load_fleet
from wsfleet.cli.access.redis import connected, registry
from wsfleet.cli.commands.drain import POLL, choose
from wsfleet.cli.errors import CannotRun
from wsfleet.cli.measure.report import Report, emit
from wsfleet.cli.options import FleetFile, Json, Nodes, Timeout
from wsfleet.redis import key_names


def command(
    nodes: Nodes, timeout: Timeout = 30.0, fleet: FleetFile = None, as_json: Json = False
) -> int:
    """Delete the keys of nodes that are gone.

    The nodes must be stopped for good. Exit code 1 if a key remains in Redis.
    """
    return emit(run(load_fleet(fleet), nodes, timeout), as_json=as_json)


def run(fleet: Fleet, names: Sequence[str], timeout: float) -> Report:
    """Wait up to `timeout` seconds for running nodes to delete their part, and delete the rest.

    A running node takes over the disconnects that a dead node has not told the application; those
    of a node that is out of the registry have no one left to tell them.

    Raises:
        CannotRun: Redis cannot be read, a node is unknown, or one of the nodes is running.

    """
    with connected(fleet.redis_url) as client:
        known = registry(client)
        chosen = choose(names, {*fleet.nodes, *known, *client.hkeys(key_names.DESIRED)})
        alive = [name for name in chosen if known.get(name, {}).get("live")]
        if alive:
            raise CannotRun(f"{', '.join(alive)} still runs: stop and disable its service first.")
        deadline = time.monotonic() + timeout
        while (left := _traces(client, chosen)) and time.monotonic() < deadline:
            time.sleep(POLL)
        client.hdel(key_names.DESIRED, *chosen)
        client.srem(key_names.AUTOSCALE_DRAINED, *chosen)
        untold = 0
        for name in chosen:
            client.delete(key_names.samples(name))
            if name not in left:
                untold += client.hlen(key_names.node_disconnects(name))
                client.delete(key_names.node_disconnects(name))
    problems = [f"{key} remains: a running node deletes it, so check that one runs" for key in left]
    views: list[RenderableType] = []
    if untold:
        views.append(f"{untold} disconnects are deleted that no application was told of")
    data = {"forgotten": chosen, "left": left, "untold_disconnects": untold}
    return Report(data, views, problems)


def _traces(client: Any, chosen: list[str]) -> list[str]:
    """Return the keys of nodes that are left in the registry; the running nodes delete them."""
    registered = client.zrange(key_names.NODES, 0, -1)
    left = [name for name in chosen if name in registered]
    every = [key for name in chosen for key in (key_names.node(name), key_names.node_clients(name))]
    return left + [key for key in every if client.exists(key)]

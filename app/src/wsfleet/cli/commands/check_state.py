"""``wsfleet check state``: no ``connection:`` or ``state:`` key of Redis may be an orphan."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from wsfleet.cli.access.fleet_file import load_fleet
from wsfleet.cli.access.redis import batches, connected, live_nodes, shown
from wsfleet.cli.measure.report import Report, emit, table
from wsfleet.cli.options import FleetFile, Json
from wsfleet.redis import key_names

# Keys stay bytes: a key is checked whatever bytes its name has.
_STATE, _CONNECTION = key_names.state("").encode(), key_names.connection("").encode()
_CLIENTS_HEAD, _CLIENTS_TAIL = (part.encode() for part in key_names.node_clients("|").split("|"))
_SCAN_COUNT = 1000  # keys looked at by one SCAN call: a few hundred µs of the server's time

#: The kinds of findings.
DEAD_NODE = "connection_of_dead_node"
NOT_MEMBER = "connection_unknown_to_its_node"
NO_CONNECTION = "client_without_connection"
NO_OWNER = "state_without_owner"
DIFFERS = "differs_between_servers"


def command(
    fleet: FleetFile = None,
    redis: Annotated[
        list[str] | None,
        typer.Option(
            "--redis",
            metavar="URL",
            help="Read this Redis instead of the fleet file's; repeat it to compare several.",
            show_default=False,
        ),
    ] = None,
    settle: Annotated[
        float,
        typer.Option(min=0, max=60, help="Seconds before suspects are read a second time."),
    ] = 2.0,
    as_json: Json = False,
) -> int:
    """Check that no key of a client in Redis is an orphan.

    It checks the keys connection: and state: of all clients. Exit code 1 if there are orphans.
    """
    urls = redis or [load_fleet(fleet).redis_url]
    return emit(run(urls, settle), as_json=as_json)


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One key that is wrong; two equal findings some time apart are the same fault."""

    kind: str
    key: bytes
    detail: str


@dataclass
class Snapshot:
    """The names in one Redis: clients by kind of key, and (node, client) of the nodes' sets."""

    connections: list[bytes] = field(default_factory=list)
    states: list[bytes] = field(default_factory=list)
    members: list[tuple[bytes, bytes]] = field(default_factory=list)


def snapshot(client: Any) -> Snapshot:
    """Collect all names with SCAN, which does not block the server as KEYS does.

    SCAN may return a name twice, or miss one that comes or goes meanwhile; neither is a finding.
    """
    connections, states, nodes = set(), set(), set()
    for key in client.scan_iter(count=_SCAN_COUNT):
        if key.startswith(_CONNECTION):
            connections.add(key.removeprefix(_CONNECTION))
        elif key.startswith(_STATE):
            states.add(key.removeprefix(_STATE))
        elif key.startswith(_CLIENTS_HEAD) and key.endswith(_CLIENTS_TAIL):
            nodes.add(key.removeprefix(_CLIENTS_HEAD).removesuffix(_CLIENTS_TAIL))
    members = [
        (node, name)
        for node in sorted(nodes)
        for name in client.sscan_iter(_clients(node), count=_SCAN_COUNT)
    ]
    return Snapshot(sorted(connections), sorted(states), members)


def orphans(client: Any, names: Snapshot) -> set[Finding]:
    """Return the orphans among the given names; each key is read again."""
    return {
        *_wrong_connections(client, names.connections),
        *_wrong_members(client, names.members),
        *_wrong_states(client, names.states),
    }


def _wrong_connections(client: Any, names: list[bytes]) -> Iterator[Finding]:
    """Yield each connection: key without a live node that has the client in its set."""
    live = live_nodes(client)
    for some in batches(names):
        pipe = client.pipeline(transaction=False)
        for name in some:
            pipe.get(_CONNECTION + name)
        held = [(name, node) for name, node in zip(some, pipe.execute(), strict=True) if node]
        pipe = client.pipeline(transaction=False)
        for name, node in held:
            pipe.sismember(_clients(node), name)
        for (name, node), member in zip(held, pipe.execute(), strict=True):
            if node not in live:
                yield Finding(DEAD_NODE, _CONNECTION + name, f"node {_text(node)} is not live")
            elif not member:
                detail = f"node {_text(node)} does not know it"
                yield Finding(NOT_MEMBER, _CONNECTION + name, detail)


def _wrong_members(client: Any, members: list[tuple[bytes, bytes]]) -> Iterator[Finding]:
    """Yield each member of a node's set without a connection: key that names the node."""
    for some in batches(members):
        pipe = client.pipeline(transaction=False)
        for node, name in some:
            pipe.sismember(_clients(node), name)
            pipe.get(_CONNECTION + name)
        answers = pipe.execute()
        for (node, name), member, holder in zip(some, answers[::2], answers[1::2], strict=True):
            if member and holder != node:
                where = f"is on {_text(holder)}" if holder else "has no connection: key"
                detail = f"its client {_text(name)} {where}"
                yield Finding(NO_CONNECTION, _clients(node), detail)


def _wrong_states(client: Any, names: list[bytes]) -> Iterator[Finding]:
    """Yield each state: key with neither an owner's connection: key nor a TTL."""
    for some in batches(names):
        pipe = client.pipeline(transaction=False)
        for name in some:
            pipe.exists(_CONNECTION + name)
            pipe.ttl(_STATE + name)
        answers = pipe.execute()
        for name, owned, ttl in zip(some, answers[::2], answers[1::2], strict=True):
            if not owned and ttl == -1:  # -2 means: deleted meanwhile
                yield Finding(NO_OWNER, _STATE + name, "no connection: key and no TTL")


def differences(first: Any, second: Any, every: Iterable[bytes], where: str) -> set[Finding]:
    """Return the given keys that differ between two servers now.

    A connection: key must name the same node on both. A state: key must exist on both; its value,
    the last message, may change between the two reads.
    """
    found = set()
    for some in batches(list(every)):
        answers = (_read(client, some) for client in (first, second))
        for key, here, there in zip(some, *answers, strict=True):
            if here != there:
                detail = f"{_value(here)} here, {_value(there)} at {where}"
                found.add(Finding(DIFFERS, key, detail))
    return found


def _read(client: Any, some: Iterable[bytes]) -> list[Any]:
    pipe = client.pipeline(transaction=False)
    for key in some:
        if key.startswith(_CONNECTION):
            pipe.get(key)
        else:
            pipe.exists(key)
    return list(pipe.execute())


def _value(value: bytes | int | None) -> str:
    if isinstance(value, bytes):
        return _text(value)
    return "there" if value else "missing"


def _clients(node: bytes) -> bytes:
    return _CLIENTS_HEAD + node + _CLIENTS_TAIL


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def run(urls: list[str], settle: float) -> Report:
    """Check the first Redis, and compare the others with it; `settle` is in seconds.

    Raises:
        CannotRun: one of them cannot be read.

    """
    with ExitStack() as stack:
        first, *others = [stack.enter_context(connected(url, decode=False)) for url in urls]
        names = snapshot(first)
        suspects = orphans(first, names)
        compared = {}
        for url, client in zip(urls[1:], others, strict=True):
            theirs = snapshot(client)
            every = _keys(names) | _keys(theirs)
            compared[url] = (client, differences(first, client, every, shown(url)))
        if suspects or any(found for _, found in compared.values()):
            # A node changes a client's keys one after the other (set, key, state), a replica
            # follows later, and the keys are read one after the other. So keys that change look
            # wrong for milliseconds. An orphan remains: a finding counts if it is the same in a
            # second read.
            time.sleep(settle)
            suspects &= orphans(first, names)
            for url, (client, found) in compared.items():
                again = differences(first, client, {each.key for each in found}, shown(url))
                suspects |= found & again
        live = sorted(_text(node) for node in live_nodes(first))
    return _report(names, live, sorted(suspects), [shown(url) for url in urls])


def _keys(names: Snapshot) -> set[bytes]:
    return {_CONNECTION + name for name in names.connections} | {
        _STATE + name for name in names.states
    }


def _report(names: Snapshot, live: list[str], found: list[Finding], urls: list[str]) -> Report:
    findings = [
        {"kind": each.kind, "key": _text(each.key), "detail": each.detail} for each in found
    ]
    counts = {
        "connections": len(names.connections),
        "states": len(names.states),
        "node_clients": len(names.members),
    }
    data = {
        "redis": urls,
        "live_nodes": live,
        **counts,
        "orphans": findings,
        "orphans_by_kind": dict(Counter(finding.kind for finding in found)),
    }
    overview = [
        ("live nodes", ", ".join(live) or "none"),
        ("connection:* keys", counts["connections"]),
        ("state:* keys", counts["states"]),
        ("clients in the nodes' sets", counts["node_clients"]),
        ("orphans", len(found)),
    ]
    problems = [f"{each['key']}: {each['detail']} ({each['kind']})" for each in findings]
    return Report(data, [table("state", ("", ">value"), overview)], problems)

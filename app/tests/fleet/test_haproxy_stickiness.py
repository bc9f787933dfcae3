"""Stickiness by a key in path, header or query, across several balancers."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.waiting import until
from tests.support.balancer import Balancer, Server, balancer, servers

NAMES = [f"node{number}-8001" for number in range(1, 5)]
ROOMS = range(100)
Nodes = list[Server]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Return four nodes."""
    with servers(*NAMES) as running:
        yield running


@pytest.fixture
def start(processes: None, tmp_path: Path, nodes: Nodes) -> Iterator[Callable[..., Balancer]]:
    """Return a function that starts a balancer before nodes with a stickiness."""
    with ExitStack() as stack:
        numbers = itertools.count(1)

        def started(stickiness: str, before: Nodes | None = None) -> Balancer:
            folder = tmp_path / f"lb{next(numbers)}"
            front = stack.enter_context(
                balancer(folder, before or nodes, haproxy_stickiness=stickiness)
            )
            until(
                lambda: {front.status(node) for node in before or nodes} == {"UP"}, "nodes are up"
            )
            return front

        yield started


Request = Callable[[int], tuple[str, dict[str, str]]]
REQUESTS: dict[str, Request] = {
    "path": lambda room: (f"/rooms/{room}", {}),
    "path 2": lambda room: (f"/rooms/{room}", {}),
    "header X-Room": lambda room: ("/join", {"X-Room": f"room {room}"}),
    "query room": lambda room: (f"/join?token=secret&room={room}", {}),
}
"""By stickiness: the path and the headers of a request of a room."""


def node_of(front: Balancer, stickiness: str, room: int) -> str:
    """Return the node that gets a new client of a room."""
    path, headers = REQUESTS[stickiness](room)
    answer = front.get(path, headers)
    assert "Set-Cookie" not in answer.headers
    return str(answer.seen["server"])


def map_of(front: Balancer, stickiness: str) -> dict[int, str]:
    """Return the node of each room."""
    return {room: node_of(front, stickiness, room) for room in ROOMS}


@pytest.mark.parametrize("stickiness", REQUESTS)
def test_clients_of_a_key_meet(start: Callable[..., Balancer], stickiness: str) -> None:
    """Each client of a room gets the room's node, and each node has rooms."""
    front = start(stickiness)
    rooms = map_of(front, stickiness)
    assert map_of(front, stickiness) == rooms
    counts = [list(rooms.values()).count(name) for name in NAMES]
    assert min(counts) >= len(ROOMS) / len(NAMES) / 3, counts


@pytest.mark.parametrize("stickiness", REQUESTS)
def test_balancers_agree(start: Callable[..., Balancer], nodes: Nodes, stickiness: str) -> None:
    """Both balancers choose the same node for a room, in any order of their nodes."""
    one, other = start(stickiness), start(stickiness, nodes[::-1])
    assert map_of(one, stickiness) == map_of(other, stickiness)


def test_segments_of_a_path_are_a_room(start: Callable[..., Balancer]) -> None:
    """Only the segment names a room, not a deeper path, a query or a final `/`."""
    front = start("path 2")
    for room in range(20):
        home = node_of(front, "path 2", room)
        for more in ("/", "/ws", "/pin/7", "?token=x", "/ws?a=/b/c"):
            assert front.get(f"/rooms/{room}{more}").seen["server"] == home
    assert len(set(map_of(front, "path 2").values())) == len(NAMES)


@pytest.mark.parametrize("stickiness", REQUESTS)
def test_a_drain_moves_a_room_to_one_other_node(
    start: Callable[..., Balancer], nodes: Nodes, stickiness: str
) -> None:
    """A drained node's rooms move to one node each, and return after the undrain."""
    balancers = start(stickiness), start(stickiness, nodes[::-1])
    before = map_of(balancers[0], stickiness)
    drained = nodes[0]
    drained.ready = False
    until(lambda: {front.status(drained) for front in balancers} == {"DOWN"}, "it is out")
    after = map_of(balancers[0], stickiness)
    assert map_of(balancers[1], stickiness) == after
    moved = {room for room in ROOMS if before[room] != after[room]}
    assert moved == {room for room in ROOMS if before[room] == drained.name}
    assert len({after[room] for room in moved}) > 1  # no node gets all of them
    drained.ready = True
    until(lambda: {front.status(drained) for front in balancers} == {"UP"}, "it is back")
    for front in balancers:
        assert map_of(front, stickiness) == before


@pytest.mark.parametrize("stickiness", REQUESTS)
def test_a_node_that_refuses_keeps_its_rooms(
    start: Callable[..., Balancer], nodes: Nodes, stickiness: str
) -> None:
    """Until a check fails, clients of a failing node get 503 and no other node."""
    front = start(stickiness)
    rooms = map_of(front, stickiness)
    (room, *_) = [room for room in ROOMS if rooms[room] == nodes[0].name]
    path, headers = REQUESTS[stickiness](room)
    for node in nodes:
        node.requests.clear()
    nodes[0].status = 503
    assert front.get(path, headers).status == 503
    assert [node.requests for node in nodes] == [[f"GET {path}"], [], [], []]


def test_a_new_node_takes_its_share(start: Callable[..., Balancer], nodes: Nodes) -> None:
    """Only the rooms of the new node move."""
    before, after = map_of(start("path", nodes[1:]), "path"), map_of(start("path"), "path")
    moved = {room for room in ROOMS if before[room] != after[room]}
    assert {after[room] for room in moved} == {nodes[0].name}
    assert 0 < len(moved) < len(ROOMS) / 2


def test_a_request_without_the_key_is_served(start: Callable[..., Balancer]) -> None:
    """Any node serves a request without the key."""
    for stickiness in ("header X-Room", "query room"):
        front = start(stickiness)
        assert len({front.get("/").seen["server"] for _ in range(20)}) > 1

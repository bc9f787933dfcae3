"""``wsfleet load`` against nodes with faults of every kind, and against a real fleet."""

import asyncio
import json
import signal
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Response

from tests.support.command import COMMAND, Outcome, wsfleet
from tests.support.fleet import Rig
from tests.support.websocket_server import Serve

#: 4 clients and 20 messages: message n is client n % 4's, and has 3 receivers.
OPTIONS = ("--clients", 4, "--rate", 40, "--duration", 0.5, "--json")
MESSAGES, RECEIVERS = 20, 3
#: For runs where something is missing to the end: they wait for it as long as this.
SHORT_DRAIN = ("--drain", 2)


class Node:
    """A small node; a test says what it does with each delivery and each answer."""

    def __init__(self) -> None:
        self.clients: list[ServerConnection] = []
        self.copies: Callable[[int, bool], int] = lambda number, own: 0 if own else 1
        self.answer: Callable[[int], dict[str, Any] | None] = lambda number: {"type": "ack"}
        self.first = asyncio.Event()  # a message came
        self.held: int | None = None  # this message is delivered only after the next but three

    async def handle(self, connection: ServerConnection) -> None:
        """Serve one client."""
        self.clients.append(connection)
        async for text in connection:
            data = json.loads(text)
            number = data["number"]
            self.first.set()
            if number != self.held:
                await self._broadcast(connection, data)
            if self.held is not None and number == self.held + 4:
                await self._broadcast(connection, {**data, "number": self.held})
            answer = self.answer(number)
            if answer is not None:
                await connection.send(json.dumps({"hostname": "n1", **answer}))

    async def _broadcast(self, sender: ServerConnection, data: dict[str, Any]) -> None:
        text = json.dumps({"type": "message", "hostname": "n1", "data": data})
        for client in self.clients:
            for _ in range(self.copies(data["number"], client is sender)):
                await client.send(text)


@pytest.fixture
def node() -> Node:
    """A node without a fault so far."""
    return Node()


async def loaded(serve: Serve, node: Node, *options: Any, **serving: Any) -> Outcome:
    """Run the command against the node."""
    url = await serve(node.handle, **serving)
    return await asyncio.to_thread(wsfleet, "load", url, *OPTIONS, *options)


@pytest.mark.usefixtures("processes")
async def test_a_faultless_node_passes(serve_websocket: Serve, node: Node) -> None:
    """Everything arrived once: exit code 0, and exactly as many deliveries as there must be."""
    outcome = await loaded(serve_websocket, node)
    document = outcome.document
    assert outcome.code == 0, document
    assert document["sent"] == document["acknowledged"] == MESSAGES
    assert document["deliveries"] == document["expected"] == MESSAGES * RECEIVERS
    assert document["delivery_latency"]["count"] == MESSAGES * RECEIVERS
    assert document["ack_latency"]["count"] == MESSAGES
    assert document["connect_latency"]["count"] == 4
    assert document["nodes"] == {"n1": 4}
    assert document["problems"] == []


@pytest.mark.usefixtures("processes")
async def test_a_lost_message_is_found(serve_websocket: Serve, node: Node) -> None:
    """A message nobody got is lost once for each receiver: exit code 1."""
    node.copies = lambda number, own: 0 if own or number == 7 else 1
    outcome = await loaded(serve_websocket, node, *SHORT_DRAIN)
    assert outcome.code == 1
    assert outcome.document["lost"] == RECEIVERS
    assert outcome.document["duplicated"] == 0


@pytest.mark.usefixtures("processes")
async def test_a_doubled_message_is_found(serve_websocket: Serve, node: Node) -> None:
    """A message sent twice, even the last one, is duplicated for each receiver: exit code 1."""
    node.copies = lambda number, own: 0 if own else 1 + (number == MESSAGES - 1)
    outcome = await loaded(serve_websocket, node)
    assert outcome.code == 1
    assert outcome.document["duplicated"] == RECEIVERS
    assert outcome.document["lost"] == 0


@pytest.mark.usefixtures("processes")
async def test_a_late_message_is_found(serve_websocket: Serve, node: Node) -> None:
    """A message after its sender's next one is out of order: exit code 1."""
    node.held = 8
    outcome = await loaded(serve_websocket, node)
    assert outcome.code == 1
    assert outcome.document["reordered"] == RECEIVERS
    assert outcome.document["lost"] == outcome.document["duplicated"] == 0


@pytest.mark.usefixtures("processes")
async def test_an_echo_is_found(serve_websocket: Serve, node: Node) -> None:
    """A node that sends a message back to its sender breaks the protocol: exit code 1."""
    node.copies = lambda number, own: 1 if not own or number == 3 else 0
    outcome = await loaded(serve_websocket, node)
    assert outcome.code == 1
    assert outcome.document["echoed"] == 1


@pytest.mark.usefixtures("processes")
async def test_errors_are_counted_by_code(serve_websocket: Serve, node: Node) -> None:
    """An error frame stands for its message's ack: counted, and the message unacknowledged."""
    node.answer = lambda n: {"type": "error", "code": "unavailable"} if n == 2 else {"type": "ack"}
    outcome = await loaded(serve_websocket, node, *SHORT_DRAIN)
    assert outcome.code == 1
    assert outcome.document["errors"] == {"unavailable": 1}
    assert outcome.document["acknowledged"] == MESSAGES - 1
    assert outcome.document["lost"] == 0


@pytest.mark.usefixtures("processes")
async def test_a_missing_ack_is_found(serve_websocket: Serve, node: Node) -> None:
    """A message that is never answered is unacknowledged: exit code 1."""
    node.answer = lambda n: None if n == MESSAGES - 1 else {"type": "ack"}
    outcome = await loaded(serve_websocket, node, *SHORT_DRAIN)
    assert outcome.code == 1
    assert outcome.document["unacknowledged"] == 1


@pytest.mark.usefixtures("processes")
async def test_a_cut_client_is_counted(serve_websocket: Serve, node: Node) -> None:
    """A client sent away is counted by its close code, and so is what it could not send."""
    arrived = []

    async def cut(connection: ServerConnection) -> None:
        arrived.append(connection)
        if len(arrived) < 4:
            await node.handle(connection)
        else:
            await connection.recv()
            await connection.close(1013)

    url = await serve_websocket(cut)
    outcome = await asyncio.to_thread(wsfleet, "load", url, *OPTIONS, *SHORT_DRAIN)
    assert outcome.code == 1
    assert outcome.document["disconnected"] == {"1013": 1}
    # It may have sent another message before the close frame came.
    assert 0 < outcome.document["unsent"] < MESSAGES // 4
    assert outcome.document["unsent"] + outcome.document["sent"] == MESSAGES


@pytest.mark.usefixtures("processes")
async def test_refused_clients_are_counted(serve_websocket: Serve, node: Node) -> None:
    """The run goes on with the clients that got in; the others count as failed."""
    knocks = []

    def refuse(*_: Any) -> Response | None:
        knocks.append(1)
        status = HTTPStatus.SERVICE_UNAVAILABLE
        return Response(status, "no", Headers({"Content-Length": "0"})) if len(knocks) > 3 else None

    outcome = await loaded(serve_websocket, node, process_request=refuse)
    assert outcome.code == 1
    assert outcome.document["connected"] == 3
    assert outcome.document["refused"] == {"refused with HTTP 503": 1}
    assert outcome.document["lost"] == 0


@pytest.mark.usefixtures("processes")
async def test_ctrl_c_still_draws_up_the_books(serve_websocket: Serve, node: Node) -> None:
    """An interrupt ends the sending, not the accounting: what was sent is checked."""
    url = await serve_websocket(node.handle)
    command = [*COMMAND, "load", url, "--clients", "3", "--rate", "2", "--duration", "600"]
    run = await asyncio.create_subprocess_exec(*command, "--json", stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(120):
        await node.first.wait()
        run.send_signal(signal.SIGINT)
        out, _ = await run.communicate()
    document = json.loads(out)
    assert run.returncode == 0
    assert document["interrupted"] is True
    assert 0 < document["sent"] < 1200
    assert document["deliveries"] == document["expected"] == document["sent"] * 2


@pytest.mark.usefixtures("processes")
def test_a_run_too_large_to_account_for_is_refused() -> None:
    """Before anything is connected: exit code 2 and one line."""
    outcome = wsfleet(
        "load", "http://127.0.0.1:1", "--clients", 5000, "--rate", 1000, "--duration", 3600
    )
    assert outcome.code == 2
    assert "MB of memory" in outcome.stderr
    assert outcome.stderr.count("\n") == 1


def test_a_real_fleet_loses_nothing(fleet: Rig) -> None:
    """200 clients through HAProxy on two nodes: each message reaches each other client once."""
    outcome = wsfleet(
        "load", fleet.base_url, "--clients", 200, "--rate", 50, "--duration", 2,
        "--warmup", 1, "--size", 100, "--json",
    )  # fmt: skip
    document = outcome.document
    assert outcome.code == 0, document
    assert document["sent"] == 150
    assert document["deliveries"] == 150 * 199
    assert document["delivery_latency"]["count"] == 100 * 199
    assert document["lost"] == document["duplicated"] == document["failed"] == 0
    assert set(document["nodes"]) == set(fleet.nodes)
    assert sum(document["nodes"].values()) == 200


def test_the_table_for_people_has_the_same(fleet: Rig) -> None:
    """Without --json the verdict is a table, and the progress bar stays out of stdout."""
    outcome = wsfleet("load", fleet.base_url, "--clients", 5, "--rate", 20, "--duration", 0.5)
    assert outcome.code == 0
    for words in ("40 of 40", "lost", "p99 ms", "all is well"):
        assert words in outcome.stdout
    assert outcome.stderr == ""

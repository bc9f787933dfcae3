"""``wsfleet load`` on the WebSockets of an application, behind HAProxy and at a small server."""

import asyncio
import json
import signal
from http import HTTPStatus
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Response

from lab.waiting import TIMEOUT
from tests.support.command import COMMAND, wsfleet
from tests.support.fleet import Rig
from tests.support.websocket_server import Serve
from wsfleet.cli.access.endpoint import parse_url
from wsfleet.cli.errors import CannotRun
from wsfleet.cli.traffic import application_load
from wsfleet.cli.traffic.application_load import ApplicationRun
from wsfleet.cli.traffic.load import LoadPlan
from wsfleet.cli.traffic.token_message import TokenMessage, token_message

MESSAGE = ("--message", '{"text": "{token}"}')
SHORT = ("--clients", 4, "--rate", 40, "--duration", 0.5, "--drain", 0.5, "--json")


@pytest.mark.parametrize("path", ["/echo", "/chat", "/ws"])
def test_each_message_comes_back(guests: Rig, path: str) -> None:
    """From an echo and from a broadcast loop; copies for others do not count."""
    protocol = ("--protocol", "application") if path == "/ws" else ()
    outcome = wsfleet(
        *("load", guests.base_url + path, *MESSAGE, *protocol, "--json"),
        *("--clients", 40, "--rate", 100, "--duration", 1, "--warmup", 0.5),
    )
    document = outcome.document
    assert outcome.code == 0, document
    assert document["connected"] == document["connect_latency"]["count"] == 40
    assert document["sent"] == document["returned"] == 150
    assert document["round_trip"]["count"] == 100
    assert set(document["nodes"]) == set(guests.nodes)
    assert sum(document["nodes"].values()) == 40
    assert document["refused"] == document["disconnected"] == {}


def test_without_a_message_connections_are_held(guests: Rig) -> None:
    """Nothing is sent; the table names no messages."""
    options = ("--clients", 5, "--duration", 0.5)
    outcome = wsfleet("load", f"{guests.base_url}/hold", *options)
    assert outcome.code == 0, outcome
    assert "5 of 5" in outcome.stdout
    assert "round trip" not in outcome.stdout
    document = wsfleet("load", f"{guests.base_url}/hold", *options, "--json").document
    assert (document["sent"], document["connected"]) == (0, 5)


def test_an_application_that_sends_nothing_back_is_said_so(guests: Rig) -> None:
    """In one line, after a bounded time: exit code 1."""
    outcome = wsfleet("load", f"{guests.base_url}/hold", *MESSAGE, *SHORT)
    assert outcome.code == 1
    (problem,) = outcome.document["problems"]
    assert problem.startswith("nothing came back of 20 messages")
    assert (outcome.document["unreturned"], outcome.document["cut"]) == (20, 0)


def test_close_codes_of_the_application_are_counted(guests: Rig) -> None:
    """Clients that it closes reconnect, and the code is a problem."""
    options = ("--clients", 3, "--duration", 2.5, "--drain", 0, "--json")
    outcome = wsfleet("load", f"{guests.base_url}/bye", *options)
    document = outcome.document
    assert outcome.code == 1
    assert set(document["disconnected"]) == {"4001"}
    assert document["reconnects"] > 0
    assert document["same_node"] == document["reconnects"]
    assert document["other_node"] == 0


def test_a_drain_is_no_problem(own_guests: Rig) -> None:
    """A node that stops asks its clients to reconnect: they move once, none is refused."""
    command = [*COMMAND, "load", f"{own_guests.base_url}/echo", *MESSAGE, "--json"]
    document, code = asyncio.run(_loaded_while(own_guests, command, signal.SIGTERM))
    assert code == 0, document
    assert set(document["disconnected"]) == {"1012"}
    assert document["reconnects"] == document["other_node"] == document["disconnected"]["1012"]
    assert document["most_reconnects"] == 1
    assert set(document["nodes"]) == {"host1-8001"}


def test_a_crash_is_a_problem(own_guests: Rig) -> None:
    """The clients of a killed node reconnect as well, but nobody asked them to: exit code 1."""
    command = [*COMMAND, "load", f"{own_guests.base_url}/echo", *MESSAGE, "--json"]
    document, code = asyncio.run(_loaded_while(own_guests, command, signal.SIGKILL))
    assert code == 1
    assert set(document["disconnected"]) == {"1006"}
    assert document["reconnects"] == document["disconnected"]["1006"]
    assert document["without_connection"] == 0
    assert set(document["nodes"]) == {"host1-8001"}


async def _loaded_while(
    rig: Rig, command: list[str], number: signal.Signals
) -> tuple[dict[str, Any], int | None]:
    """Signal one node while 10 clients are connected, and interrupt the run when it is over."""
    command += ["--clients", "10", "--rate", "20", "--duration", "600"]
    run = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60):
        while sum(map(rig.connections, rig.nodes)) < 10:
            await asyncio.sleep(0.05)
        rig.processes["host2-8001"].send_signal(number)
        while rig.connections("host1-8001") < 10:
            await asyncio.sleep(0.05)
        run.send_signal(signal.SIGINT)
        out, _ = await run.communicate()
    return json.loads(out), run.returncode


@pytest.mark.usefixtures("processes")
async def test_refusals_are_counted(serve_websocket: Serve) -> None:
    """The run goes on with the clients that got in: exit code 1."""
    knocks = []

    def refuse(*_: object) -> Response | None:
        knocks.append(1)
        status = HTTPStatus.SERVICE_UNAVAILABLE
        return Response(status, "no", Headers({"Content-Length": "0"})) if len(knocks) > 3 else None

    url = await serve_websocket(_echo, process_request=refuse)
    outcome = await asyncio.to_thread(wsfleet, "load", f"{url}/any", *MESSAGE, *SHORT)
    document = outcome.document
    assert outcome.code == 1
    assert document["connected"] == 3
    assert document["refused"] == {"refused with HTTP 503": 1}
    assert document["sent"] == document["returned"] == 20
    assert document["nodes"] == {"unknown": 3}


@pytest.mark.usefixtures("processes")
async def test_a_lost_message_is_found(serve_websocket: Serve) -> None:
    """A message that the application swallows did not come back: exit code 1."""

    async def swallow(connection: ServerConnection) -> None:
        async for text in connection:
            if "000000007" not in str(text):
                await connection.send(text)

    url = await serve_websocket(swallow)
    outcome = await asyncio.to_thread(wsfleet, "load", f"{url}/any", *MESSAGE, *SHORT)
    assert outcome.code == 1
    assert outcome.document["problems"] == ["1 message did not come back"]


async def test_the_sending_ends_when_nothing_comes_back(
    serve_websocket: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only after the whole duration."""

    async def swallow(connection: ServerConnection) -> None:
        async for _ in connection:
            pass

    monkeypatch.setattr(application_load, "ANSWER_TIMEOUT", 0.1)
    endpoint = parse_url(await serve_websocket(swallow) + "/any")
    plan = LoadPlan(clients=2, rate=50, duration=600, drain=0)
    run = ApplicationRun(endpoint, plan, TokenMessage("{token}"))
    async with asyncio.timeout(TIMEOUT):
        await run.execute()
    assert run.unreturned == run.tally.sent < plan.messages


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("http://127.0.0.1:1/room", "--message", "x"), "has no {token}"),
        (("http://127.0.0.1:1", "--message", "{token}"), "add --protocol application"),
        (("http://127.0.0.1:1/room", "--size", 5), "--size is for the plain protocol"),
        (("http://127.0.0.1:1/connection/websocket",), "speaks the Centrifuge protocol"),
        (("http://127.0.0.1:1/room",), "no connection to ws://127.0.0.1:1/room"),
    ],
)
def test_a_usage_error_is_one_line(arguments: tuple[object, ...], words: str) -> None:
    """Exit code 2."""
    outcome = wsfleet("load", *arguments)
    assert outcome.code == 2
    assert words in outcome.stderr
    assert outcome.stderr.count("\n") == 1


@pytest.mark.usefixtures("processes")
async def test_the_plain_protocol_suspects_an_application(serve_websocket: Serve) -> None:
    """Where acknowledgements or broadcasts are missing, the option is named."""
    url = await serve_websocket(_echo)
    outcome = await asyncio.to_thread(wsfleet, "load", url, *SHORT)
    assert outcome.code == 1
    assert any("--protocol application" in problem for problem in outcome.document["problems"])


def test_each_token_is_put_in() -> None:
    """In every place, and braces of JSON stay."""
    message = token_message('{"a": "{token}", "b": ["{token}"]}')
    assert message is not None
    assert json.loads(message.with_token("t")) == {"a": "t", "b": ["t"]}
    assert token_message(None) is None
    with pytest.raises(CannotRun, match="has no"):
        token_message('{"a": 1}')


async def _echo(connection: ServerConnection) -> None:
    async for text in connection:
        await connection.send(text)

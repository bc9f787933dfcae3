"""`wsfleet dev`: it restarts on a change without a loss, and ends without a trace."""

import asyncio
import contextlib
import signal
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from centrifuge import CentrifugeError  # type: ignore[import-untyped]
from websockets.asyncio.client import connect

from lab.waiting import settled
from tests.support.command import wsfleet
from tests.support.dev import APP, Dev, running_dev
from tests.support.nodes import RunningNode
from tests.support.sdk import has, sdk, subscribed
from wsfleet.config.file import BUILT_IN

pytestmark = pytest.mark.usefixtures("processes")

LOCAL = {"Origin": "http://localhost:5173"}
DRAIN = """
import asyncio
from wsfleet import Realtime

app = Realtime(app)

@app.on_drain
async def drain() -> None:
    print("on_drain runs")
    await asyncio.sleep(0.4)
"""
SESSION = """
from wsfleet import Accept, Connect, Realtime, Rpc

app = Realtime(app)

@app.on_connect
async def enter(event: Connect) -> Accept:
    return Accept(session="tab")

@app.on_rpc("count")
async def count(event: Rpc) -> list[int]:
    event.client.session["count"] = event.client.session.get("count", 0) + 1
    await event.client.session.save()
    return [VERSION, event.client.session["count"]]
"""
FOREIGN = {"Origin": "https://example.com"}


async def test_a_restart_loses_no_message(tmp_path: Path) -> None:
    """Publications before, during and after a restart reach an SDK client once."""
    async with running_dev(tmp_path) as dev, dev.api() as api:
        node = cast(RunningNode, dev)
        async with sdk(node) as client:
            _, events = await subscribed(client, "news")
            publishing = asyncio.create_task(_publish(api, 300))
            for version in (2, 3):
                await settled(lambda: len(events.data) > 20 * version, "some have come")  # noqa: B023
                dev.write(version)
                await dev.serves(version)
            await publishing
            await settled(partial(has, events.data, 300), "all have come")
            assert events.data == list(range(300))
            assert all(each.recovered for each in events.subscribed[1:])
            assert len(events.subscribed) > 2
    assert dev.text.count("shop.py changed") == 2


async def test_a_session_outlives_a_restart(tmp_path: Path) -> None:
    """The parent process has it, as all of the state."""
    async with running_dev(tmp_path, app=APP + SESSION) as dev, sdk(cast(Any, dev)) as client:
        assert (await client.rpc("count", None)).data == [1, 1]
        dev.write(2, APP + SESSION)
        await dev.serves(2)

        async def counted() -> bool:
            with contextlib.suppress(CentrifugeError):  # it is not connected yet
                return bool((await client.rpc("count", None)).data == [2, 2])
            return False

        await settled(counted, "the next node has the session")


async def _publish(api: httpx.AsyncClient, count: int) -> None:
    for number in range(count):
        message = {"channel": "news", "data": number, "idempotency_key": f"key{number}"}

        async def published(message: dict[str, Any] = message) -> bool:
            answer = await api.post("/api/publish", json=message)
            return answer.status_code == 200 and "result" in answer.json()

        await settled(published, "the publication arrives")
        await asyncio.sleep(0.01)


async def test_ordinary_websockets_are_closed_at_once(tmp_path: Path) -> None:
    """With 1012; a client that connects again at once waits for the next node."""
    async with running_dev(tmp_path) as dev:
        url = dev.url.replace("http", "ws") + "/echo"
        async with connect(url, proxy=None) as client:
            await client.send("hello")
            assert await client.recv() == "hello"
            dev.write(2)
            await client.wait_closed()
            assert client.close_code == 1012
        async with connect(url, proxy=None, open_timeout=60) as client:
            await client.send("again")
            assert await client.recv() == "again"
        await dev.serves(2)


async def test_clients_that_come_during_a_drain_wait_for_the_next_node(tmp_path: Path) -> None:
    """The node that stops takes no connections, so it refuses none."""
    async with running_dev(tmp_path, app=APP + DRAIN) as dev:
        dev.write(2, APP)
        await dev.prints("on_drain runs")
        url = dev.url.replace("http", "ws") + "/echo"
        async with connect(url, proxy=None, open_timeout=60):
            assert (await dev.http.get("/version")).text == "2"


async def test_a_change_of_the_configuration_restarts_as_well(tmp_path: Path) -> None:
    """`wsfleet.yml` beside the application is the configuration."""
    async with running_dev(tmp_path, wsfleet=BUILT_IN) as dev:
        (tmp_path / "wsfleet.yml").write_text("client: {allowed_origin: []}")
        await dev.prints("did you mean allowed_origins?", "The node ended")
        (tmp_path / "wsfleet.yml").write_text("client: {}")
        await dev.serves(1)
        url = dev.url.replace("http", "ws") + "/connection/websocket"
        async with connect(url, proxy=None) as client:
            await client.send('{"id":1,"connect":{}}')
            await client.wait_closed()
            assert client.close_code == 3501  # nobody may connect without a token


async def test_a_node_that_hangs_is_killed(tmp_path: Path) -> None:
    """A blocked event loop is printed with its line, and does not hold up the next node."""
    async with running_dev(tmp_path) as dev:
        hanging = asyncio.create_task(dev.http.get("/hang"))
        line = APP.splitlines().index("    time.sleep(60)") + 1
        await dev.prints("event_loop_blocked", f"{tmp_path}/shop.py:{line} in hang")
        dev.write(2)
        await dev.prints("was killed")
        await dev.serves(2)
        with contextlib.suppress(httpx.TransportError):
            await hanging


async def test_clients_wait_until_a_mistake_is_corrected(tmp_path: Path) -> None:
    """A syntax error is printed; a request meanwhile is answered after the next change."""
    async with running_dev(tmp_path) as dev:
        dev.write(2, APP + "def")
        await dev.prints("shop:app cannot be imported: ", "SyntaxError", "The node ended")
        waiting = asyncio.create_task(dev.http.get("/version"))
        dev.write(3)
        assert (await waiting).text == "3"


async def test_a_mistake_at_the_start_can_be_corrected(tmp_path: Path) -> None:
    """The first node may fail as any other."""
    dev = Dev(tmp_path)
    dev.write(1, "import nothing_like_it")
    dev.start()
    try:
        await dev.prints("No module named 'nothing_like_it'", "The node ended")
        dev.write(2)
        await dev.serves(2)
    finally:
        assert await dev.gone(dev.signal(signal.SIGTERM)) == 0
        await dev.http.aclose()


async def test_pages_of_this_machine_may_connect(tmp_path: Path) -> None:
    """Other origins may not, as long as the configuration names none."""
    async with running_dev(tmp_path) as dev:
        handshake = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }
        path = "/connection/websocket"
        assert (await dev.http.get(path, headers=handshake | FOREIGN)).status_code == 403
        assert (await dev.http.get(path, headers=handshake | LOCAL)).status_code == 101


async def test_a_port_in_use_is_an_error(tmp_path: Path) -> None:
    """The message names the port and the option."""
    async with running_dev(tmp_path) as dev:
        arguments = ("dev", "shop:app", "--app-dir", tmp_path, "--port", dev.port)
        outcome = await asyncio.to_thread(wsfleet, *arguments)
        assert outcome.code == 2
        assert f"port {dev.port}: Address already in use" in outcome.stderr
        assert "--port" in outcome.stderr


@pytest.mark.parametrize("group", [True, False], ids=["all processes", "the parent alone"])
async def test_ctrl_c_ends_all_processes(tmp_path: Path, *, group: bool) -> None:
    """The exit code is 0, and there is no traceback."""
    async with running_dev(tmp_path) as dev:
        node = cast(RunningNode, dev)
        async with sdk(node):
            assert await dev.gone(dev.signal(signal.SIGINT, group=group)) == 0
    assert "Traceback" not in dev.text


async def test_the_nodes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """No process is left behind, and the port is free again."""
    async with running_dev(tmp_path) as dev:
        assert await dev.gone(dev.signal(signal.SIGKILL)) == -signal.SIGKILL
        dev.start()
        await dev.serves(1)

"""An application in the node's process: paths, lifespan, and errors."""

import asyncio
import sys
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from lab.ports import free_port
from lab.waiting import settled
from tests.support import guest
from tests.support.command import wsfleet
from tests.support.metrics import failures, value
from tests.support.nodes import RunningNode, StartNode
from tests.support.peer import Peer
from tests.support.tcp import tcp
from wsfleet.config.settings import Settings

GUEST = "tests.support.guest:app"


@pytest.fixture
async def node(start_node: StartNode) -> RunningNode:
    """Return a node with the application."""
    guest.lifespan_events.clear()
    return await start_node(app=GUEST)


async def test_all_paths_are_the_applications(node: RunningNode) -> None:
    """The application has every path of its port, except those of the node's transports."""
    async with httpx.AsyncClient(base_url=node.client_url, trust_env=False) as http:
        for path in ("/health", "/ready", "/api/x"):
            assert (await http.get(path)).json()["path"] == path
        for path in ("/docs", "/metrics", "/connection/websocket", "/connection", "/emulation"):
            assert (await http.get(path)).status_code == 404, path
    async with httpx.AsyncClient(base_url=node.url, trust_env=False) as http:
        assert "ready" in (await http.get("/ready")).json()
        assert (await http.get("/health")).json()["hostname"] == "node1"


async def test_the_nodes_own_endpoints_remain(node: RunningNode) -> None:
    """The node serves the Centrifuge protocol; the plain protocol's path is the application's."""
    async with Peer(node):
        assert value(node, "connections", protocol="centrifuge") == 1
    async with node.connect() as client:
        await client.send("x")
        assert await client.recv() == "x"
        assert value(node, "connections", protocol="plain") == 0


async def test_answers_name_the_node(start_node: StartNode) -> None:
    """With a setting, every response and every handshake's answer names the node."""
    node = await start_node(app=GUEST, node_header="X-Wsfleet-Node", plain_path="/plain")
    without = await start_node(app=GUEST)
    for each, expected in ((node, "node1"), (without, None)):
        async with httpx.AsyncClient(base_url=each.client_url, trust_env=False) as http:

            async def named(
                http: httpx.AsyncClient = http, expected: str | None = expected
            ) -> bool:
                found: str | None = (await http.get("/health")).headers.get("X-Wsfleet-Node")
                return found == expected

            await settled(named, "it is named once uvicorn's first tick is over")
        base = each.client_url.replace("http", "ws")
        for path in ("/echo", "/connection/websocket"):
            async with connect(base + path, proxy=None) as client:
                assert client.response is not None
                assert client.response.headers.get("X-Wsfleet-Node") == expected


async def test_checks_need_no_plain_protocol(start_node: StartNode) -> None:
    """A check uses a path in the URL and the field that names the node, and sends no message."""
    node = await start_node(app=GUEST, node_header="X-Wsfleet-Node")
    url = f"{node.client_url}/hold"
    checked = await asyncio.to_thread(wsfleet, "check", "node", url, "--internal-url", node.url)
    assert checked.code == 0, checked
    options = ("--no-jar", "--clients", 3, "--connections", 2, "--seconds", 0, "--json")
    found = await asyncio.to_thread(wsfleet, "check", "stickiness", url, *options)
    assert found.code == 0, found
    assert found.document["without_cookie"]["summary"]["servers"] == {"node1": 6}
    assert value(node, "messages_received_total") == 0


async def test_the_plain_protocol_has_a_path_by_a_setting(start_node: StartNode) -> None:
    """With a setting, the plain protocol has that path and no other one."""
    node = await start_node(app=GUEST, plain_path="/plain")
    async with connect(node.client_url.replace("http", "ws") + "/plain", proxy=None) as client:
        await client.send("x")
        assert '"type":"ack"' in str(await client.recv())
    without = await start_node(plain_path="/plain")
    with pytest.raises(InvalidStatus):
        await without.connect()


async def test_a_body_may_have_the_size_of_the_setting(start_node: StartNode) -> None:
    """A body up to the setting's size needs no API key."""
    node = await start_node(app=GUEST, max_request_size=1_000_000)
    async with httpx.AsyncClient(base_url=node.client_url, trust_env=False) as http:
        answer = await http.post("/api/x", content=bytes(1_000_000))
        assert answer.json()["body"] == 1_000_000
    head = b"POST /api/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000001\r\n\r\n"
    async with tcp(node, head) as peer:
        assert b" 413 " in await peer.head()


async def test_the_lifespan_is_around_the_clients(node: RunningNode) -> None:
    """The application starts before the first client and stops after the last; state is shared."""
    assert guest.lifespan_events == ["startup"]
    async with httpx.AsyncClient(base_url=node.client_url, trust_env=False) as http:
        assert (await http.get("/health")).json()["state"] == "guest"
    async with node.connect() as client:
        stopping = asyncio.create_task(node.stop())
        await client.wait_closed()
        assert guest.lifespan_events == ["startup"]
        await stopping
    assert guest.lifespan_events == ["startup", "shutdown"]


async def test_an_exception_in_a_route_is_500(
    node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """An exception in a route is counted, and its traceback is in the error log."""
    async with httpx.AsyncClient(base_url=node.client_url, trust_env=False) as http:
        assert (await http.get("/boom")).status_code == 500
        assert (await http.get("/health")).status_code == 200
    assert failures(node, "http") == 1


async def test_a_node_is_not_ready_before_its_application(
    start_node: StartNode, tmp_path: Path
) -> None:
    """The internal port reports "starting" during the start-up of the lifespan."""
    (tmp_path / "slow_guest.py").write_text(SLOW)
    node = await start_node(app="slow_guest:app", app_dir=str(tmp_path), wait=False)
    async with httpx.AsyncClient(base_url=node.url, trust_env=False) as http:

        async def starting() -> bool:
            try:
                return bool((await http.get("/ready")).json().get("reason") == "starting")
            except httpx.ConnectError:
                return False

        await settled(starting, "it is starting")
        await settled(lambda: node.node.store.connected and node.node.broker.subscribed, "Redis")
        assert await starting()
        sys.modules["slow_guest"].go_on.set()
        await node.wait_ready()


SLOW = """
import asyncio
from contextlib import asynccontextmanager
from starlette.applications import Starlette

go_on = asyncio.Event()

@asynccontextmanager
async def lifespan(app):
    await go_on.wait()
    yield

app = Starlette(lifespan=lifespan)
"""

# What goes wrong.

STARTUP = """
from contextlib import asynccontextmanager
from starlette.applications import Starlette

def connect():
    raise ValueError("no database")

@asynccontextmanager
async def lifespan(app):
    connect()
    yield

app = Starlette(lifespan=lifespan)
"""
FAILURES = {
    "nothing": ("app = None", "broken:app is not an ASGI 3 application", []),
    "wsgi": (
        "def app(environ, start_response): ...",
        "broken:app is not an ASGI 3 application",
        [],
    ),
    "name": ("", "broken:app cannot be imported: AttributeError", []),
    "syntax": ("app = (", "broken:app cannot be imported: SyntaxError", ['broken.py", line 1']),
    "module": (
        "import no_such_module",
        "broken:app cannot be imported: ModuleNotFoundError: No module named 'no_such_module'",
        ["import no_such_module"],
    ),
    "exit": ("import sys; sys.exit('no')", "broken:app cannot be imported: SystemExit: no", []),
    "import": (
        "def f():\n    raise ValueError('no setting')\nf()",
        "broken:app cannot be imported: ValueError: no setting",
        ["in <module>", "in f"],
    ),
}


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("failure", FAILURES)
def test_an_application_that_cannot_be_imported(tmp_path: Path, failure: str) -> None:
    """A failed import prints one line and the frames, and exits with 3, also with `--check`."""
    source, line, frames = FAILURES[failure]
    (tmp_path / "broken.py").write_text(source)
    for check in (["--check"], []):
        ended = wsfleet("serve", "broken:app", "--app-dir", str(tmp_path), *check)
        assert ended.code == 3
        assert ended.stderr.startswith(line)
        for frame in frames:
            assert frame in ended.stderr
        for other in ("wsfleet/", "importlib", "Traceback"):
            assert other not in ended.stderr


def test_an_application_that_fails_at_start_up(tmp_path: Path, redis_server: str) -> None:
    """A failed start-up prints one line and the application's frames, exits with 3, deregisters."""
    (tmp_path / "broken.py").write_text(STARTUP)
    port = str(free_port())
    ended = wsfleet(
        *("serve", "broken:app", "--app-dir", str(tmp_path)),
        WSFLEET_PORT=port,
        WSFLEET_REDIS_URL=redis_server,
    )
    assert ended.code == 3
    lines = ended.stderr.splitlines()
    assert lines[0] == "broken:app raised after startup.failed: ValueError: no database"
    assert [line.strip() for line in lines if "File" in line] == [
        f'File "{tmp_path}/broken.py", line 10, in lifespan',
        f'File "{tmp_path}/broken.py", line 6, in connect',
    ]


def test_settings_that_contradict_an_application() -> None:
    """The internal port must differ from the clients' port; by default it is the port + 1000."""
    assert Settings(app=GUEST, port=8001).internal_port == 9001
    assert Settings(port=8001).internal_port == 0
    with pytest.raises(ValueError, match="give the internal paths a port of their own"):
        Settings(app=GUEST, internal_port=0)
    for wrong in ("guest", ":app", "guest:", "a b:c", "../guest:app"):
        with pytest.raises(ValueError, match="app"):
            Settings(app=wrong)

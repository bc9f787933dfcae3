"""Several processes of `wsfleet app` on one socket, as units of systemd have it, behind a node."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from centrifuge import ReplyError  # type: ignore[import-untyped]
from websockets.asyncio.client import connect

from lab.paths import ROOT
from lab.processes import process
from lab.waiting import settled
from tests.support.metrics import reaches
from tests.support.nodes import RunningNode, StartNode
from tests.support.redis import RedisServer
from tests.support.sdk import sdk
from wsfleet.cli.commands import status
from wsfleet.config.fleet_file import Fleet
from wsfleet.server.server import run

CHAT = "tests.support.chat:realtime"
CONFIG = yaml.safe_dump({"channel": {"namespaces": [{"name": "room"}]}})
LAUNCHER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "wsfleet.cli", "app", *sys.argv[2:]])
"""
"""Starts a process as systemd does, with a listening socket."""


class Units:
    """Processes that listen on one socket."""

    def __init__(self, path: Path, folder: Path, redis_url: str) -> None:
        self.path = path
        self.blocked = folder / "blocked"
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self._log = folder / "app.log"
        self._variables = {
            "WSFLEET_CONFIG": str(folder / "config.yml"),
            "WSFLEET_REDIS_URL": redis_url,
            "WSFLEET_APP_DIR": str(ROOT / "app"),
            "CHAT_BLOCKED": str(self.blocked),
        }
        self._stack = ExitStack()
        self._socket = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        self._socket.bind(str(path))
        self._socket.listen()

    def start(self, name: str = "") -> int:
        """Start a process, and return its number; what is asked meanwhile waits for it."""
        listening = self._socket.fileno()
        command = [sys.executable, "-c", LAUNCHER, str(listening), CHAT]
        variables = self._variables | {"WSFLEET_NODE_NAME": name}
        child = process(command, self._log, variables, pass_fds=[listening])
        started = self._stack.enter_context(child)
        self.running[started.pid] = started
        return started.pid

    async def started(self) -> int:
        """Start a process, and return its number when it answers."""
        pid = self.start()
        transport = httpx.AsyncHTTPTransport(uds=str(self.path))
        async with httpx.AsyncClient(transport=transport, timeout=60) as asking:
            request = {"client": "", "method": "process"}
            answer = await asking.post("http://localhost/rpc", json=request)
            assert answer.json() == {"result": {"data": pid}}
        return pid

    def kill(self, pid: int) -> None:
        """Kill a process as the kernel does."""
        os.kill(pid, signal.SIGKILL)
        self.running.pop(pid).wait()

    async def terminate(self, pid: int) -> None:
        """Stop a process as systemd does, and wait for its end."""
        os.kill(pid, signal.SIGTERM)
        assert await asyncio.to_thread(self.running.pop(pid).wait, 60) == -signal.SIGTERM

    def stop(self) -> None:
        """End all processes."""
        for pid in list(self.running):
            self.kill(pid)
        self._stack.close()


@pytest.fixture
def units(processes: None, backend: RedisServer, tmp_path: Path) -> Iterator[Units]:
    """Return no process yet, and a socket that listens."""
    (tmp_path / "config.yml").write_text(CONFIG)
    ours = Units(tmp_path / "app.sock", tmp_path, backend.url_of("node"))
    try:
        yield ours
    finally:
        ours.stop()


@pytest.fixture
async def node(units: Units, start_node: StartNode, tmp_path: Path) -> RunningNode:
    """A node that serves the application, whose handlers are behind the socket."""
    application = {"app": CHAT, "app_dir": str(ROOT / "app"), "app_socket": str(units.path)}
    return await start_node(config=tmp_path / "config.yml", **application)


def client_of(node: RunningNode, **headers: str) -> AbstractAsyncContextManager[Any]:
    """Return a connected SDK client, which waits for as long as a process may start."""
    return sdk(node, headers={"Cookie": "session=ada", **headers}, timeout=60)


async def answering(client: Any) -> set[int]:
    """Return the processes that answer calls one after the other."""
    return {(await client.rpc("process", None)).data for _ in range(20)}


async def test_status_knows_which_processes_run(
    units: Units, node: RunningNode, backend: RedisServer
) -> None:
    """One that died has no heartbeat, one that stopped has left: both are problems."""
    fleet = Fleet(
        nodes={node.settings.name: node.url},
        redis_url=backend.url,
        base_url=node.url,
        handlers=["host1-app-1", "host1-app-2"],
    )

    async def problems() -> list[str]:
        report = await asyncio.to_thread(status.run, fleet)
        return [text for text in report.problems if text.startswith("handlers ")]

    async def are(*expected: str) -> bool:
        found = await problems()
        return len(found) == len(expected) and all(map(str.startswith, found, expected))

    one, two = units.start("host1-app-1"), units.start("host1-app-2")
    await settled(lambda: are(), "both run")
    units.kill(one)
    dead = "handlers host1-app-1: no heartbeat for "
    await settled(lambda: are(dead), "the dead process is a problem")
    await units.terminate(two)
    stopped = "handlers host1-app-2: the process does not run"
    await settled(lambda: are(dead, stopped), "the stopped process is a problem")


async def test_handlers_know_a_client_as_in_the_nodes_process(
    units: Units, node: RunningNode
) -> None:
    """Address, header fields, cookies, info and meta; another process runs them."""
    pid = await units.started()
    async with client_of(node, **{"User-Agent": "test"}) as ada:
        assert (await ada.rpc("who", None)).data == {
            "address": "127.0.0.1",
            "cookies": {"session": "ada"},
            "agent": "test",
            "emulated": {},
            "info": '{"name":"Ada"}',
            "meta": '{"plan":"free"}',
        }
        assert await answering(ada) == {pid}


async def test_calls_wait_for_a_process_that_starts(units: Units, node: RunningNode) -> None:
    """A restart of the only unit costs no call, because the socket stays open."""
    url = node.client_url.replace("http", "ws") + "/connection/websocket"
    async with connect(url, additional_headers={"Cookie": "session=ada"}, proxy=None) as client:
        await client.send('{"id": 1, "connect": {}}')
        await reaches(node, "handlers_running", event="connect", namespace="")
        units.start()
        assert json.loads(await client.recv())["connect"]["data"]["hello"] == "ada"


async def test_a_killed_process_costs_no_connection(units: Units, node: RunningNode) -> None:
    """The next calls of the same connection are answered by the others."""
    first = await units.started()
    async with client_of(node) as ada:
        connections = [each.client_id for each in node.node.hub]
        assert await answering(ada) == {first}
        second = units.start()
        units.kill(first)
        assert await answering(ada) == {second}
        assert [each.client_id for each in node.node.hub] == connections


async def test_a_stopped_process_loses_no_call(units: Units, node: RunningNode) -> None:
    """It answers what it has accepted; the next process takes the rest."""
    first = await units.started()
    ends = asyncio.Event()
    found: set[int] = set()

    async def calling() -> None:
        async with client_of(node) as client:
            while not ends.is_set():
                found.update(await answering(client))

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(calling())
        await settled(lambda: len(node.node.hub) == 4, "all are connected")
        await settled(lambda: found == {first}, "the first process answers")
        second = units.start()
        await units.terminate(first)
        async with client_of(node) as ada:
            assert await answering(ada) == {second}
        ends.set()
    assert found == {first, second}


async def test_a_blocked_handler_costs_its_own_call(units: Units, node: RunningNode) -> None:
    """Others are answered by the other process; the connection of the blocking one stays."""
    first = await units.started()
    async with client_of(node) as ada, client_of(node) as ben:
        for each in await asyncio.gather(answering(ada), answering(ben)):  # over two connections
            assert each == {first}
        blocking = asyncio.create_task(ada.rpc("block", 1000))
        await settled(units.blocked.exists, "the handler blocks")
        second = units.start()
        assert await answering(ben) == {second}
        assert not blocking.done()
        units.kill(first)
        with pytest.raises(ReplyError) as caught:
            await blocking
        assert caught.value.code == 100
        assert await answering(ada) == {second}


def test_a_socket_needs_handlers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`wsfleet serve --check` finds an application without any, and a socket without one."""
    for app, line, code in (
        ("tests.support.guest:app", "WSFLEET_APP is not a Realtime", 3),
        ("", "WSFLEET_APP_SOCKET is set, and WSFLEET_APP is not", 2),
    ):
        with pytest.raises(SystemExit) as caught:
            run(check=True, app=app, app_dir=str(ROOT / "app"), app_socket="/run/app.sock")
        assert caught.value.code == code
        assert line in capsys.readouterr().err


def test_a_process_needs_a_socket(processes: None, tmp_path: Path) -> None:
    """A socket that systemd passed to another process is not used."""
    (tmp_path / "config.yml").write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, "-m", "wsfleet.cli", "app", CHAT, "--app-dir", str(ROOT / "app")],
        env=os.environ
        | {"WSFLEET_CONFIG": str(tmp_path / "config.yml"), "WSFLEET_REDIS_URL": "memory://"}
        | {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3
    assert "there is no socket to listen on: give its address by --listen" in done.stderr

"""A call that blocks the event loop is logged and counted, and the watchdog still acts."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lab.ports import free_port
from lab.waiting import settled
from tests.support.metrics import value
from tests.support.nodes import StartNode
from tests.support.paths import APP
from wsfleet.telemetry.blocked_loop import BlockedLoopWatch

GUEST = "tests.support.guest:app"


async def test_a_blocking_call_is_named_and_counted(
    start_node: StartNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log has file, line, function and the stack; the metric has the seconds."""
    node = await start_node(app=GUEST)
    before = value(node, "event_loop_blocked_seconds_total")
    async with httpx.AsyncClient(base_url=node.client_url, trust_env=False) as http:
        assert (await http.get("/block/0.6")).status_code == 200
    await settled(
        lambda: value(node, "event_loop_blocked_seconds_total") >= before + 0.4, "it is counted"
    )
    logged = capsys.readouterr().out
    assert re.search(r"event_loop_blocked.*guest\.py:\d+ in block", logged)
    assert "time.sleep(" in logged


async def test_the_same_line_is_logged_once_in_a_while(
    start_node: StartNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """A handler that blocks at each call does not fill the log."""
    node = await start_node(app=GUEST)
    async with httpx.AsyncClient(base_url=node.client_url, trust_env=False) as http:
        for _ in range(3):
            await http.get("/block/0.3")
    assert len(re.findall(r"event_loop_blocked.*in block", capsys.readouterr().out)) == 1


async def test_the_thread_ends(start_node: StartNode) -> None:
    """With the node."""
    before = threading.enumerate()  # with those that nodes of other tests may have left
    node = await start_node()
    started = [each for each in threading.enumerate() if each not in before]
    (thread,) = (each for each in started if each.name == "blocked-loop-watch")
    await node.stop()
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()


def test_a_loop_that_is_closed_ends_the_thread() -> None:
    """Without `stop`, as after a crash."""

    async def run() -> threading.Thread:
        watch = BlockedLoopWatch(lambda seconds: None)
        watch.start()
        return watch._thread

    thread = asyncio.run(run())
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def notifications(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket on which systemd hears what a service says."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        yield listening


def test_a_blocked_loop_does_not_keep_the_watchdog_quiet(
    redis_server: str, notifications: socket.socket
) -> None:
    """The thread runs all the while, but WATCHDOG=1 comes from the loop alone."""
    port = free_port()
    environment = os.environ | {
        "WSFLEET_PORT": str(port),
        "WSFLEET_INTERNAL_PORT": str(free_port()),
        "WSFLEET_REDIS_URL": redis_server,
        "NOTIFY_SOCKET": notifications.getsockname(),
        "WATCHDOG_USEC": "200000",
    }
    command = [sys.executable, "-m", "wsfleet.cli", "serve", GUEST, "--app-dir", str(APP)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as node:
        try:
            while b"READY=1" not in notifications.recv(4096):
                pass
            assert b"WATCHDOG=1" in notifications.recv(4096)
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"GET /block/60.0 HTTP/1.1\r\nHost: x\r\n\r\n")
                assert node.stdout is not None
                for line in node.stdout:
                    if "event_loop_blocked" in line:
                        break
                notifications.settimeout(2)
                quiet = False
                began = time.monotonic()
                while not quiet and time.monotonic() < began + 20:
                    try:
                        notifications.recv(4096)
                    except TimeoutError:
                        quiet = True
                assert quiet
        finally:
            node.send_signal(signal.SIGKILL)

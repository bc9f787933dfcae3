"""A process exits also if a handler in a thread never returns."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from centrifuge import ReplyError  # type: ignore[import-untyped]

from lab.ports import free_port
from lab.processes import process
from lab.waiting import TIMEOUT
from tests.support.command import COMMAND
from tests.support.sdk import sdk

pytestmark = pytest.mark.usefixtures("processes")

APP = """
import threading
from contextlib import asynccontextmanager

from fastapi import FastAPI

from wsfleet import Accept, Connect, Realtime, Rpc

@asynccontextmanager
async def lifespan(app):
    yield
    print("the application has stopped", flush=True)

realtime = Realtime(FastAPI(lifespan=lifespan), timeout=0.5)

@realtime.on_connect
async def enter(event: Connect) -> Accept:
    return Accept("ann")

@realtime.on_rpc("hang")
def hang(event: Rpc) -> None:
    threading.Event().wait()
"""


@contextmanager
def running(folder: Path, port: int, *command: str) -> Iterator["Popen[bytes]"]:
    """Run a command of `wsfleet` on the application until the block ends."""
    (folder / "shop.py").write_text(APP)
    variables = {
        "WSFLEET_REDIS_URL": "memory://",
        "WSFLEET_APP_DIR": str(folder),
        "WSFLEET_PORT": str(port),
        "WSFLEET_INTERNAL_PORT": str(free_port()),
        "WSFLEET_DRAIN_DELAY": "0",
    }
    # A shell lets its background jobs ignore SIGINT, and so the tests' child processes.
    default = ["env", "--default-signal=INT"]
    with process([*default, *COMMAND, *command], folder / "log", variables, port=port) as child:
        yield child


async def exits(child: "Popen[bytes]", folder: Path, stop: signal.Signals) -> None:
    """Stop the process, and wait until it has exited; its log names the handler."""
    child.send_signal(stop)
    assert await asyncio.to_thread(child.wait, TIMEOUT) == EXIT_CODES[stop]
    log = (folder / "log").read_text()
    (line,) = (line for line in log.splitlines() if "handlers_left" in line)
    assert "shop.hang" in line
    assert "the application has stopped" in log


EXIT_CODES = {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 130}
SIGNALS = pytest.mark.parametrize("stop", EXIT_CODES, ids=lambda stop: stop.name)


@SIGNALS
async def test_a_node_exits_without_a_handler_that_hangs(
    tmp_path: Path, stop: signal.Signals
) -> None:
    """Its client gets error 100 after the time-out, and is still there when the node stops."""
    port = free_port()
    with running(tmp_path, port, "serve", "shop:realtime") as child:
        node = SimpleNamespace(client_url=f"http://127.0.0.1:{port}")
        async with sdk(cast(Any, node)) as client:
            with pytest.raises(ReplyError) as failed:
                await client.rpc("hang", None)
            assert failed.value.code == 100
            await exits(child, tmp_path, stop)


@SIGNALS
async def test_a_process_of_handlers_exits_as_well(tmp_path: Path, stop: signal.Signals) -> None:
    """The endpoint's answer is a failure."""
    port = free_port()
    with running(tmp_path, port, "app", "shop:realtime", "--listen", f"127.0.0.1:{port}") as child:
        async with httpx.AsyncClient(trust_env=False) as http:
            call = {"client": "1", "method": "hang"}
            answer = await http.post(f"http://127.0.0.1:{port}/rpc", json=call)
            assert answer.status_code == 504
        await exits(child, tmp_path, stop)

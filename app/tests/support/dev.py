"""`wsfleet dev` in a process of its own, on an application of the test's."""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from lab.ports import INTERNAL_PORT_OFFSET, free_port
from lab.processes import runs, start, stop, tree
from lab.waiting import settled
from tests.support.command import COMMAND

APP = """
import time

from fastapi import FastAPI, WebSocket

app = FastAPI()

@app.get("/version")
async def version() -> int:
    return VERSION

@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)

@app.get("/hang")
async def hang() -> None:
    time.sleep(60)
"""


class Dev:
    """A running `wsfleet dev`; `folder` has the application `shop.py`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.port = free_port()
        self.url = self.client_url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=60)

    def write(self, version: int, app: str = APP) -> None:
        """Write the application; `GET /version` answers `version`."""
        (self.folder / "shop.py").write_text(app.replace("VERSION", str(version)))

    def start(self, *options: str) -> None:
        """Start the process."""
        command = [*COMMAND, "dev", "shop:app", "--port", str(self.port), *options]
        command += ["--app-dir", str(self.folder)]
        self.process = start(command, self.log)

    async def serves(self, version: int) -> None:
        """Wait until the node of this version answers."""

        async def serves() -> bool:
            return bool((await self.http.get("/version")).text == str(version))

        await settled(serves, f"version {version} is served: {self.text}", pause=0.01)

    @property
    def text(self) -> str:
        """The output of the process."""
        return self.log.read_text()

    async def prints(self, *words: str) -> None:
        """Wait until it has printed all the words."""
        await settled(lambda: all(word in self.text for word in words), f"{words} are printed")

    def api(self) -> httpx.AsyncClient:
        """Return a client of the server API, with the key that was printed."""
        key = re.search(r"#key=(\S+)", self.text)
        assert key, self.text
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port + INTERNAL_PORT_OFFSET}",
            headers={"X-API-Key": key[1]},
            trust_env=False,
            timeout=60,
        )

    def signal(self, number: signal.Signals, *, group: bool = False) -> list[int]:
        """Send a signal, as the terminal does to all processes; return all PIDs."""
        pids = tree(self.process.pid)
        for pid in pids if group else pids[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return pids

    async def gone(self, pids: list[int]) -> int:
        """Wait until the processes have ended; return the exit code of the first."""
        code = await asyncio.to_thread(self.process.wait, 60)
        await settled(lambda: not any(map(runs, pids)), "all processes have ended")
        return code


@contextlib.asynccontextmanager
async def running_dev(
    folder: Path, *options: str, app: str = APP, **files: str
) -> AsyncIterator[Dev]:
    """Run `wsfleet dev` on version 1 of `app`, until the block ends; `files` are written before."""
    dev = Dev(folder)
    dev.write(1, app)
    for name, text in files.items():
        (folder / f"{name}.yml").write_text(text)
    dev.start(*options)
    try:
        await dev.serves(1)
        yield dev
    finally:
        await dev.http.aclose()
        await asyncio.to_thread(stop, dev.process)

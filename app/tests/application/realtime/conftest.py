"""A node that serves the application with a `Realtime`."""

import asyncio
import threading
from pathlib import Path

import pytest

from tests.support import realtime_guest
from tests.support.nodes import RunningNode, StartNode

GUEST = "tests.support.realtime_guest:realtime"


@pytest.fixture
def guest_config(tmp_path: Path) -> Path:
    """Return the configuration of the application, and begin its records."""
    realtime_guest.go_on = asyncio.Event()
    realtime_guest.may_drain = asyncio.Event()
    realtime_guest.may_drain.set()
    realtime_guest.release = threading.Event()
    realtime_guest.drains.clear()
    realtime_guest.disconnected.clear()
    path = tmp_path / "wsfleet.yml"
    path.write_text(realtime_guest.CONFIG)
    return path


@pytest.fixture
async def node(start_node: StartNode, guest_config: Path) -> RunningNode:
    """Return a node that serves the application."""
    return await start_node(app=GUEST, config=guest_config)

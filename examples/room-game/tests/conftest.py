"""The game on a node of its own for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from room_game.app import realtime

from wsfleet.testing import Testbed

FOLDER = Path(__file__).parents[1]


@pytest.fixture
async def bed() -> AsyncIterator[Testbed]:
    """The game on one node; a drained node's rooms move to the next one that a test starts."""
    async with Testbed(realtime, config=FOLDER / "wsfleet.yml") as bed:
        yield bed

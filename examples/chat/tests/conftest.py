"""The chat on a node of its own for each test, with an empty database."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from wsfleet.testing import Testbed, TestbedClient

FOLDER = Path(__file__).parents[1]

SignIn = Callable[[str], Awaitable[TestbedClient]]


@pytest.fixture
async def bed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Testbed]:
    """The chat on two nodes."""
    monkeypatch.setenv("CHAT_DATABASE", ":memory:")
    from chat import app
    from chat.database import Database

    monkeypatch.setattr(app, "db", Database())
    async with Testbed(app.realtime, config=FOLDER / "wsfleet.yml", nodes=2) as bed:
        yield bed


@pytest.fixture
def sign_in(bed: Testbed) -> SignIn:
    """Sign in by the page's form, and connect with its cookie."""

    async def sign_in(name: str) -> TestbedClient:
        answer = await bed.http.post("/api/login", json={"name": name})
        return await bed.connect(cookies={"session": answer.cookies["session"]})

    return sign_in

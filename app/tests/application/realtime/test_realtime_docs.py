"""The examples of docs/realtime.md: one file, which type checkers accept and a node serves."""

import asyncio
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from centrifuge import ReplyError  # type: ignore[import-untyped]
from mypy import api
from websockets.asyncio.client import connect

from lab.paths import ROOT
from lab.waiting import settled
from tests.support.nodes import RunningNode, StartNode
from tests.support.sdk import sdk, subscribed
from wsfleet import Position

TEXT = (ROOT / "docs" / "realtime.md").read_text(encoding="utf-8")
ANNA = {"Cookie": "session=s3cret"}


def blocks(language: str) -> str:
    """Return the text of all blocks of a language."""
    return "\n\n".join(re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return the module that the examples are together."""
    (tmp_path / "documented_chat.py").write_text(blocks("python"))
    (tmp_path / "wsfleet.yml").write_text(blocks("yaml"))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("documented_chat")
    del sys.modules["documented_chat"]


@pytest.fixture
async def node(start_node: StartNode, tmp_path: Path, chat: Any) -> RunningNode:
    """Return a node that serves it."""
    return await start_node(app="documented_chat:realtime", config=tmp_path / "wsfleet.yml")


async def test_who_may_do_what(node: RunningNode, chat: Any) -> None:
    """A session connects, a member subscribes, a text is stripped; others are refused."""
    async with sdk(node, headers=ANNA) as anna:
        subscription, heard = await subscribed(anna, "room:lobby")
        await subscription.publish({"text": "  hello "})
        await settled(lambda: heard.data == [{"text": "hello"}], "it hears itself")
        with pytest.raises(ReplyError):
            await subscription.publish({"text": ""})
        assert (await anna.rpc("room.invite", "ben")).data == ["anna", "ben"]
        _, watching = await subscribed(anna, "ticker:ABC")
        assert watching.subscribed[0].data == {"market": "open"}
        async with httpx.AsyncClient(base_url=node.client_url, trust_env=False) as http:
            answer = await http.post("/rooms/lobby/notice", json={"text": "pinned"})
        assert answer.json() == 2
        await settled(lambda: heard.data[1:] == [{"notice": "pinned"}], "it hears the route")
        assert (await anna.rpc("draft.save", "hel")).data is None
        async with sdk(node, headers=ANNA) as other:
            assert (await other.rpc("draft", None)).data == "hel"
        assert (await anna.rpc("room.close", "lobby")).data is None
        await settled(lambda: heard.data[2:] == [{"closed": True}], "it hears the thread")


async def test_tasks_and_websockets(node: RunningNode, chat: Any) -> None:
    """A task listens, a WebSocket is fed, a lease has a token."""
    position = await chat.announce("first", "key")
    assert await chat.announce("first", "key") == position
    archiving = asyncio.create_task(chat.archive(Position()))
    await settled(lambda: chat.archived, "the task has it")
    assert chat.archived == ["{'notice': 'first'}"]
    archiving.cancel()
    base = node.client_url.replace("http", "ws")
    async with connect(f"{base}/ticker/ABC", proxy=None) as client:

        async def fed() -> bool:
            channels: dict[str, int] = await chat.realtime.channels()
            return channels == {"ticker:ABC": 1}

        await settled(fed, "the feed has begun")
        await chat.realtime.publish("ticker:ABC", 12.5)
        assert await client.recv() == "12.5"
    async with connect(f"{base}/call", proxy=None) as client:
        await client.send("hello")
        assert await client.recv() == "hello"
    assert 0 < await chat.run_room("7") < await chat.run_room("7")


@pytest.mark.usefixtures("processes")
def test_type_checkers_accept_them(chat: Any, tmp_path: Path) -> None:
    """`mypy --strict` finds nothing in the examples."""
    configuration = tmp_path / "mypy.ini"
    configuration.write_text("[mypy]\nstrict = True\n")
    found, _, _ = api.run(
        ["--config-file", str(configuration), "--cache-dir", str(tmp_path), chat.__file__]
    )
    assert found.startswith("Success"), found

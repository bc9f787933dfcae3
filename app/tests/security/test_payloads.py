"""Messages with content that parsers, Redis or logs could misread."""

import asyncio
import json
from typing import Any

import jwt
import pytest
import redis.asyncio
from websockets.exceptions import InvalidStatus

from tests.support.clients import closed, command, exchange
from tests.support.tokens import SECRET, bearer
from tests.support.victim import Victim, told

COMMANDS = "\r\nFLUSHALL\r\n*1\r\n$8\r\nFLUSHALL\r\n"
NAMES = [
    COMMANDS,
    "x\r\nSET canary dead\r\n",
    "canary",
    "*",
    "{",
    "}",
    "{}",
    "}:{x",
    "a}b{c",
    "\0",
    "\x1b[2J",
    "'); redis.call('FLUSHALL') --",
    "../../etc/passwd",
    "x" * 255,
]
LINE = '\n{"event": "forged", "level": "critical"}\n'


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
async def test_deep_json_on_the_plain_protocol(victim: Victim, opening: str) -> None:
    """JSON nested too deep is an error, and the connection stays open."""
    before = await victim.metric("wsfleet_messages_failed_total", code="too_deep")
    levels = 60_000 // len(opening)
    async with victim.client() as client:
        closing = "".join({"[": "]", "{": "}"}.get(c, "") for c in reversed(opening))
        answer = await exchange(client, opening * 200 + "1" + closing * 200)
        assert (answer["type"], answer["code"]) == ("error", "too_deep")
        assert (await exchange(client, opening * levels))["code"] == "too_deep"
        whole = opening * (levels // 2) + "1" + closing * (levels // 2)
        assert (await exchange(client, whole))["code"] == "too_deep"
    assert await victim.metric("wsfleet_messages_failed_total", code="too_deep") == before + 3


@pytest.mark.parametrize("place", ["connect", "publish", "unknown"])
async def test_deep_json_in_commands(victim: Victim, place: str) -> None:
    """JSON that is too deep for parsers gets 3501, also in an unknown field."""
    deep = "[" * 20_000 + "]" * 20_000
    before = await victim.disconnected(3501)
    async with victim.client("/connection/websocket") as client:
        if place != "connect":
            await command(client, connect={})
        fields = (
            f'{{"channel": "a", "data": {deep}}}' if place == "publish" else f'{{"data": {deep}}}'
        )
        await client.send(f'{{"id": 2, "{place}": {fields}}}')
        assert (await closed(client))[0] == 3501
    assert await victim.disconnected(3501) == before + 1


@pytest.fixture
async def canary(victim: Victim) -> Any:
    """Return a client of Redis; check that a key there is unchanged after the test."""
    async with redis.asyncio.Redis.from_url(victim.redis.url, decode_responses=True) as store:
        await store.set("canary", "alive")
        yield store
        assert await store.get("canary") == "alive"
        assert await store.exists("wsfleet:nodes")


async def test_redis_commands_as_names_of_channels(victim: Victim, canary: Any) -> None:
    """Redis commands in channel names are names: no other keys exist afterwards."""
    async with victim.client("/connection/websocket", max_queue=None) as client:
        await command(client, connect={})
        for name in NAMES:
            for request in (
                {"subscribe": {"channel": name}},
                {"publish": {"channel": name, "data": {}}},
                {"history": {"channel": name, "limit": 10}},
                {"presence": {"channel": name}},
                {"unsubscribe": {"channel": name}},
            ):
                await command(client, **request)
    keys = {key async for key in canary.scan_iter(count=1000)}
    assert all(key.startswith(("wsfleet:", "state:", "connection:", "canary")) for key in keys)


async def test_redis_commands_as_names_of_clients(victim: Victim, canary: Any) -> None:
    """Redis commands are valid as `client_id`, `idempotency_key`, user and `jti`."""
    for name in NAMES:
        async with victim.client(max_queue=None) as client:
            await exchange(client, {"client_id": name, "idempotency_key": name})
        token = jwt.encode({"sub": name, "jti": name}, SECRET, "HS256")
        async with victim.client(additional_headers=bearer(token), max_queue=None) as client:
            await client.send("hello")
            await told(client, type="ack")
        async with victim.client("/connection/websocket") as client:
            assert "connect" in await command(client, connect={"token": token})


async def test_lines_for_the_log(victim: Victim) -> None:
    """Line breaks in input forge no event: each line of the log is one JSON object."""
    bad = jwt.encode({"sub": LINE}, SECRET, "HS256", {"kid": LINE, "typ": LINE}) + LINE
    async with victim.client("/connection/websocket") as client:
        await client.send(json.dumps({"id": 1, "connect": {"token": bad, "name": LINE}}))
        assert (await closed(client))[0] == 3500
    with pytest.raises(InvalidStatus):
        await victim.client(f"/ws?token={bad.replace(LINE, '%0a%7b%22event%22')}")
    async with victim.client("/connection/websocket") as client:
        await command(client, connect={"token": jwt.encode({"sub": LINE}, SECRET, "HS256")})
        await command(client, subscribe={"channel": LINE})
        await client.close(4000, LINE)
    async with victim.client() as client:
        assert (await exchange(client, {"client_id": LINE}))["code"] == "invalid_client_id"
    await asyncio.sleep(0.2)
    lines = victim.log.read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert "token_refused" in events
    assert "forged" not in events

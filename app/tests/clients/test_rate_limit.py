"""How much one client may say."""

import asyncio
import contextlib
import json
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from lab.waiting import TIMEOUT, settled
from tests.support.clients import centrifuge, closed, command, exchange
from tests.support.metrics import value
from tests.support.nodes import RunningNode, StartNode
from tests.support.tokens import token
from wsfleet.clients.rate_limit import BURST, Meter, Rates
from wsfleet.protocol.json_depth import payload_too_deep, too_deep


def test_a_rate_is_averaged() -> None:
    """Ten seconds' worth at once, then one by one, and after a rest as much as before."""
    meter = Meter(Rates.of(2, 0))
    assert sum(meter.take(1, now=100.0) for _ in range(100)) == 2 * BURST
    meter = Meter(Rates.of(2, 0))
    taken = [meter.take(1, now=100 + n / 2) for n in range(100)]
    assert all(taken)
    assert sum(meter.take(1, now=200.0) for _ in range(100)) == 2 * BURST


def test_bytes_count_as_well() -> None:
    """A message larger than the bucket passes a connection at rest, and is paid for."""
    meter = Meter(Rates.of(0, 100))
    assert meter.take(5000, now=100.0)
    assert not meter.take(1, now=139.0)
    assert meter.take(1, now=141.0)


def test_no_rate_is_no_limit() -> None:
    """0 turns a limit off."""
    meter = Meter(Rates.of(0, 0))
    assert all(meter.take(2**40, now=1.0) for _ in range(1000))


def depth(value: object) -> int:
    """How deep a value nests."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth, inner), default=0)
    return 0


json_values = st.recursive(
    st.none() | st.text(alphabet='[]{}"\\a') | st.booleans(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='[]{}"\\'), inner),
)


@given(json_values, st.integers(1, 6))
def test_depth_is_that_of_the_value(value: object, most: int) -> None:
    """Brackets in strings do not count, and neither does width."""
    assert too_deep(orjson.dumps(value), most) is (depth(value) > most)


@given(st.binary() | st.binary(max_size=40).map(lambda some: b"[{" * 200 + some))
def test_bytes_that_are_not_json_have_no_depth(data: bytes) -> None:
    """However many brackets are among them: a Protobuf client, or `b64data`, publishes anything."""
    try:
        json.loads(data)
    except ValueError:
        assert not payload_too_deep(data, 1)
    assert payload_too_deep(b"[[1]]", 1)


async def flood(node: RunningNode, client: ClientConnection, message: str, times: int) -> None:
    """Say the same again and again, and be closed for it, with a code that is counted."""
    reading = asyncio.create_task(closed(client))
    with contextlib.suppress(ConnectionClosed):
        for _ in range(times):
            await client.send(message)
    assert await reading == (3013, "too many requests")
    await settled(lambda: value(node, "disconnects_total", code="3013") == 1, "it is counted")


@pytest.mark.parametrize("limit", [{"message_rate": 5}, {"byte_rate": 50}])
async def test_a_flood_ends_its_own_connection(
    start_node: StartNode, limit: dict[str, float]
) -> None:
    """With 3013, and what is behind the limit is not carried out; others go on."""
    node = await start_node(**limit)
    async with node.connect() as flooder, node.connect() as other:
        await flood(node, flooder, "0123456789", 500)
        await other.send("still here")
        heard = 0
        while json.loads(await asyncio.wait_for(other.recv(), TIMEOUT))["type"] == "message":
            heard += 1
        assert 50 <= heard < 500


async def test_a_flood_of_commands_ends_its_connection(start_node: StartNode, config: Path) -> None:
    """The Centrifuge protocol has the same limit and the same code."""
    node = await start_node(config=config, message_rate=2)
    async with centrifuge(node) as client:
        await command(client, connect={"token": token()})
        await flood(node, client, '{"id": 1, "presence": {"channel": "x"}}', 500)


async def test_json_that_nests_too_deep_is_an_error(start_node: StartNode, config: Path) -> None:
    """It would break other clients' parsers; text that only looks like it is text."""
    node = await start_node(max_json_depth=10)
    async with node.connect() as client:
        answer = await exchange(client, "[" * 11 + "]" * 11)
        assert (answer["type"], answer["code"]) == ("error", "too_deep")
        assert (await exchange(client, "[" * 10 + "]" * 10))["type"] == "ack"
        assert (await exchange(client, "[" * 11))["type"] == "ack"
    assert value(node, "messages_failed_total", code="too_deep") == 1
    async with centrifuge(node) as client:
        await command(client, connect={})
        deep = {"channel": "a", "data": json.loads("[" * 11 + "]" * 11)}
        assert (await command(client, publish=deep))["error"]["code"] == 107
    assert value(node, "reply_errors_total", code="107") == 1


async def test_channels_of_a_client_are_limited(start_node: StartNode, config: Path) -> None:
    """`channel_limit`: error 106, counted, for those beyond."""
    node = await start_node(config=config)
    async with centrifuge(node) as client:
        await command(client, connect={"token": token()})
        for number in range(3):
            assert "subscribe" in await command(client, subscribe={"channel": f"c{number}"})
        for number in range(3, 6):
            answer = await command(client, subscribe={"channel": f"c{number}"})
            assert answer["error"]["code"] == 106
    assert value(node, "reply_errors_total", code="106") == 3

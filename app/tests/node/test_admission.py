"""Admission of WebSockets, and disconnects: tokens, origins, blocked users."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from lab.waiting import settled
from tests.support.clients import centrifuge, closed, command, exchange
from tests.support.metrics import value
from tests.support.nodes import RunningNode, StartNode
from tests.support.redis import RedisServer
from tests.support.tokens import API_KEY, NEXT_API_KEY, bearer, token
from wsfleet.node import users


async def refused(node: RunningNode, reason: str, **options: Any) -> int:
    """The status that a handshake is refused with; the metric counts it by its reason."""
    refusals = node.node.metrics.connections_refused.labels(reason)
    before = refusals._value.get()
    with pytest.raises(InvalidStatus) as caught:
        await node.connect(**options)
    assert refusals._value.get() == before + 1
    return caught.value.response.status_code


async def api(node: RunningNode, method: str, key: str = API_KEY, **request: Any) -> httpx.Response:
    """Call the server API."""
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.post(f"{node.url}/api/{method}", json=request, headers={"X-API-Key": key})


async def test_a_token_opens_the_plain_protocol(start_node: StartNode, config: Path) -> None:
    """In the query, as browsers can give it, or in the header of RFC 6750."""
    node = await start_node(config=config)
    url = f"{node.url.replace('http', 'ws')}/ws?token={token()}"
    async with (
        node.connect(additional_headers=bearer(token())) as one,
        connect(url, proxy=None) as two,
    ):
        assert (await exchange(one, "hello"))["type"] == "ack"
        await two.recv()
        assert (await exchange(two, "hello"))["type"] == "ack"
        assert len(node.node.users.of("ann")) == 2
    await settled(lambda: not node.node.users.of("ann"), "they are counted out")


async def test_an_invalid_token_is_refused(start_node: StartNode, config: Path) -> None:
    """401 where another token would help, 403 where none would, before anything is accepted."""
    node = await start_node(config=config)

    async def status(reason: str, text: str) -> int:
        return await refused(node, reason, additional_headers=bearer(text))

    assert await refused(node, "no_token") == 401
    assert (
        await refused(node, "no_token", additional_headers={"Authorization": "Basic YTpi"}) == 401
    )
    assert await status("no_token", "") == 401
    assert await status("invalid_token", "x") == 401
    assert await status("invalid_token", token(secret="x" * 32)) == 401
    assert await status("expired_token", token(exp=int(time.time()) - 1)) == 401
    assert await status("expired_token", token(nbf=int(time.time()) + 60)) == 401
    assert await status("anonymous_token", token("")) == 403
    assert value(node, "connections_opened_total") == 0


async def test_a_refusal_has_a_challenge(start_node: StartNode, config: Path) -> None:
    """A 401 has the challenge of RFC 9110, section 11.6.1, and each a line of text."""
    node = await start_node(config=config)
    with pytest.raises(InvalidStatus) as caught:
        await node.connect()
    assert caught.value.response.headers["WWW-Authenticate"] == "Bearer"
    assert b"a token is needed" in caught.value.response.body


async def test_pages_of_other_origins_are_refused(start_node: StartNode, config: Path) -> None:
    """Both protocols refuse them, with any token; clients without an Origin may connect."""
    node = await start_node(config=config)
    shown = bearer(token())
    for origin in ("https://evil.org", "https://example.com.evil.org", "null"):
        assert await refused(node, "origin", origin=origin, additional_headers=shown) == 403
        with pytest.raises(InvalidStatus) as caught:
            await centrifuge(node, origin=origin)
        assert caught.value.response.status_code == 403
    assert value(node, "connections_refused_total", reason="origin") == 6
    async with (
        node.connect(origin="https://a.example.com", additional_headers=shown),
        centrifuge(node, origin="https://a.example.com"),
    ):
        pass


async def test_a_plain_connection_ends_with_its_token(start_node: StartNode, config: Path) -> None:
    """At `exp`, with 3005; `/ws` has no way to bring a new one."""
    node = await start_node(config=config)
    async with node.connect(additional_headers=bearer(token(exp=time.time() + 1.5))) as client:
        assert (await exchange(client, "hello"))["type"] == "ack"
        assert await closed(client) == (3005, "connection expired")
    await settled(lambda: not node.node.hub, "it is gone")
    assert value(node, "disconnects_total", code="3005") == 1


async def test_connections_of_a_user_are_limited(start_node: StartNode, config: Path) -> None:
    """Of both protocols together; 429 in the handshake, or the protocol's 3504."""
    node = await start_node(config=config)
    shown = bearer(token())
    async with (
        node.connect(additional_headers=shown),
        centrifuge(node) as two,
        centrifuge(node) as three,
    ):
        assert "connect" in await command(two, connect={"token": token()})
        assert await refused(node, "user_connection_limit", additional_headers=shown) == 429
        await three.send(json.dumps({"id": 1, "connect": {"token": token()}}))
        assert (await closed(three))[0] == 3504
        async with node.connect(additional_headers=bearer(token("bob"))):
            pass
    await settled(lambda: not node.node.users.of("ann"), "they are gone")
    async with node.connect(additional_headers=shown):
        pass


async def test_handshakes_at_once_do_not_pass_the_limit(
    start_node: StartNode, config: Path
) -> None:
    """Those that were admitted before the others were counted are closed with 3504."""
    node = await start_node(config=config)

    async def attempt() -> int | str:
        try:
            async with node.connect(additional_headers=bearer(token())) as client:
                await client.send("hello")
                answer: str = json.loads(await client.recv())["type"]
                await asyncio.sleep(0.5)
                return answer
        except InvalidStatus as error:
            return error.response.status_code
        except ConnectionClosed as error:
            return error.rcvd.code if error.rcvd else 0

    outcomes = await asyncio.gather(*(attempt() for _ in range(20)))
    accepted = [outcome for outcome in outcomes if outcome not in (429, 3504)]
    assert set(accepted) <= {"ack", "message"}
    assert len(accepted) == 2


async def test_a_blocked_user_is_out_everywhere(start_node: StartNode, config: Path) -> None:
    """Connections on all nodes and of both protocols end, and no new one comes until unblocked."""
    one, two = await start_node(config=config), await start_node(config=config)
    shown = bearer(token())
    async with (
        one.connect(additional_headers=shown) as plain,
        centrifuge(two) as sdk,
        two.connect(additional_headers=bearer(token("bob"))) as other,
    ):
        await command(sdk, connect={"token": token()})
        expire_at = int(time.time()) + 600
        assert (await api(one, "block_user", user="ann", expire_at=expire_at)).json() == {
            "result": {}
        }
        assert (await closed(plain))[0] == 3507
        assert (await closed(sdk))[0] == 3507
        assert (await exchange(other, "still here"))["type"] == "ack"
    assert await refused(two, "blocked_user", additional_headers=shown) == 403
    async with centrifuge(one) as sdk:
        await sdk.send(json.dumps({"id": 1, "connect": {"token": token()}}))
        assert (await closed(sdk))[0] == 3507
    assert not one.node.users.of("ann")
    await api(two, "unblock_user", user="ann")
    async with one.connect(additional_headers=shown) as plain:
        assert (await exchange(plain, "back"))["type"] == "ack"


@pytest.mark.parametrize("pubsub_comes_back", [True, False])
async def test_a_block_that_was_not_heard_is_found(
    start_node: StartNode,
    config: Path,
    store: Any,
    monkeypatch: pytest.MonkeyPatch,
    pubsub_comes_back: bool,
) -> None:
    """The list in Redis is looked at when pub/sub is back, and again and again."""
    if not pubsub_comes_back:
        monkeypatch.setattr(users, "RECHECK_INTERVAL", 0.2)
    node = await start_node(config=config)
    async with (
        node.connect(additional_headers=bearer(token())) as ann,
        node.connect(additional_headers=bearer(token("bob"))) as bob,
    ):
        await store.set("wsfleet:blocked:ann", 1)
        if pubsub_comes_back:
            await store.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        assert (await closed(ann))[0] == 3507
        assert (await exchange(bob, "still here"))["type"] == "ack"


async def test_a_revoked_token_is_out_and_its_user_is_not(
    start_node: StartNode, config: Path, store: Any
) -> None:
    """By its `jti`, which is kept no longer than is said; another token of the user is good."""
    one, two = await start_node(config=config), await start_node(config=config)
    lost, kept = token(jti="lost"), token(jti="kept")
    async with (
        one.connect(additional_headers=bearer(lost)) as plain,
        centrifuge(two) as sdk,
        one.connect(additional_headers=bearer(kept)) as other,
        centrifuge(two) as refreshed,
    ):
        await command(sdk, connect={"token": lost})
        expire_at = int(time.time()) + 600
        await command(refreshed, connect={"token": kept})
        await api(two, "revoke_token", uid="lost", expire_at=expire_at)
        assert (await closed(plain))[0] == 3500
        assert (await closed(sdk))[0] == 3500
        assert (await exchange(other, "still here"))["type"] == "ack"
        await refreshed.send(json.dumps({"id": 2, "refresh": {"token": lost}}))
        assert (await closed(refreshed))[0] == 3500
    assert await refused(two, "revoked_token", additional_headers=bearer(lost)) == 401
    assert 590 < await store.ttl("wsfleet:revoked:lost") <= 600
    async with one.connect(additional_headers=bearer(kept)):
        pass


async def test_blocking_until_yesterday_is_a_mistake(start_node: StartNode, config: Path) -> None:
    """And so is milliseconds' opposite, a time in the past; nothing is blocked then."""
    node = await start_node(config=config)
    answer = (await api(node, "block_user", user="ann", expire_at=1)).json()
    assert answer["error"]["code"] == 107
    async with node.connect(additional_headers=bearer(token())):
        pass


async def test_an_unavailable_denylist_is_a_temporary_error(
    start_node: StartNode, config: Path, redis_process: RedisServer
) -> None:
    """Without Redis nobody knows who is blocked: 503, and a temporary error."""
    node = await start_node(config=config)
    redis_process.stop()
    await settled(lambda: not node.node.store.connected, "Redis is away")
    assert await refused(node, "unavailable", additional_headers=bearer(token())) == 503
    async with centrifuge(node) as client:
        reply = await command(client, connect={"token": token()})
        assert reply["error"] == {
            "code": 100,
            "message": "internal server error",
            "temporary": True,
        }


async def test_a_revoked_subscription_token_opens_no_channel(
    start_node: StartNode, config: Path
) -> None:
    """The `jti` of a subscription token counts as well."""
    node = await start_node(config=config)
    await api(node, "revoke_token", uid="lost")
    async with centrifuge(node) as client:
        await command(client, connect={"token": token()})
        right = {"channel": "$room"}
        lost = await command(client, subscribe=right | {"token": token(jti="lost", **right)})
        assert lost["error"]["code"] == 103
        assert "subscribe" in await command(client, subscribe=right | {"token": token(**right)})


async def test_api_keys_are_rotated(start_node: StartNode, config: Path) -> None:
    """Each key of the list is good; a wrong one is 401, and without any key the API is 403."""
    node, keyless = await start_node(config=config), await start_node()
    for key, status in ((API_KEY, 200), (NEXT_API_KEY, 200), ("", 401), ("the key", 401)):
        assert (await api(node, "info", key)).status_code == status
    assert (await api(keyless, "info", "")).status_code == 403

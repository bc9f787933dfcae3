"""The server's HTTP API against two nodes: what one is asked, clients of the other hear."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from centrifuge import CentrifugeError, ClientEventHandler, ClientState  # type: ignore[import-untyped]

from tests.harness import StartNode, settled
from tests.test_centrifuge_endpoint import CONFIG, Pair, sdk, subscribed, token
from wsfleet.records import Member

KEY = "a key"


@pytest.fixture
async def pair(start_node: StartNode, tmp_path: Path) -> Pair:
    """Two nodes with a key."""
    path = tmp_path / "config.yml"
    path.write_text(CONFIG + f'http_api: {{key: "{KEY}"}}\n')
    return await start_node(config=path), await start_node(config=path)


class Api:
    """A caller of the API."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def __call__(self, method: str, **request: Any) -> Any:
        """Call a method that must succeed; its result."""
        response = await self.http.post(f"/api/{method}", json=request)
        assert response.status_code == 200, response.text
        answer = response.json()
        assert "error" not in answer, answer
        return answer["result"]

    async def error(self, method: str, **request: Any) -> int:
        """Call a method that must not; the code of its error."""
        code: int = (await self.http.post(f"/api/{method}", json=request)).json()["error"]["code"]
        return code


@pytest.fixture
async def api(pair: Pair) -> AsyncIterator[Api]:
    """The API of the first node."""
    headers = {"X-API-Key": KEY}
    async with httpx.AsyncClient(base_url=pair[0].url, headers=headers, trust_env=False) as http:
        yield Api(http)


async def test_publish_once(pair: Pair, api: Api) -> None:
    """A repeated idempotency key gives the first position, and nobody hears it twice."""
    async with sdk(pair[1]) as client, pair[1].connect() as plain:
        _, events = await subscribed(client, "broadcast")
        first = await api("publish", channel="broadcast", data={"n": 1}, idempotency_key="once")
        again = await api("publish", channel="broadcast", data={"n": 1}, idempotency_key="once")
        assert first == again
        await api("publish", channel="broadcast", data={"n": 2}, tags={"a": "b"})
        await settled(lambda: len(events.data) == 2, "both")
        assert events.data == [{"n": 1}, {"n": 2}]
        assert events.publications[0].pub.info is None
        heard = [json.loads(await asyncio.wait_for(plain.recv(), 5))["data"] for _ in range(2)]
        assert heard == [{"n": 1}, {"n": 2}]


async def test_broadcast_answers_for_each_channel(api: Api) -> None:
    """One channel may fail and another not."""
    responses = (await api("broadcast", channels=["a", "unknown:b"], data=1))["responses"]
    assert responses[0]["result"]["offset"] == 1
    assert responses[1]["error"]["code"] == 102


async def test_a_publication_has_a_maximum_size(start_node: StartNode, tmp_path: Path) -> None:
    """Data and tags over it are error 107 with both sizes; at it they are published."""
    path = tmp_path / "config.yml"
    path.write_text(CONFIG + f'http_api: {{key: "{KEY}"}}\n')
    node = await start_node(config=path, max_publication_size=1000)
    headers = {"X-API-Key": KEY}
    async with httpx.AsyncClient(base_url=node.url, headers=headers, trust_env=False) as http:
        api = Api(http)
        assert (await api("publish", channel="book", data="x" * 998))["offset"] == 1
        assert await api.error("publish", channel="book", data="x" * 998, tags={"a": "b"}) == 107
        refused = await http.post("/api/publish", json={"channel": "book", "data": "x" * 1500})
        assert "1502 bytes" in refused.text
        assert "may have 1000 (WSFLEET_MAX_PUBLICATION_SIZE)" in refused.text
        responses = (await api("broadcast", channels=["a", "b"], data="x" * 999))["responses"]
        assert [response["error"]["code"] for response in responses] == [107, 107]
        assert (await api("history", channel="book"))["offset"] == 1
    async with node.connect() as client, sdk(node) as publisher:
        await client.send("y" * 1001)
        assert json.loads(await client.recv())["code"] == "too_large"
        with pytest.raises(CentrifugeError) as error:
            await publisher.publish("quiet:room", "y" * 1001)
        assert error.value.code == 107
        await client.send("fits")
        assert json.loads(await client.recv())["type"] == "ack"


async def test_history_and_its_removal(api: Api) -> None:
    """Pages, the top, and a removal after which offsets go on."""
    for number in range(1, 6):
        await api("publish", channel="book", data=number)
    page = await api("history", channel="book", limit=2, since={"offset": 2})
    assert [(p["data"], p["offset"]) for p in page["publications"]] == [(3, 3), (4, 4)]
    assert page["offset"] == 5
    assert (await api("history", channel="book"))["publications"] == []
    newest = await api("history", channel="book", limit=1, reverse=True)
    assert newest["publications"][0]["data"] == 5
    assert await api.error("history", channel="book", since={"offset": 1, "epoch": "x"}) == 112
    assert await api.error("history", channel="quiet:book", limit=1) == 108
    await api("history_remove", channel="book")
    assert (await api("history", channel="book", limit=-1))["publications"] == []
    assert (await api("publish", channel="book", data=6))["offset"] == 6


async def test_subscribe_unsubscribe_disconnect_a_user(pair: Pair, api: Api) -> None:
    """Whichever node the user is on."""

    class Server(ClientEventHandler):  # type: ignore[misc]
        def __init__(self) -> None:
            self.log: list[Any] = []

        async def on_subscribed(self, ctx: Any) -> None:
            self.log.append(("subscribed", ctx.channel))

        async def on_publication(self, ctx: Any) -> None:
            self.log.append(("publication", ctx.pub.data))

        async def on_unsubscribed(self, ctx: Any) -> None:
            self.log.append(("unsubscribed", ctx.channel))

        async def on_disconnected(self, ctx: Any) -> None:
            self.log.append(("disconnected", ctx.code))

    server = Server()
    async with sdk(pair[1], token=token("ann"), events=server) as ann, sdk(pair[1]) as other:
        server.log.clear()
        await api("subscribe", user="ann", channel="offers")
        await settled(lambda: len(server.log) == 1, "subscribed")
        await api("publish", channel="offers", data="cheap")
        await settled(lambda: len(server.log) == 2, "heard")
        await api("unsubscribe", user="ann", channel="offers")
        await settled(lambda: len(server.log) == 3, "unsubscribed")
        await api("disconnect", user="ann")
        await settled(lambda: len(server.log) >= 4, "disconnected")
        assert server.log[:3] == [
            ("subscribed", "offers"),
            ("publication", "cheap"),
            ("unsubscribed", "offers"),
        ]
        assert ("disconnected", 3503) in server.log
        assert ann.state is ClientState.DISCONNECTED
        assert other.state is ClientState.CONNECTED


async def test_who_leaves_while_it_is_subscribed_leaves_nothing(
    pair: Pair, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscription by the server that comes too late is none: nobody is present."""
    broker = pair[1].node.broker
    join = broker.join
    asked, go_on, joined = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow_join(channel: str, client: str, member: Member) -> None:
        asked.set()
        await go_on.wait()
        await join(channel, client, member)
        joined.set()

    async with sdk(pair[1], token=token("ann")):
        monkeypatch.setattr(broker, "join", slow_join)
        await api("subscribe", user="ann", channel="offers")
        await asked.wait()
    await settled(lambda: len(pair[1].node.hub) == 0, "gone")
    go_on.set()
    await joined.wait()

    async def nobody_there() -> bool:
        return await broker.members("offers") == {}

    await settled(nobody_there, "nobody is present")
    await settled(lambda: "offers" not in broker._following, "the channel is not followed")


async def test_presence(pair: Pair, api: Api) -> None:
    """Who is in a channel, from any node."""
    async with sdk(pair[1], token=token("ann", info={"name": "Ann"})) as ann:
        await subscribed(ann, "room")
        (member,) = (await api("presence", channel="room"))["presence"].values()
        assert (member["user"], member["conn_info"]) == ("ann", {"name": "Ann"})
        stats = await api("presence_stats", channel="room")
        assert stats == {"num_clients": 1, "num_users": 1}


async def test_channels_and_info_count_clients(pair: Pair, api: Api) -> None:
    """At the moment of asking, on all nodes, of both protocols."""
    one, two = pair
    keys = ("name", "num_clients", "num_users", "num_subs", "num_channels")

    async def info() -> list[tuple[Any, ...]]:
        return [tuple(node[key] for key in keys) for node in (await api("info"))["nodes"]]

    async with sdk(one, token=token("ann")) as ann, sdk(two, token=token("bob")) as bob:
        await subscribed(ann, "room")
        subscription, _ = await subscribed(bob, "room")
        async with sdk(two, token=token("bob")) as bobs_other, two.connect():
            await subscribed(bobs_other, "broadcast")
            assert (await api("channels"))["channels"] == {
                "#ann": {"num_clients": 1},
                "#bob": {"num_clients": 2},
                "broadcast": {"num_clients": 2},
                "room": {"num_clients": 2},
            }
            assert await info() == [("node1", 1, 1, 2, 2), ("node2", 3, 2, 5, 3)]
        await subscription.unsubscribe()
        await settled(lambda: two.node.hub.count("json room") == 0, "unsubscribed")
        assert (await api("channels", pattern="r*"))["channels"] == {"room": {"num_clients": 1}}
        await settled(lambda: len(two.node.hub) == 1, "gone")
        assert await info() == [("node1", 1, 1, 2, 2), ("node2", 1, 1, 1, 1)]
        assert all(node["uptime"] >= 0 and node["version"] for node in (await api("info"))["nodes"])


async def test_a_count_without_a_node_is_none(
    pair: Pair, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a live node does not answer the error names it; a sum without it would be wrong."""
    monkeypatch.setattr("wsfleet.survey.TIMEOUT", 0.2)
    monkeypatch.setattr(pair[1].node.listeners, "commanded", lambda command: None)
    for method in ("channels", "info"):
        error = (await api.http.post(f"/api/{method}", json={})).json()["error"]
        assert error["code"] == 100
        assert error["message"].endswith("from node2")


async def test_the_key_is_needed(pair: Pair, start_node: StartNode) -> None:
    """No key or a wrong one is 401, none configured 403, with the way to mend it."""
    closed = await start_node()
    async with httpx.AsyncClient(trust_env=False) as http:
        for url, headers, status, message in (
            (pair[0].url, {}, 401, "missing or wrong"),
            (pair[0].url, {"X-API-Key": "a ke"}, 401, "missing or wrong"),
            (closed.url, {"X-API-Key": ""}, 403, "http_api.key is not configured"),
        ):
            response = await http.post(f"{url}/api/info", json={}, headers=headers)
            assert response.status_code == status
            assert message in response.text


async def test_a_mistake_in_a_request_is_named(api: Api) -> None:
    """An unknown or missing field is no silent success."""
    response = await api.http.post("/api/publish", json={"chanel": "x", "data": 1})
    assert response.status_code == 422
    assert "chanel" in response.text

"""The server's HTTP API against two nodes: what one is asked, clients of the other hear."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from centrifuge import CentrifugeError, ClientEventHandler, ClientState  # type: ignore[import-untyped]

from lab.waiting import TIMEOUT, settled
from tests.support.api import KEY, Api, raw
from tests.support.clients import closed
from tests.support.nodes import StartNode
from tests.support.sdk import CONFIG, Pair, sdk, subscribed
from tests.support.tokens import token
from wsfleet.api.methods import Api as Methods
from wsfleet.channels.publication import Member

pytestmark = pytest.mark.backends("redis", "memory")


@pytest.fixture
async def pair(start_node: StartNode, tmp_path: Path) -> Pair:
    """Two nodes with a key."""
    path = tmp_path / "config.yml"
    delay = "\nclient:\n  expired_sub_close_delay: 10ms\n"
    path.write_text(CONFIG.replace("\nclient:\n", delay) + f'http_api: {{key: "{KEY}"}}\n')
    return await start_node(config=path), await start_node(config=path)


@pytest.fixture
async def api(pair: Pair) -> AsyncIterator[Api]:
    """The API of the first node."""
    headers = {"X-API-Key": KEY}
    async with httpx.AsyncClient(
        base_url=pair[0].url, headers=headers, trust_env=False, timeout=TIMEOUT
    ) as http:
        yield Api(http)


async def test_publish_once(pair: Pair, api: Api) -> None:
    """A repeated idempotency key gives the first position, and nobody hears it twice."""
    async with sdk(pair[1]) as client, pair[1].connect() as plain:
        _, events = await subscribed(client, "broadcast")
        first = await api("publish", channel="broadcast", data={"n": 1}, idempotency_key="once")
        again = await api("publish", channel="broadcast", data={"n": 1}, idempotency_key="once")
        assert first == again
        await api("publish", channel="broadcast", data={"n": 2}, tags={"a": "b"})
        await settled(lambda: len(events.data) == 2, "both publications arrive")
        assert events.data == [{"n": 1}, {"n": 2}]
        assert events.publications[0].pub.info is None
        texts = [await asyncio.wait_for(plain.recv(), TIMEOUT) for _ in range(2)]
        heard = [json.loads(text)["data"] for text in texts]
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
    async with httpx.AsyncClient(
        base_url=node.url, headers=headers, trust_env=False, timeout=TIMEOUT
    ) as http:
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
        await settled(lambda: len(server.log) == 1, "the client is subscribed")
        await api("publish", channel="offers", data="cheap")
        await settled(lambda: len(server.log) == 2, "the publication is in the log")
        await api("unsubscribe", user="ann", channel="offers")
        await settled(lambda: len(server.log) == 3, "the client is unsubscribed")
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


async def test_a_late_subscription_of_a_gone_client_is_removed(
    pair: Pair, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscription by the server that comes too late is removed: nobody is present."""
    broker = pair[1].node.broker
    join = broker.presence_add
    asked, go_on, joined = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow_join(channel: str, client: str, member: Member) -> None:
        asked.set()
        await go_on.wait()
        await join(channel, client, member)
        joined.set()

    async with sdk(pair[1], token=token("ann")):
        monkeypatch.setattr(broker, "presence_add", slow_join)
        await api("subscribe", user="ann", channel="offers")
        await asked.wait()
    await settled(lambda: len(pair[1].node.hub) == 0, "the client has left")
    go_on.set()
    await joined.wait()

    async def nobody_there() -> bool:
        return await broker.members("offers") == {}

    await settled(nobody_there, "nobody is present")
    await settled(lambda: "offers" not in broker.followed._channels, "the channel is not followed")


async def test_presence(pair: Pair, api: Api) -> None:
    """The members of a channel are the same from any node."""
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
        await settled(
            lambda: two.node.hub.count("json websocket publications room") == 0, "unsubscribed"
        )
        assert (await api("channels", pattern="r*"))["channels"] == {"room": {"num_clients": 1}}
        await settled(lambda: len(two.node.hub) == 1, "the client has left")
        assert await info() == [("node1", 1, 1, 2, 2), ("node2", 1, 1, 1, 1)]
        assert all(node["uptime"] >= 0 and node["version"] for node in (await api("info"))["nodes"])


async def test_a_missing_node_makes_a_count_an_error(
    pair: Pair, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a live node does not answer the error names it; a sum without it would be wrong."""
    monkeypatch.setattr("wsfleet.broker.survey.TIMEOUT", 0.2)
    monkeypatch.setattr(pair[1].node.dispatcher, "commanded", lambda command: None)
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
    """A missing field or a wrong type is an error."""
    response = await api.http.post("/api/publish", json={"chanel": "x", "data": 1})
    assert response.status_code == 200
    assert response.json() == {
        "error": {"code": 107, "message": "bad request: channel name is empty"}
    }
    response = await api.http.post("/api/publish", json={"channel": 1, "data": 1})
    assert response.status_code == 422
    assert "$.channel" in response.json()["detail"]


# Requests as Centrifugo's clients send them.


async def test_data_arrives_as_it_was_sent(pair: Pair, api: Api) -> None:
    """Byte for byte: in the channel's stream, to both protocols, and out of the history."""
    data = b'{"n": 18446744073709551616, "d":1.10000000000000000001,"d":[ 1E2 ],"u":"\\u00fc"}'
    async with raw(pair[1]) as client, pair[1].connect() as plain:
        await client.command(subscribe={"channel": "broadcast"})
        body = b'{"channel":"broadcast","data":%b ,"tags":{"a":"\\u00fc"}}' % data
        answer = await api.http.post("/api/publish", content=body)
        assert answer.json()["result"]["offset"] == 1
        pushed = await client.line("pub")
        assert data.decode() in pushed
        assert json.loads(pushed)["push"]["pub"]["tags"] == {"a": "ü"}
        assert data.decode() in str(await asyncio.wait_for(plain.recv(), TIMEOUT))
        history = await api.http.post("/api/history", json={"channel": "broadcast", "limit": 1})
        assert data in history.content


async def test_any_content_type_is_taken(api: Api) -> None:
    """The body alone says what it is."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "x"):
        body = b'{"channel": "book", "data": 1}'
        answer = await api.http.post("/api/publish", content=body, headers={"Content-Type": kind})
        assert "result" in answer.json()


async def test_invalid_requests(pair: Pair, api: Api) -> None:
    """Each has its status, and a sentence that says what is wrong."""
    methods = list(Methods(pair[0].node).methods)
    for body in (b"hello", b'{"user":"\\ud83d"}', b'{"data":1e400}', b"\xff"):
        for method in [*methods, "batch", ""]:
            answer = await api.http.post(f"/api/{method}".rstrip("/"), content=body)
            assert answer.status_code == 400, method
            assert "the body is not JSON" in answer.json()["detail"]
    assert (await api.http.post("/api/nothing", json={})).status_code == 404
    answer = await api.http.get("/api/publish")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


async def test_bytes_are_published(pair: Pair, api: Api) -> None:
    """`b64data` is any bytes; a client whose encoding cannot carry them is closed with 3506."""
    encoded = base64.b64encode(b"\xff\x00").decode()
    async with raw(pair[1]) as client:
        await client.command(subscribe={"channel": "broadcast"})
        await api("publish", channel="broadcast", b64data=base64.b64encode(b"[1]").decode())
        assert (await client.push("pub"))["data"] == [1]
        await api("publish", channel="broadcast", b64data=encoded, data="ignored")
        assert await client.closed() == 3506
    assert await api.error("publish", channel="book", b64data="!") == 107
    brackets = base64.b64encode(b"[{" * 5000).decode()
    assert (await api("publish", channel="book", b64data=brackets))["offset"] == 1
    for field in ({"data": json.loads("[" * 200 + "]" * 200)},
                  {"b64data": base64.b64encode(b"[" * 200 + b"]" * 200).decode()}):  # fmt: skip
        assert await api.error("publish", channel="book", **field) == 107


async def test_a_publication_without_history(pair: Pair, api: Api) -> None:
    """With `skip_history` subscribers hear it, and nothing is kept or counted."""
    async with raw(pair[1]) as client:
        await client.command(subscribe={"channel": "book"})
        await api("publish", channel="book", data=1)
        assert await api("publish", channel="book", data=2, skip_history=True) == {}
        await api("publish", channel="book", data=3, skip_history=False)
        heard = [await client.push("pub") for _ in range(3)]
        assert [(each["data"], each.get("offset", 0)) for each in heard] == [(1, 1), (2, 0), (3, 2)]
    kept = (await api("history", channel="book", limit=10))["publications"]
    assert [each["data"] for each in kept] == [1, 3]


async def test_an_old_version_is_not_published(pair: Pair, api: Api) -> None:
    """Versions only rise, within a `version_epoch` and beyond what a double counts."""
    async with raw(pair[1]) as client:
        await client.command(subscribe={"channel": "book"})
        big = 2**63
        for version, epoch, offset in (
            (2, "", 1),
            (1, "", 1),
            (2, "", 1),
            (10, "", 2),
            (9, "", 2),
            (1, "new", 3),
            (1, "new", 3),
            (1, "newer", 4),
            (big, "newer", 5),
            (big + 1, "newer", 6),
            (big, "newer", 6),
            (0, "", 7),
        ):
            result = await api(
                "publish",
                channel="book",
                data=[version, epoch],
                version=version,
                version_epoch=epoch,
            )
            assert result["offset"] == offset, (version, epoch)
        heard = [(await client.push("pub"))["data"] for _ in range(7)]
        assert heard[:2] == [[2, ""], [10, ""]]
        assert heard[-1] == [0, ""]
    assert await api.error("publish", channel="quiet:book", data=1, version=1) == 108
    assert await api.error("publish", channel="book", data=1, version=1, delta=True) == 108


async def test_versions_are_whole_numbers(api: Api) -> None:
    """In any order: only what is above the last version, in its epoch, is published."""
    numbers = [1, 2, 9, 10, 99, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]
    random = Random(1)  # noqa: S311 - the same each time
    said = [(random.choice(numbers), random.choice(["", "", "a", "b"])) for _ in range(500)]
    last, expected, offset = (0, ""), [], 0
    for version, epoch in said:
        if epoch not in ("", last[1]) or version > last[0]:
            last, offset = (version, epoch), offset + 1
        expected.append(offset)
    commands = [
        {"publish": {"channel": "book", "data": 1, "version": version, "version_epoch": epoch}}
        for version, epoch in said
    ]
    replies = (await api.http.post("/api/batch", json={"commands": commands})).json()["replies"]
    assert [each["publish"]["offset"] for each in replies] == expected
    assert offset > 100


async def test_a_subscription_by_the_server_has_options(pair: Pair, api: Api) -> None:
    """`data` for the client, `info` for the others, what it missed, and a time to end."""
    for number in range(1, 4):
        await api("publish", channel="book", data=number)
    epoch = (await api("history", channel="book"))["epoch"]
    async with raw(pair[1], token("ann")) as client:
        await api(
            "subscribe", user="ann", channel="book", info={"name": "Ann"}, data=[1],
            recover_since={"offset": 1, "epoch": epoch}, client=None, session="", expire_at=0,
            override={"join_leave": {"value": False}, "presence": None},
        )  # fmt: skip
        subscribe = await client.push("subscribe")
        assert (subscribe["channel"], subscribe["data"], subscribe["offset"]) == ("book", [1], 1)
        missed = [await client.push("pub") for _ in range(2)]
        assert [(each["data"], each["offset"]) for each in missed] == [(2, 2), (3, 3)]
        (member,) = (await api("presence", channel="book"))["presence"].values()
        assert member["chan_info"] == {"name": "Ann"}

        override = {"presence": {"value": False}}
        await api("subscribe", user="ann", channel="unseen", override=override)
        await client.push("subscribe")
        assert (await api("presence", channel="unseen"))["presence"] == {}

        over = int(time.time())
        assert await api.error("subscribe", user="ann", channel="brief", expire_at=over) == 107
        await api("subscribe", user="ann", channel="brief", expire_at=over + 2)
        assert await client.closed() == 3006
    async with raw(pair[1], token("bob")) as client:
        encoded = base64.b64encode(b"\xff").decode()
        await api("subscribe", user="bob", channel="book", b64data=encoded)
        assert await client.closed() == 3506
    assert await api.error("subscribe", user="ann", channel="book", b64info="!") == 107
    assert await api.error("subscribe", user="ann", channel="unknown:book") == 102


async def test_an_unknown_session_matches_no_connection(pair: Pair, api: Api) -> None:
    """No connection has a session; a request about one answers, and concerns none of the user's."""
    async with raw(pair[1], token("ann")) as client:
        await api("subscribe", user="ann", channel="book", session="s")
        await api("unsubscribe", user="ann", channel="", session="s")
        await api("refresh", user="ann", session="s", expired=True)
        await api("disconnect", user="ann", session="s")
        await api("subscribe", user="ann", channel="after")
        assert (await client.push("subscribe"))["channel"] == "after"
    for method in ("subscribe", "unsubscribe", "disconnect", "refresh"):
        assert await api.error(method, user="ann", channel="book", all_users=True) == 108
        assert await api.error(method, channel="book", label_filter={"op": "x"}) == 108


async def test_a_connection_is_refreshed_by_the_server(
    pair: Pair, api: Api, start_node: StartNode
) -> None:
    """It gets another time to expire, or expires at once; of both protocols."""
    async with (
        raw(pair[1], token("ann", info={"a": 1})) as client,
        raw(pair[0], token("ann")) as other,
    ):
        await api("refresh", user="ann", expire_at=int(time.time()) + 1000, info={"a": 2})
        refresh = await client.push("refresh")
        assert refresh["expires"] is True
        assert 900 < refresh["ttl"] <= 1000
        await client.command(subscribe={"channel": "book"})
        members = (await api("presence", channel="book"))["presence"].values()
        assert [member["conn_info"] for member in members] == [{"a": 2}]
        await api("refresh", user="ann", expire_at=0)
        assert await client.push("refresh") == {"channel": None}
        await api("refresh", user="ann", expired=True)
        assert await client.closed() == 3005
        assert await other.closed() == 3005
    headers = {"Authorization": f"Bearer {token('bob')}"}
    async with pair[1].connect(additional_headers=headers) as plain:
        await api("refresh", user="bob", expire_at=int(time.time()) - 1)
        assert (await closed(plain))[0] == 3005


async def test_a_batch(pair: Pair, api: Api) -> None:
    """In order unless `parallel`; each command has its reply, whatever becomes of the others."""
    commands: list[Any] = [
        {"publish": {"channel": "book", "data": 1}},
        {"publish": {"channel": "book", "data": 2, "skip_history": False}},
        {"history": {"channel": "book", "limit": 10}},
        {"publish": {"channel": "unknown:book", "data": 3}},
        {"broadcast": {"channels": ["book", "other"], "data": 4}},
        None,
        {"rpc": {}},
        {"presence_stats": {"channel": "book"}},
        {"info": {}},
    ]
    for parallel in (False, None, True):
        await api("history_remove", channel="book")
        answer = await api.http.post(
            "/api/batch", json={"commands": commands, "parallel": parallel}
        )
        assert answer.status_code == 200
        replies = answer.json()["replies"]
        errors = [reply.get("error", {}).get("code") for reply in replies]
        assert errors == [None, None, None, 102, None, 107, 104, None, None]
        assert replies[1]["publish"]["offset"] == replies[0]["publish"]["offset"] + 1
        assert [each["result"]["offset"] > 0 for each in replies[4]["broadcast"]["responses"]]
        assert replies[7]["presence_stats"] == {"num_clients": 0, "num_users": 0}
        assert len(replies[8]["info"]["nodes"]) == 2
        if not parallel:
            assert [each["data"] for each in replies[2]["history"]["publications"]] == [1, 2]
    assert (await api.http.post("/api/batch", json={})).json() == {"replies": []}
    wrong = [{"publish": {"channel": 1}}]
    assert (await api.http.post("/api/batch", json={"commands": wrong})).status_code == 422


async def test_channels_by_pattern(pair: Pair, api: Api) -> None:
    """An empty pattern matches all, `{a,b}` is a choice; an invalid pattern is error 107."""
    async with sdk(pair[0]) as client:
        for name in ("broadcast", "small:1", "small:2", "small:3"):
            await subscribed(client, name)
        for pattern, names in (
            ("", ["broadcast", "small:1", "small:2", "small:3"]),
            (None, ["broadcast", "small:1", "small:2", "small:3"]),
            ("small:{1,3}", ["small:1", "small:3"]),
            ("small:[!1]", ["small:2", "small:3"]),
            ("*cast", ["broadcast"]),
            ("x", []),
        ):
            assert list((await api("channels", pattern=pattern))["channels"]) == names
    assert await api.error("channels", pattern="{a") == 107


@pytest.mark.parametrize("by", ["header", "configuration"])
async def test_errors_by_status(
    pair: Pair, api: Api, start_node: StartNode, tmp_path: Path, by: str
) -> None:
    """In the mode `transport` an error has a status of its own, and is the whole body."""
    url, headers = pair[0].url, {"X-API-Key": KEY, "X-Centrifugo-Error-Mode": "transport"}
    if by == "configuration":
        path = tmp_path / "transport.yml"
        path.write_text(CONFIG + f'http_api: {{key: "{KEY}", error_mode: transport}}\n')
        url = (await start_node(config=path)).url
        del headers["X-Centrifugo-Error-Mode"]
    async with httpx.AsyncClient(
        base_url=url, headers=headers, trust_env=False, timeout=TIMEOUT
    ) as http:
        for method, request, status, code in (
            ("publish", {"channel": "unknown:a", "data": 1}, 404, 102),
            ("publish", {"data": 1}, 400, 107),
            ("history", {"channel": "quiet:a"}, 400, 108),
            ("history", {"channel": "a", "since": {"epoch": "x"}}, 416, 112),
        ):
            answer = await http.post(f"/api/{method}", json=request)
            assert (answer.status_code, answer.json()["code"]) == (status, code)
            assert set(answer.json()) == {"code", "message"}
        answer = await http.post("/api/publish", json={"channel": "a", "data": 1})
        assert (answer.status_code, list(answer.json())) == (200, ["result"])


async def test_more_than_is_done_at_once(api: Api) -> None:
    """A broadcast to thousands, and a batch of thousands, are carried out in portions, in order."""
    names = [f"c{number}" for number in range(2100)]
    responses = (await api("broadcast", channels=names, data=1))["responses"]
    assert [each["result"]["offset"] for each in responses] == [1] * 2100
    commands = [{"publish": {"channel": "book", "data": number}} for number in range(2100)]
    replies = (await api.http.post("/api/batch", json={"commands": commands})).json()["replies"]
    assert [each["publish"]["offset"] for each in replies] == list(range(1, 2101))

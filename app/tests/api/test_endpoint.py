"""Clients of Centrifugo's server API, and requests as they send them, at a running node.

`cent` is the client itself. The requests of `phpcent` (6.0) and `gocent` (v3) are those that their
code writes: https://github.com/centrifugal/phpcent, src/Client.php, and
https://github.com/centrifugal/gocent, pipe.go and options.go.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cent
import httpx
import pytest

from tests.support.api import KEY, raw
from tests.support.nodes import RunningNode, StartNode
from tests.support.sdk import CONFIG
from tests.support.tokens import token


@pytest.fixture
async def node(start_node: StartNode, tmp_path: Path) -> RunningNode:
    """A node with a key."""
    path = tmp_path / "config.yml"
    path.write_text(CONFIG + f'http_api: {{key: "{KEY}"}}\n')
    return await start_node(config=path)


@pytest.fixture
async def client(node: RunningNode) -> AsyncIterator[cent.AsyncClient]:
    """The client `cent`."""
    async with cent.AsyncClient(f"{node.url}/api", KEY) as client:
        yield client


async def test_cent_publishes(client: cent.AsyncClient) -> None:
    """Publish, broadcast, history and its removal, with all their options."""
    options: dict[str, Any] = {"tags": {"a": "b"}, "skip_history": False, "idempotency_key": "k"}
    first = await client.publish(cent.PublishRequest(channel="book", data={"n": 1}, **options))
    assert first.offset == 1
    again = await client.publish(cent.PublishRequest(channel="book", data={"n": 1}, **options))
    assert again == first
    encoded = cent.PublishRequest(channel="book", data=None, b64data="WzJd")
    assert (await client.publish(encoded)).offset == 2
    both = cent.BroadcastRequest(channels=["book", "unknown:a"], data=3)
    kept, refused = (await client.broadcast(both)).responses
    assert kept.result is not None
    assert kept.result.offset == 3
    assert refused.error is not None
    assert (refused.error.code, refused.error.message) == (102, "unknown channel")
    page = await client.history(
        cent.HistoryRequest(channel="book", limit=10, since=cent.StreamPosition(offset=1))
    )
    assert [(each.data, each.offset) for each in page.publications] == [([2], 2), (3, 3)]
    await client.history_remove(cent.HistoryRemoveRequest(channel="book"))
    page = await client.history(cent.HistoryRequest(channel="book", limit=10, reverse=True))
    assert (page.publications, page.offset) == ([], 3)
    with pytest.raises(cent.CentApiResponseError, match="unknown channel"):
        await client.publish(cent.PublishRequest(channel="unknown:a", data=1))


async def test_cent_directs_users(node: RunningNode, client: cent.AsyncClient) -> None:
    """Subscribe, presence, channels, info, refresh, unsubscribe and disconnect."""
    async with raw(node, token("ann")) as ann:
        await client.subscribe(
            cent.SubscribeRequest(
                user="ann",
                channel="book",
                info={"name": "Ann"},
                data={"welcome": 1},
                recover_since=cent.StreamPosition(),
                override=cent.ChannelOptionsOverride(join_leave=cent.BoolValue(value=True)),
            )
        )
        assert (await ann.push("subscribe"))["data"] == {"welcome": 1}
        present = (await client.presence(cent.PresenceRequest(channel="book"))).presence
        (member,) = present.values()
        assert (member.user, member.chan_info) == ("ann", {"name": "Ann"})
        stats = await client.presence_stats(cent.PresenceStatsRequest(channel="book"))
        assert (stats.num_clients, stats.num_users) == (1, 1)
        for pattern in (None, "", "b*", "{book,x}"):
            found = (await client.channels(cent.ChannelsRequest(pattern=pattern))).channels
            assert found["book"].num_clients == 1
        (described,) = (await client.info(cent.InfoRequest())).nodes
        assert (described.name, described.num_clients) == ("node1", 1)
        await client.refresh(cent.RefreshRequest(user="ann", expire_at=int(time.time()) + 60))
        assert (await ann.push("refresh"))["expires"] is True
        await client.unsubscribe(cent.UnsubscribeRequest(user="ann", channel="book", client=""))
        assert (await ann.push("unsubscribe"))["channel"] == "book"
        reason = cent.Disconnect(code=4321, reason="enough")
        await client.disconnect(cent.DisconnectRequest(user="ann", disconnect=reason))
        assert await ann.closed() == 4321
    async with raw(node, token("ann")) as ann:
        await client.disconnect(cent.DisconnectRequest(user="ann", disconnect=cent.Disconnect()))
        assert await ann.closed() == 3503
    async with raw(node, token("ann")) as ann:
        await client.refresh(cent.RefreshRequest(user="ann", expired=True, expire_at=1))
        assert await ann.closed() == 3005


async def test_cent_blocks(node: RunningNode, client: cent.AsyncClient) -> None:
    """Users and tokens, as in Centrifugo PRO."""
    async with raw(node, token("ann")) as ann, raw(node, token("bob", jti="t")) as bob:
        await client.block_user(cent.BlockUserRequest(user="ann"))
        assert await ann.closed() == 3507
        await client.revoke_token(cent.RevokeTokenRequest(uid="t", expire_at=int(time.time()) + 9))
        assert await bob.closed() == 3500
    await client.unblock_user(cent.UnblockUserRequest(user="ann"))
    async with raw(node, token("ann")):
        pass


@pytest.mark.parametrize("parallel", [None, False, True])
async def test_cent_sends_a_batch(client: cent.AsyncClient, parallel: bool | None) -> None:
    """Several requests in one, each with its result."""
    sent = [
        cent.PublishRequest(channel="book", data=1),
        cent.BroadcastRequest(channels=["book", "other"], data=2),
        cent.PresenceRequest(channel="book"),
        cent.InfoRequest(),
    ]
    answer: Any = await client.batch(cent.BatchRequest(requests=sent, parallel=parallel))
    published, broadcast, presence, info = answer.replies
    assert published.offset in (1, 2)
    assert [each.result.offset for each in broadcast.responses][1] == 1
    assert presence.presence == {}
    assert info.nodes[0].name == "node1"


async def test_the_blocking_client_of_cent(node: RunningNode) -> None:
    """It sends the same by another HTTP library."""

    def publish() -> int:
        with cent.Client(f"{node.url}/api", KEY) as client:
            offset: int = client.publish(cent.PublishRequest(channel="book", data=1)).offset
            return offset

    assert await asyncio.to_thread(publish) == 1


PHPCENT = [
    ("publish", '{"channel":"a","data":{"message":"Hello World"},"skip_history":false}'),
    ("publish", '{"channel":"a","data":[],"skip_history":false}'),
    ("publish", '{"channel":"a","data":{"a":1},"skip_history":true,"tags":{"k":"v"},'
     '"idempotency_key":"x"}'),
    ("broadcast", '{"channels":["a","b"],"data":{"a":1},"skip_history":false}'),
    ("subscribe", '{"channel":"a","user":"u","client":""}'),
    ("subscribe", '{"channel":"a","user":"u","client":"","info":{"a":1},"data":{"a":1},'
     '"recover_since":{"offset":1,"epoch":"x"},"override":{"presence":{"value":true}}}'),
    ("unsubscribe", '{"channel":"a","user":"u","client":""}'),
    ("disconnect", '{"user":"u","client":""}'),
    ("disconnect", '{"user":"u","client":"","disconnect":{"code":4000,"reason":"x"},'
     '"whitelist":["a"]}'),
    ("presence", '{"channel":"a"}'),
    ("presence_stats", '{"channel":"a"}'),
    ("history", '{"channel":"a","limit":0,"reverse":false}'),
    ("history", '{"channel":"a","limit":10,"reverse":true,"since":{"offset":3,"epoch":""}}'),
    ("history_remove", '{"channel":"a"}'),
    ("channels", '{"pattern":""}'),
    ("info", "{}"),
]  # fmt: skip


async def test_requests_of_phpcent(node: RunningNode) -> None:
    """Each request succeeds; the error of an unknown namespace is Centrifugo's, to the letter."""
    headers = {"X-API-Key": KEY, "Content-Type": "application/json", "User-Agent": "curl/7.39.0"}
    async with httpx.AsyncClient(base_url=node.url, headers=headers, trust_env=False) as http:
        for method, body in PHPCENT:
            answer = await http.post(f"/api/{method}", content=body)
            assert answer.status_code == 200, (method, body)
            assert list(answer.json()) == ["result"], (method, body, answer.text)
        body = '{"channel":"quiet:a","data":{"message":"Hello World"},"skip_history":false}'
        assert (await http.post("/api/publish", content=body)).json() == {"result": {}}
        body = body.replace("quiet", "namespace")
        unknown = {"error": {"code": 102, "message": "unknown channel"}}
        assert (await http.post("/api/publish", content=body)).json() == unknown
        body = (
            '{"commands":[{"presence_stats":{"channel":"a"}},'
            '{"publish":{"channel":"x:b","data":[]}}]}'
        )
        stats, refused = (await http.post("/api/batch", content=body)).json()["replies"]
        assert stats == {"presence_stats": {"num_clients": 0, "num_users": 0}}
        assert refused == unknown


GOCENT = [
    '{"method":"publish","params":{"channel":"a","data":{"value":"test"}}}',
    '{"method":"publish","params":{"channel":"a","data":{"n":2},"skip_history":true}}',
    '{"method":"broadcast","params":{"channels":["a","b"],"data":{"value":"test"}}}',
    '{"method":"subscribe","params":{"channel":"a","user":"u","info":{"a":1},"presence":true,'
    '"join_leave":true,"position":true,"recover":true,"data":[1],"recover_since":{"offset":1}}}',
    '{"method":"unsubscribe","params":{"channel":"a","user":"u"}}',
    '{"method":"presence","params":{"channel":"a"}}',
    '{"method":"presence_stats","params":{"channel":"a"}}',
    '{"method":"history","params":{"channel":"a","limit":-1,"since":{}}}',
    '{"method":"history_remove","params":{"channel":"a"}}',
    '{"method":"channels","params":{}}',
    '{"method":"channels","params":{"pattern":"*"}}',
    '{"method":"info","params":{}}',
]


async def test_requests_of_gocent(node: RunningNode) -> None:
    """`POST /api` with one command a line: each command has a reply with its result or error."""
    headers = {"Authorization": f"apikey {KEY}", "Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=node.url, headers=headers, trust_env=False) as http:

        async def send(*commands: str) -> list[Any]:
            answer = await http.post("/api", content="".join(f"{each}\n" for each in commands))
            assert answer.status_code == 200, answer.text
            return [json.loads(line) for line in answer.text.split("\n")]

        for command in GOCENT:
            assert [list(reply) for reply in await send(command)] == [["result"]], command
        replies = await send(*GOCENT, '{"method":"publish","params":{"channel":"x:a","data":1}}')
        assert [list(reply) for reply in replies] == [["result"]] * len(GOCENT) + [["error"]]
        assert replies[0]["result"]["offset"] == 3
        assert replies[-1]["error"]["code"] == 102
        async with raw(node, token("u")) as client:
            reason = '{"code":4001,"reason":"bye","reconnect":false}'
            assert await send(
                f'{{"method":"disconnect","params":{{"user":"u","Disconnect":{reason},'
                '"ClientWhitelist":null}}'
            ) == [{"result": {}}]
            assert await client.closed() == 4001


async def test_requests_of_older_clients(node: RunningNode) -> None:
    """Methods by number and in capitals, ids, several lines for one command, and mistakes."""
    headers = {"X-API-Key": KEY}
    async with httpx.AsyncClient(base_url=node.url, headers=headers, trust_env=False) as http:
        for body, expected in (
            ('{"id":7,"method":"PUBLISH","params":{"channel":"quiet:a","data":1}}',
             [{"id": 7, "result": {}}]),
            ('{"params":{"channel":"quiet:a","data":1}}', [{"result": {}}]),
            ('{\n "method": 2,\n "params": {"user": "u"}\n}\n', [{"result": {}}]),
            ('{"method":"unsubscribe"}', [{"result": {}}]),
            (' {"id":1,"method":3}{"id":2,\n"method":"disconnect"}\r\n ',
             [{"id": 1, "result": {}}, {"id": 2, "result": {}}]),
        ):  # fmt: skip
            answer = await http.post("/api", content=body)
            assert [json.loads(line) for line in answer.text.split("\n")] == expected
        for body, code in (
            ('{"method":"nothing","params":{}}', 104),
            ('{"method":99}', 104),
            ('{"method":10,"params":{"method":"x"}}', 104),
            ('{"method":"publish","params":{"channel":1}}', 107),
            ('{"method":"publish","params":[]}', 107),
        ):
            assert (await http.post("/api", content=body)).json()["error"]["code"] == code
        for body in ("", "x", '{"method":"info"}\nx', '{"method":"info"},{}', "[" * 5000):
            assert (await http.post("/api", content=body)).status_code == 400
        assert (await http.post("/api", content="[]")).status_code == 422
        answer = await http.post("/api?api_key=a", content="{}", headers={"X-API-Key": ""})
        assert answer.status_code == 401

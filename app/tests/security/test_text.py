"""Text that cannot be encoded is refused at every input of a running node.

Half a surrogate pair, numbers that no double holds, bytes that are not UTF-8, JSON that only some
parsers accept.
"""

import asyncio
import base64
import contextlib
import json
import struct
import urllib.parse
from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.support.redis import RedisServer
from tests.support.tokens import API_KEY as KEY
from tests.support.tokens import SECRET, bearer
from tests.support.victim import CONFIG, Victim

AMBIGUOUS = [r'"\ud83d"', r'"a\udc00\ud83d"', "1e400", "-1e309", "1" * 400]
LARGE = ["9223372036854775807", "-9223372036854775809", "18446744073709551616", "1" * 300]
VALUES = st.sampled_from(
    [*AMBIGUOUS, *LARGE, "NaN", "Infinity", "01", "'a'", '"\\x"', "[1,]", "{]", "1}"]
)
TEXTS = VALUES | st.text(r'[]{}",:0123456789eE+-.\udDcCnatrfls ', max_size=20) | st.text(max_size=9)

live = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def open_client(victim: Victim, path: str, **options: Any) -> Any:
    """Return a client in this thread, since hypothesis does not support event loops."""
    return connect(f"ws://127.0.0.1:{victim.port}{path}", proxy=None, **options)


@pytest.fixture(scope="module")
def running(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """Return a node whose API has a key."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "config.yml").write_text(CONFIG + f'http_api: {{key: "{KEY}"}}\n')
    node = Victim(folder, redis, {"config": folder / "config.yml", "max_connections": 400})
    node.start()
    yield node
    node.stop()


@pytest.fixture
def bystander(running: Victim) -> Iterator[ClientConnection]:
    """Return an unrelated client; check after the test that it is still served."""
    asyncio.run(running.ready())
    with open_client(running, "/connection/websocket") as client:
        assert "connect" in ask(client, '{"id":1,"connect":{}}')
        assert "subscribe" in ask(client, '{"id":2,"subscribe":{"channel":"watched"}}')
        yield client
        answers = [ask(client, '{"id":3,"publish":{"channel":"watched","data":"still here"}}')]
        while "publish" not in answers[-1]:
            answers.append(json.loads(client.recv(5)))
        assert len(answers) <= 3
    assert running.process is not None
    assert running.process.poll() is None
    assert b"Traceback" not in running.log.read_bytes()


def ask(client: ClientConnection, message: str | bytes) -> Any:
    """Send one message and return its answer."""
    client.send(message)
    return json.loads(client.recv(5))


def ended(client: ClientConnection) -> int | None:
    """Read until the connection ends, and return its close code."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            client.recv(5)
    return client.close_code


def test_the_plain_protocol(running: Victim, bystander: ClientConnection) -> None:
    """The answer is an ack or an error frame, and the connection stays open."""
    with open_client(running, "/ws") as client:

        @live
        @given(TEXTS, st.booleans())
        def each(text: str, inside: bool) -> None:
            message = f'{{"client_id":"a","idempotency_key":"k","x":{text}}}' if inside else text
            answer = ask(client, message)
            assert answer["type"] in ("ack", "error")
            if inside and answer["type"] == "ack":
                assert answer["client_id"] == "a"

        each()
        for value in AMBIGUOUS:
            answer = ask(client, f'{{"client_id":"b","idempotency_key":"k","x":{value}}}')
            assert (answer["type"], answer["code"]) == ("error", "invalid_json")


def test_commands_of_a_json_sdk(running: Victim, bystander: ClientConnection) -> None:
    """The answer is a reply, or 3501 for invalid JSON; other clients get nothing."""

    @live
    @given(TEXTS, st.sampled_from(["connect", "publish", "subscribe", "history"]))
    def each(text: str, method: str) -> None:
        with open_client(running, "/connection/websocket") as client:
            if method != "connect":
                ask(client, '{"id":1,"connect":{}}')
            client.send(f'{{"id":2,"{method}":{{"channel":"watched","data":{text}}}}}')
            try:
                assert json.loads(client.recv(5))
            except ConnectionClosed:
                assert client.close_code == 3501

    each()
    for value in AMBIGUOUS:
        with open_client(running, "/connection/websocket") as client:
            answer = ask(client, f'{{"id":1,"connect":{{"data":{value}}}}}')
            assert (answer["id"], answer["error"]["code"]) == (1, 107)
            assert "connect" in ask(client, '{"id":2,"connect":{}}')
            command = f'{{"id":3,"publish":{{"channel":"watched","data":{value}}}}}'
            assert ask(client, command)["error"]["code"] == 107
            assert "publish" in ask(client, '{"id":4,"publish":{"channel":"quiet","data":1}}')


@pytest.mark.parametrize("text", [b"\xed\xa0\xbd", b"\xff", b"a\xc3"])
def test_strings_of_protobuf(running: Victim, bystander: ClientConnection, text: bytes) -> None:
    """A string that is not UTF-8 ends the connection with 3501."""
    connected = b"\x04\x08\x01\x22\x00"
    channel = b"\x0a" + struct.pack("B", len(text)) + text
    request = b"\x2a" + struct.pack("B", len(channel)) + channel
    command = struct.pack("B", len(request) + 2) + b"\x08\x02" + request
    with open_client(running, "/connection/websocket?cf_protocol=protobuf") as client:
        client.send(connected)
        client.recv(5)
        client.send(command)
        assert ended(client) == 3501


def test_tokens(running: Victim, bystander: ClientConnection) -> None:
    """An invalid token is 3500 in the Centrifuge protocol, and 401 in the plain one."""

    def refused(token: str) -> None:
        with open_client(running, "/connection/websocket") as client:
            client.send(json.dumps({"id": 1, "connect": {"token": token}}))
            assert ended(client) == 3500
        for options in (
            {"additional_headers": bearer(token)},
            {"path": f"/ws?token={urllib.parse.quote(token)}"},
        ):
            with pytest.raises(InvalidStatus) as status:
                open_client(running, **({"path": "/ws"} | options))
            assert status.value.response.status_code == 401

    for value in AMBIGUOUS:
        encoded = base64.b64encode(value.encode()).decode()
        for claims in (f'{{"sub":{value}}}', f'{{"info":{value}}}', f'{{"b64info":"{encoded}"}}'):
            refused(jwt.PyJWS().encode(claims.encode(), SECRET, "HS256"))
    header = base64.urlsafe_b64encode(rb'{"alg":"HS256","kid":"\ud83d","typ":"\ud83d"}').decode()
    refused(f"{header.rstrip('=')}.e30.AAAA")


def test_queries_and_headers(running: Victim, bystander: ClientConnection) -> None:
    """Invalid bytes are refused as token, key and origin."""
    with pytest.raises(InvalidStatus) as status:
        open_client(running, "/ws?token=%ed%a0%bd&%ff=%ff")
    assert status.value.response.status_code == 401
    with httpx.Client(base_url=running.internal_url, trust_env=False) as http:
        for headers in ({b"X-API-Key": b"\xed\xa0\xbd"}, {b"Authorization": b"apikey \xff"}):
            assert http.post("/api/info", content=b"{}", headers=headers).status_code in (401, 403)
        assert http.post("/api/info?api_key=%ed%a0%bd", content=b"{}").status_code in (401, 403)


def test_requests_to_the_api(running: Victim, bystander: ClientConnection) -> None:
    """Every method answers 200, 400 or 422 with a text, and never fails in the node."""
    methods = {
        "publish": ("channel", "data", "b64data", "tags", "idempotency_key", "version"),
        "broadcast": ("channels", "data", "tags"),
        "subscribe": ("user", "channel", "client", "info", "b64info", "data", "recover_since"),
        "unsubscribe": ("user", "channel", "client"),
        "disconnect": ("user", "session", "whitelist", "disconnect"),
        "refresh": ("user", "info", "expire_at"),
        "block_user": ("user", "expire_at"),
        "unblock_user": ("user",),
        "revoke_token": ("uid",),
        "presence": ("channel",),
        "presence_stats": ("channel",),
        "history": ("channel", "limit", "since"),
        "history_remove": ("channel",),
        "channels": ("pattern",),
        "info": ("x",),
        "batch": ("commands", "parallel"),
        "": ("method", "params", "id"),
    }
    headers, url = {"X-API-Key": KEY}, running.internal_url
    with httpx.Client(base_url=url, trust_env=False, headers=headers) as http:

        def call(method: str, field: str, value: str) -> httpx.Response:
            others = {
                "channel": '"a"',
                "data": "1",
                "user": '"u"',
                "uid": '"t"',
                "method": '"info"',
            }
            fields = ",".join(f'"{k}":{v}' for k, v in (others | {field: value}).items())
            path = f"/api/{method}" if method else "/api"
            return http.post(path, content=f"{{{fields}}}".encode())

        @live
        @given(TEXTS, st.sampled_from([(m, f) for m, fields in methods.items() for f in fields]))
        def each(text: str, place: tuple[str, str]) -> None:
            assert call(*place, text).status_code in (200, 400, 422)

        each()
        for method, fields in methods.items():
            for field in fields:
                for value in LARGE:
                    for text in (value, f'{{"offset":{value},"code":{value}}}', f"[{value}]"):
                        answer = call(method, field, text)
                        assert answer.status_code in (200, 422), (method, field, text)
                        assert "internal" not in answer.text, (method, field, text)
                for value in AMBIGUOUS:
                    answer = call(method, field, value)
                    assert answer.status_code == 400, (method, field, value)
                    assert "the body is not JSON: " in answer.json()["detail"]

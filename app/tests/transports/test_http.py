"""HTTP on the node's port, byte by byte: bounds, order of answers, and where WebSockets begin."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from lab.waiting import settled
from tests.support import guest
from tests.support.metrics import value
from tests.support.nodes import RunningNode, StartNode
from tests.support.tcp import HANDSHAKE, TCPPeer, masked, tcp
from wsfleet.transports import http
from wsfleet.transports.frames import TEXT
from wsfleet.transports.http import HTTP

KEY = "a-key-of-the-api"
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
MIB = 2**20


@pytest.fixture
async def node(
    start_node: StartNode, tmp_path: Path, request: pytest.FixtureRequest
) -> RunningNode:
    """A node whose API has a key; the parameter is its `body_timeout`."""
    config = tmp_path / "config.yml"
    config.write_text(
        f"http_api: {{key: {KEY}}}\nclient: {{allow_anonymous_connect_without_token: true}}\n"
    )
    return await start_node(
        config=config,
        max_request_size=2 * MIB,
        body_timeout=getattr(request, "param", 10.0),
        heartbeat_interval=1.0,  # `/ready` does not change its mind on a busy machine
    )


def body_timeout(seconds: float) -> pytest.MarkDecorator:
    """Give the node another `body_timeout`."""
    return pytest.mark.parametrize("node", [seconds], indirect=True)


def post(path: str, *fields: str, key: str = "") -> bytes:
    """The head of a POST."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *fields]
    lines += [f"X-API-Key: {key}"] if key else []
    return "\r\n".join([*lines, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    """One chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def statuses(answers: bytes) -> list[int]:
    """The status of each answer."""
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


# HEAD.


GETTABLE = ["/health", "/ready", "/metrics", "/docs", "/openapi.json", "/console/"]
GETTABLE += ["/console/api/cluster", "/api/publish", "/nowhere"]


async def test_head_is_answered_as_get_without_a_body(node: RunningNode) -> None:
    """RFC 9110, section 9.3.2; the connection goes on, and nothing of a body is on it."""
    async with httpx.AsyncClient(base_url=node.url, trust_env=False) as http:
        for path in GETTABLE:
            get, head = await http.get(path), await http.head(path)
            assert (head.status_code, head.content) == (get.status_code, b""), path
            for name in ("content-type", "allow", "cache-control"):
                assert head.headers.get(name) == get.headers.get(name), path
            request = HEALTH.replace(b"GET /health", b"HEAD %b" % path.encode())
            async with tcp(node, request + LAST) as peer:
                answers = await peer.rest()
            assert statuses(answers) == [get.status_code, 200], path
            assert answers.split(b"\r\n\r\n")[1].startswith(b"HTTP/1.1 200 "), path


# The bounds of a body.

PATHS = ["/api/publish", "/console/api/drain", "/health", "/ws", "/nowhere"]


@pytest.mark.parametrize("key", ["", "wrong"])
async def test_a_body_without_a_key_is_refused_before_it_is_read(
    node: RunningNode, key: str
) -> None:
    """413 by its length alone, and by the chunk that is one too many; the metric counts both."""
    for number, path in enumerate(PATHS, 1):
        async with tcp(node, post(path, "Content-Length: 65537", key=key)) as peer:
            answer = await peer.rest()
        assert statuses(answer) == [413], path
        assert b"65536 bytes" in answer
        async with tcp(node, post(path, "Transfer-Encoding: chunked", key=key)) as peer:
            peer.write(chunk(b"[" * 65_536) + chunk(b"["))
            assert len(statuses(await peer.rest())) == 1, path
        assert value(node, "requests_refused_total", status="413") == 2 * number


@pytest.mark.parametrize("path", PATHS[:2])
async def test_a_body_with_a_key_has_the_bound_of_the_setting(node: RunningNode, path: str) -> None:
    """One byte more is 413, with a length and with chunks; up to there the route decides."""
    for size, expected in ((2 * MIB, 400), (2 * MIB + 1, 413)):
        body = json.dumps({"channel": "a", "data": ""}).encode().ljust(size)[:-1] + b"}"
        async with tcp(node, post(path, f"Content-Length: {size}", key=KEY)) as peer:
            with contextlib.suppress(ConnectionError):
                peer.write(body + LAST)
            assert statuses(await peer.rest())[0] == expected
        async with tcp(node, post(path, "Transfer-Encoding: chunked", key=KEY)) as peer:
            with contextlib.suppress(ConnectionError):
                peer.write(b"".join(chunk(body[at : at + MIB]) for at in range(0, size, MIB)))
                peer.write(chunk(b"") + LAST)
            assert statuses(await peer.rest())[0] == expected


async def test_a_large_publication_with_a_key_is_taken(node: RunningNode) -> None:
    """A body of a megabyte comes through whole, whether it waits for 100 Continue or not."""
    body = json.dumps({"channels": ["a"] * 2, "data": "x" * MIB}).encode()
    fields = [f"Content-Length: {len(body)}", "Connection: close"]
    async with tcp(node, post("/api/broadcast", *fields, key=KEY) + body) as peer:
        assert statuses(await peer.rest()) == [200]
    expecting = post("/api/broadcast", *fields, "Expect: 100-continue", key=KEY)
    async with tcp(node, expecting) as peer:
        assert b" 100 " in await peer.head()
        peer.write(body)
        assert statuses(await peer.rest()) == [200]
    over = post("/api/broadcast", "Content-Length: 999999999", "Expect: 100-continue", key=KEY)
    async with tcp(node, over) as peer:
        assert statuses(await peer.rest()) == [413]


@body_timeout(0.5)
@pytest.mark.parametrize(
    "first",
    [
        post("/api/publish", "Content-Length: 100"),
        post("/api/publish", "Content-Length: 100", key=KEY) + b"{",
        post("/api/publish", "Transfer-Encoding: chunked"),
        post("/api/publish", "Transfer-Encoding: chunked") + b"64\r\n{",
        post("/console/api/drain", "Content-Length: 100") + b"{",
    ],
)
async def test_a_body_that_does_not_come_is_not_waited_for(node: RunningNode, first: bytes) -> None:
    """408, or 401 at once without a key, and the connection ends; bytes may trickle in or not."""
    expected = 408 if KEY.encode() in first else 401
    async with tcp(node, first) as silent, tcp(node, first) as slow:

        async def trickle() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    slow.write(b"1" if first.endswith(b"\r\n\r\n") else b" ")
                    await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        assert statuses(await silent.rest()) == [expected]
        assert statuses(await slow.rest()) == [expected]
        trickling.cancel()
    assert value(node, "requests_refused_total", status="408") == 2
    await settled(lambda: not node.server.server_state.connections, "both are gone")


@body_timeout(2)
@pytest.mark.parametrize("stalls", [False, True], ids=["steady", "stalls"])
async def test_a_body_may_take_its_time_while_it_goes_on(node: RunningNode, stalls: bool) -> None:
    """A steady body may take many times the timeout; one that stalls after it is 408."""
    pieces = 35
    body = json.dumps({"channel": "a", "data": "x" * 1000 * pieces}).encode()
    fields = [f"Content-Length: {len(body)}", "Connection: close"]
    async with tcp(node, post("/api/publish", *fields, key=KEY)) as peer:
        size = len(body) // pieces
        for at in range(0, len(body) - size if stalls else len(body), size):
            peer.write(body[at : at + size])
            await asyncio.sleep(0.2)  # 7 s are more than three timeouts
        assert statuses(await peer.rest()) == [408 if stalls else 200]


async def test_a_body_waits_for_an_application_that_does_not_read_it(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time in which the node itself does not read does not count against the client."""
    go_on = asyncio.Event()

    async def app(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        await go_on.wait()
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    node = await start_node(app="tests.support.guest:app", body_timeout=0.5)
    monkeypatch.setattr(guest.app, "middleware_stack", app)
    body = bytes(2 * MIB)
    head = post("/", f"Content-Length: {len(body)}", "Connection: close")
    async with tcp(node, head + body) as peer:
        reads = asyncio.ensure_future(peer.rest(60))
        _, waits = await asyncio.wait([reads], timeout=2)  # four timeouts
        assert waits
        go_on.set()
        assert statuses(await reads) == [200]


@body_timeout(0.3)
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/health", "/nowhere", "/connection/websocket"])
async def test_a_request_that_is_answered_without_its_body_does_not_stay(
    node: RunningNode, method: str, path: str
) -> None:
    """It has one answer, and the connection ends when the body does not come."""
    head = post(path, "Content-Length: 1000").replace(b"POST", method.encode())
    async with tcp(node, head) as peer:
        assert len(statuses(await peer.rest())) == 1
    async with tcp(node, head + b"x" * 1000 + LAST) as peer:
        assert statuses(await peer.rest())[1:] == [200]


@pytest.mark.parametrize(
    "beside",
    [
        b"5;" + b"x" * 60_000,
        b"".join(b"1;%b\r\nx\r\n" % (b"y" * 1000) for _ in range(60)),
        chunk(b"{}") + b"0\r\nTrailer: " + b"x" * 60_000,
        chunk(b"{}") + b"0\r\n" + b"".join(b"T%d: x\r\n" % n for n in range(9000)),
    ],
    ids=["an extension", "extensions", "a trailer", "trailers"],
)
async def test_trailers_and_extensions_are_bounded(node: RunningNode, beside: bytes) -> None:
    """Chunk extensions and trailers that do not end are 431."""
    async with tcp(node, post("/api/publish", "Transfer-Encoding: chunked") + beside) as peer:
        assert statuses(await peer.rest()) == [431]


async def test_small_chunks_are_a_body_like_any_other(node: RunningNode) -> None:
    """A chunk a byte, in one piece and in many."""
    body = json.dumps({"channel": "a", "data": "x" * 30_000}).encode()
    fields = ["Transfer-Encoding: chunked", "Connection: close"]
    chunks = b"".join(chunk(body[at : at + 1]) for at in range(len(body))) + chunk(b"")
    async with tcp(node, post("/api/publish", *fields, key=KEY) + chunks) as peer:
        assert statuses(await peer.rest()) == [200]


async def test_trailers_are_no_header_fields(node: RunningNode) -> None:
    """A key in a trailer opens nothing (RFC 9110, section 6.5.1)."""
    head = post("/api/info", "Transfer-Encoding: chunked", "Connection: close")
    trailer = b"0\r\nX-API-Key: %b\r\n\r\n" % KEY.encode()
    async with tcp(node, head + chunk(b"{}") + trailer) as peer:
        assert statuses(await peer.rest()) == [401]


# The bounds of a head.


async def test_the_size_of_a_head_is_without_the_body_before_it(node: RunningNode) -> None:
    """However a body of 60 KB and the next head are cut, it is the head that counts."""
    body = json.dumps({"channel": "a", "data": "x" * 60_000}).encode()
    stream = post("/api/publish", f"Content-Length: {len(body)}", key=KEY) + body
    for cut in (len(stream) + 20, len(stream) - 20, len(stream), 1000):
        async with tcp(node, (stream + LAST)[:cut]) as peer:
            await asyncio.sleep(0.05)
            peer.write((stream + LAST)[cut:])
            assert statuses(await peer.rest()) == [200, 200]
    long = LAST[:-2] + b"X: %b" % (b"x" * 40_000)
    for cut in (len(stream) + 20, len(stream)):
        async with tcp(node, (stream + long)[:cut]) as peer:
            await asyncio.sleep(0.05)
            peer.write((stream + long)[cut:])
            assert statuses(await peer.rest()) == [200, 431]


@pytest.mark.parametrize("fields", [b"", b"Host: x\r\nHost: x\r\n", b"Host: x\r\nHost: y\r\n"])
async def test_a_request_has_one_host(node: RunningNode, fields: bytes) -> None:
    """RFC 9112, section 3.2: a request without, or with several, is 400; so is a handshake."""
    for request in (HEALTH, HANDSHAKE):
        async with tcp(node, request.replace(b"Host: x\r\n", fields)) as peer:
            assert statuses(await peer.rest()) == [400]
    old = b"GET /health HTTP/1.0\r\n\r\n"
    async with tcp(node, old) as peer:
        assert statuses(await peer.rest()) == [200]


async def test_a_connection_is_not_kept_by_line_ends(
    node: RunningNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no request, and a connection without one ends."""
    monkeypatch.setattr(node.server.config, "timeout_keep_alive", 0.3)
    async with tcp(node, HEALTH) as peer:
        await peer.head()

        async def go_on() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    peer.write(b"\r\n")
                    await asyncio.sleep(0.05)

        going = asyncio.create_task(go_on())
        with contextlib.suppress(ConnectionError):
            await peer.rest()
        going.cancel()
    await settled(lambda: not node.server.server_state.connections, "it was closed")


# The order of answers.


async def speaks(peer: TCPPeer) -> None:
    """The peer's WebSocket answers."""
    assert (await peer.message())["type"] == "ack"


@pytest.mark.parametrize("before", [1, 2, 5])
async def test_a_handshake_behind_other_requests(node: RunningNode, before: int) -> None:
    """All are answered in their order, and frames that came with it are not lost."""
    body = b'{"channel": "a", "data": 1}'
    slow = post("/api/publish", f"Content-Length: {len(body)}", key=KEY) + body
    async with tcp(node, slow * before + HEALTH + HANDSHAKE + masked(TEXT, b"early")) as peer:
        for _ in range(before + 1):
            head = await peer.head()
            assert head.startswith(b"HTTP/1.1 200 ")
            length = next(line for line in head.split(b"\r\n") if b"content-length" in line)
            await peer.exactly(int(length.split(b":")[1]))
        assert (await peer.head()).startswith(b"HTTP/1.1 101 ")
        await speaks(peer)
        peer.write(masked(TEXT, b"later"))
        await speaks(peer)


async def test_a_handshake_behind_a_last_request(node: RunningNode) -> None:
    """No handshake follows an answer with `Connection: close`."""
    async with tcp(node, LAST + HANDSHAKE) as peer:
        assert statuses(await peer.rest()) == [200]


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (post("/api/publish", "Content-Length: 100000"), 413),
        (post("/api/publish", "Transfer-Encoding: chunked") + b"x\r\n", 400),
        (HEALTH[:-2] + b"X: %b\r\n\r\n" % (b"x" * 20_000), 431),
        (HANDSHAKE.replace(b"/ws", b"/elsewhere"), 404),
        (b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n", 501),
    ],
)
async def test_a_refusal_behind_other_requests(node: RunningNode, bad: bytes, status: int) -> None:
    """It is the last answer, and not the first; nothing behind it is read."""
    body = b'{"channel": "a", "data": 1}'
    slow = post("/api/publish", f"Content-Length: {len(body)}", key=KEY) + body
    async with tcp(node, slow * 3 + bad + HEALTH) as peer:
        assert statuses(await peer.rest()) == [200, 200, 200, status]


async def test_thousands_of_requests_at_once(node: RunningNode) -> None:
    """Each has its answer, and those that wait are bytes and no requests yet."""
    most, connections = 0, node.server.server_state.connections

    def waiting() -> int:
        return max(
            (len(each.pipeline) for each in connections if isinstance(each, HTTP)), default=0
        )

    async with tcp(node, HEALTH * 2000 + LAST) as peer:
        reading = asyncio.create_task(peer.rest(60))
        while not reading.done():
            most = max(most, waiting())
            await asyncio.sleep(0)
        assert statuses(await reading) == [200] * 2001
    assert most <= http.HEAD_LIMIT // len(HEALTH) + 1


# Where WebSockets begin.


FOUND = ["/{name}", "/{coded}", "/{name}?a=b", "http://x/{name}", "HTTP://x/{name}"]
FOUND += ["ws://x/{name}", "https://other.example/{coded}?x", "http://x:80/{name}"]
NOT_FOUND = ["//{name}", "/%2F{name}", "/{upper}", "/./{name}", "/{name}.", "/{name}%00"]
NOT_FOUND += ["/x/../{name}", "/%25{name}", "http://x/", "http://x", "*"]
INVALID = [
    "{name}",
    "{name}:443",
    "?{name}",
    "http:///{name}",
    "/{name} b",
    "http://x:99999/{name}",
]
INVALID += ["/{name}\xe9"]


def spelt(target: str, name: str) -> bytes:
    """A target with the name of a path in it, as it is, percent-encoded, or in capitals."""
    coded = "".join(f"%{ord(letter):02x}" for letter in name)
    return target.format(name=name, coded=coded, upper=name.upper()).encode("latin-1")


async def test_a_target_means_the_same_for_both(node: RunningNode) -> None:
    """Whole URLs and percent signs are read as in HTTP, and an invalid target is 400 for both."""
    expected = [(FOUND, 101, 200), (NOT_FOUND, 404, 404), (INVALID, 400, 400)]
    for targets, as_handshake, as_request in expected:
        for target in targets:
            async with tcp(node, HANDSHAKE.replace(b"/ws", spelt(target, "ws"))) as peer:
                assert int((await peer.head()).split()[1]) == as_handshake, target
            async with tcp(node, LAST.replace(b"/health", spelt(target, "health"))) as peer:
                assert statuses(await peer.rest()) == [as_request], target


BARE = b"".join(
    line + b"\r\n"
    for line in HANDSHAKE.split(b"\r\n")[:-2]
    if not line.startswith((b"Upgrade", b"Connection"))
)


HANDSHAKES = [
    b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n",
    b"Connection: Upgrade,keep-alive\r\nUpgrade: WebSocket\r\n",
    b"connection: keep-alive\r\nCONNECTION: UPGRADE\r\nUPGRADE: WEBSOCKET\r\n",
    b"Connection: upgrade\r\nConnection: keep-alive\r\nUpgrade: websocket\r\n",
    b"Connection: upgrade\r\nUpgrade: h2c, websocket\r\n",
    b"Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
    b"Connection:upgrade\r\nUpgrade:\twebsocket \r\nContent-Length: 0\r\n",
]
OTHERS = [
    HANDSHAKE.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\nConnection: close\r\n").replace(
        b"websocket", b"h2c"
    ),
    HANDSHAKE.replace(b"HTTP/1.1", b"HTTP/1.0"),
    BARE + b"Upgrade: websocket\r\n\r\n",
    BARE + b"Connection: upgrade\r\n\r\n",
    BARE + b"Connection: upgrade\r\nUpgrade: websockets\r\n\r\n",
    BARE + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    BARE + b"Connection: keep-alive\r\nUpgrade: websocket\r\n\r\n",
    HANDSHAKE.replace(b"Upgrade: websocket", b"Upgrade: websocket/13"),
]


async def test_a_handshake_however_it_is_written(node: RunningNode) -> None:
    """Lists, several fields and capitals are the same (RFC 9110, section 7.8; RFC 6455, 4.2.1)."""
    for fields in HANDSHAKES:
        async with tcp(node, BARE + fields + b"\r\n") as peer:
            assert (await peer.head()).startswith(b"HTTP/1.1 101 "), fields


async def test_an_upgrade_that_is_not_websocket_is_ignored(node: RunningNode) -> None:
    """An upgrade that is not made, and one in HTTP/1.0, is ignored (RFC 9110, section 7.8)."""
    for request in OTHERS:
        async with tcp(node, request + LAST) as peer:
            answers = statuses(await peer.rest())
        ends = b"HTTP/1.0" in request or b"close" in request
        assert answers == ([404] if ends else [404, 200]), request


async def test_a_body_behind_an_upgrade_that_is_ignored(node: RunningNode) -> None:
    """Java's HttpClient offers h2c with each first request: it is a POST all the same."""
    body = b'{"channel": "a", "data": 1}'
    fields = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAA"]
    for framing, sent in (
        (f"Content-Length: {len(body)}", body),
        ("Transfer-Encoding: chunked", chunk(body) + chunk(b"")),
    ):
        async with tcp(node, post("/api/publish", *fields, framing, key=KEY) + sent + LAST) as peer:
            assert statuses(await peer.rest()) == [200, 200]


@pytest.mark.parametrize("framing", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
async def test_a_handshake_with_a_body_is_refused(node: RunningNode, framing: bytes) -> None:
    """The bytes after it would be a body for one parser and frames for another."""
    async with tcp(node, HANDSHAKE[:-2] + framing + b"\r\n\r\nhello") as peer:
        assert statuses(await peer.rest()) == [400]

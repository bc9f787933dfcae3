"""permessage-deflate: what is agreed, what is read, and what publications become (RFC 7692)."""

import asyncio
import contextlib
import json
import subprocess
import tracemalloc
import zlib
from typing import Any
from unittest.mock import patch

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.typing import Subprotocol

from lab.waiting import TIMEOUT, settled
from tests.support.browser import chromium
from tests.support.nodes import StartNode
from tests.support.paths import JAVASCRIPT
from tests.support.tcp import HANDSHAKE, TCPPeer, masked, tcp
from wsfleet.protocol.centrifuge.codec import Codec
from wsfleet.protocol.centrifuge.json_codec import JSONCodec
from wsfleet.protocol.centrifuge.messages import (
    Command,
    ConnectRequest,
    Publication,
    PublishRequest,
    SubscribeRequest,
)
from wsfleet.protocol.centrifuge.protobuf_codec import ProtobufCodec
from wsfleet.transports import deflate
from wsfleet.transports.deflate import MIN_SIZE, deflated_frame, inflate, negotiate
from wsfleet.transports.frames import (
    BINARY,
    CONTINUATION,
    PING,
    RSV1,
    TEXT,
    FrameReader,
    ReceivedMessage,
    ViolationError,
    close_frame,
    frame,
)

LIMIT = 70_000
ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
LONG = json.dumps({"text": "what compresses well " * 100})
PLAIN_TEXT = b"\xf2\x48\xcd\xc9\xc9\x07\x00"  # "Hello", as in section 7.2.3.1


def deflated(payload: bytes, level: int = 6, window: int = 15) -> bytes:
    """A payload as a client deflates it."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, -window)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


# The handshake.


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        ("permessage-deflate", ANSWER),
        ("permessage-deflate; client_max_window_bits", ANSWER),
        ("permessage-deflate; client_max_window_bits=10", ANSWER),
        ('permessage-deflate; client_max_window_bits="10"', ANSWER),
        ("permessage-deflate; client_no_context_takeover", ANSWER),
        ("permessage-deflate; server_no_context_takeover", ANSWER),
        (
            "permessage-deflate; server_max_window_bits=15",
            f"{ANSWER}; server_max_window_bits=15",
        ),
        ("permessage-deflate; server_max_window_bits=9", f"{ANSWER}; server_max_window_bits=9"),
        ("permessage-bzip2, permessage-deflate", ANSWER),
        ("x-webkit-deflate-frame", None),
        ("permessage-deflate; unknown", None),
        ("permessage-deflate; unknown, permessage-deflate", ANSWER),
        ("permessage-deflate; server_max_window_bits=7, permessage-deflate", ANSWER),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; server_max_window_bits=010", None),
        ("permessage-deflate; server_max_window_bits=+9", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; client_max_window_bits=7", None),
        ("permessage-deflate; client_max_window_bits=x", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; client_no_context_takeover=true", None),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits", None),
        ("permessage-deflate; server_no_context_takeover; server_no_context_takeover", None),
        ("permessage-deflate;; client_max_window_bits", None),
        ('permessage-deflate; x="', None),
        ("PERMESSAGE-DEFLATE", None),
        ("", None),
    ],
)
def test_the_first_offer_that_is_right_is_accepted(offer: str, answer: str | None) -> None:
    """RFC 7692, section 7.1: wrong parameters decline an offer, unknown extensions are ignored."""
    agreement = negotiate([offer])
    assert (agreement.answer if agreement else None) == answer


def test_offers_may_be_in_several_fields() -> None:
    """They are taken in their order (RFC 6455, section 9.1); a malformed field offers nothing."""
    agreement = negotiate(['x; y="z', "x", "permessage-deflate; unknown", "permessage-deflate"])
    assert agreement is not None
    assert agreement.answer == ANSWER


def test_a_window_that_is_too_narrow_is_not_deflated_into() -> None:
    """The offer is accepted, and what the client deflates is read."""
    for bits, deflates in ((8, False), (11, False), (12, True), (15, True)):
        agreement = negotiate([f"permessage-deflate; server_max_window_bits={bits}"])
        assert agreement is not None
        assert agreement.deflates is deflates


@given(
    st.text(max_size=80), st.lists(st.sampled_from(["permessage-deflate", "; ", ", ", "=", "8"]))
)
def test_noise_in_an_offer_never_crashes(noise: str, parts: list[str]) -> None:
    """Any offer is either accepted or declined."""
    negotiate([noise, "".join(parts), "permessage-deflate;" + noise])


# Reading.


@pytest.mark.parametrize(
    "payload",
    [
        PLAIN_TEXT,
        b"\x00\x05\x00\xfa\xffHello\x00",  # 7.2.3.3: a block that is not compressed
        b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00",  # 7.2.3.4: a last block
        b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00",  # 7.2.3.5: two blocks
    ],
)
def test_the_examples_of_the_rfc(payload: bytes) -> None:
    """Section 7.2.3: each is "Hello", in one frame and in fragments cut at every byte."""
    streams = [masked(TEXT, payload, rsv=RSV1)] + [
        masked(TEXT, payload[:cut], rsv=RSV1, fin=False) + masked(CONTINUATION, payload[cut:])
        for cut in range(len(payload))
    ]
    for stream in streams:
        assert list(FrameReader(LIMIT, inflate).feed(stream)) == [ReceivedMessage(TEXT, "Hello")]


contents = st.text(max_size=200).map(str.encode) | st.binary(max_size=300).map(
    lambda data: (data * 20).hex().encode()
)


@given(
    st.lists(st.tuples(contents, st.booleans(), st.integers(9, 15)), min_size=1, max_size=4),
    st.data(),
)
def test_messages_arrive_whole_deflated_or_not(
    sent: list[tuple[bytes, bool, int]], data: st.DataObject
) -> None:
    """Fragments, pings between them and any cut of the stream change nothing."""
    stream, expected = b"", []
    for content, compressed, window in sent:
        payload = deflated(content, window=window) if compressed else content
        cuts = data.draw(st.lists(st.integers(0, len(payload)), max_size=4).map(sorted))
        pieces = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        for number, piece in enumerate(pieces):
            stream += masked(
                CONTINUATION if number else TEXT,
                piece,
                rsv=RSV1 if compressed and not number else 0,
                fin=number == len(pieces) - 1,
            )
            if number < len(pieces) - 1:
                stream += masked(PING, b"")
                expected.append(ReceivedMessage(PING, b""))
        expected.append(ReceivedMessage(TEXT, content.decode()))
    size = data.draw(st.integers(1, 300))
    reader = FrameReader(LIMIT, inflate)
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert [message for chunk in chunks for message in reader.feed(chunk)] == expected


@given(st.binary(max_size=3000) | st.binary(max_size=100).map(lambda data: data * 700))
def test_zlib_reads_deflated_messages(payload: bytes) -> None:
    """By zlib with the window that was agreed, each frame by itself, and it is never longer."""
    whole = frame(BINARY, payload)
    shorter = deflated_frame(BINARY, payload)
    assert len(shorter) <= len(whole)
    if shorter[0] & RSV1:
        deflated = shorter[{126: 4, 127: 10}.get(shorter[1], 2) :]
        assert zlib.decompressobj(-12).decompress(deflated + b"\0\0\xff\xff") == payload
    else:
        assert shorter == whole


def test_small_messages_are_not_compressed() -> None:
    """It saves nothing; what is larger and compresses, is."""
    for size, shrinks in ((MIN_SIZE - 5, False), (MIN_SIZE, True), (100_000, True)):
        payload = b"x" * size
        assert (deflated_frame(TEXT, payload) != frame(TEXT, payload)) is shrinks


@given(st.binary(max_size=300))
def test_noise_that_claims_to_be_deflated_never_crashes(noise: bytes) -> None:
    """It is a message, or a violation."""
    with contextlib.suppress(ViolationError):
        list(FrameReader(LIMIT, inflate).feed(masked(BINARY, noise, rsv=RSV1)))


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (masked(BINARY, b"\xff" * 20, rsv=RSV1), 1007),
        (masked(BINARY, b"\x03\x00" * 1000, rsv=RSV1), 1007),
        (masked(TEXT, deflated(b"\xff" * 300), rsv=RSV1), 1007),
        (masked(PING, b"", rsv=RSV1), 1002),
        (masked(TEXT, b"", rsv=RSV1 | 0x20), 1002),
        (masked(TEXT, b"", rsv=0x20), 1002),
        (masked(TEXT, b"", fin=False) + masked(CONTINUATION, b"", rsv=RSV1), 1002),
        (masked(TEXT, b"", fin=False, rsv=RSV1) + masked(CONTINUATION, b"", rsv=RSV1), 1002),
        (masked(BINARY, deflated(b"\0" * (LIMIT + 1)), rsv=RSV1), 1009),
        (masked(BINARY, b"", length=b"\x7f" + 8 * b"\x01", rsv=RSV1), 1009),
    ],
)
def test_protocol_errors_fail_the_connection(stream: bytes, code: int) -> None:
    """Section 6: the bit is for the first frame of a message, and its payload must be DEFLATE."""
    with pytest.raises(ViolationError) as caught:
        list(FrameReader(LIMIT, inflate).feed(stream))
    assert caught.value.code == code


def test_a_bomb_takes_no_memory() -> None:
    """64 KB that would be 64 MB are inflated to the limit and no further."""
    bomb = masked(BINARY, deflated(b"\0" * 64_000_000, level=9), rsv=RSV1)
    assert len(bomb) < LIMIT
    tracemalloc.start()
    try:
        with pytest.raises(ViolationError):
            list(FrameReader(LIMIT, inflate).feed(bomb))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# On a node.


async def handshake(peer: TCPPeer, offer: str) -> bytes:
    """Return the node's answer to an offer, in lower case."""
    field = f"Sec-WebSocket-Extensions: {offer}\r\n\r\n".encode()
    peer.write(HANDSHAKE[:-2] + field)
    return (await peer.head()).lower()


async def test_without_the_setting_nothing_is_agreed(start_node: StartNode) -> None:
    """Compression is off by default, and a compressed message is a violation then."""
    node = await start_node()
    async with tcp(node) as peer:
        assert b"extensions" not in await handshake(peer, "permessage-deflate")
        peer.write(masked(TEXT, PLAIN_TEXT, rsv=RSV1))
        assert await peer.rest() == close_frame(1002, "reserved bits are set")


async def test_a_bomb_closes_with_1009(start_node: StartNode) -> None:
    """On the wire as in the reader; others are served."""
    node = await start_node(compression=True)
    async with (
        tcp(node) as peer,
        connect(f"{node.url}/ws".replace("http", "ws"), proxy=None) as other,
    ):
        assert ANSWER.encode() in await handshake(peer, "permessage-deflate")
        peer.write(masked(TEXT, deflated(b"x" * 10_000_000), rsv=RSV1))
        assert (await peer.rest())[2:4] == (1009).to_bytes(2, "big")
        await other.send(LONG)
        assert json.loads(await other.recv())["type"] == "ack"


async def test_a_publication_is_deflated_once_for_all(start_node: StartNode) -> None:
    """Fifty clients that agreed get the same frame, made once; the others get the usual one."""
    node = await start_node(compression=True)
    calls: list[bytes] = []

    def counted(payload: bytes) -> bytes:
        calls.append(payload)
        return deflated_frame(TEXT, payload)

    counting = deflate.FRAMING._replace(text=counted)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(patch.object(deflate, "FRAMING", counting))
        peers = [await stack.enter_async_context(tcp(node)) for _ in range(50)]
        for peer in peers:
            await handshake(peer, "permessage-deflate")
        usual = await stack.enter_async_context(tcp(node))
        narrow = await stack.enter_async_context(tcp(node))
        await handshake(usual, "unknown")
        await handshake(narrow, "permessage-deflate; server_max_window_bits=9")
        await settled(lambda: len(node.node.hub) == 52, "all are there")
        usual.write(masked(TEXT, LONG.encode()) + masked(TEXT, b'"short"'))
        frames = set()
        for peer in peers:
            opcode, payload = await peer.frame()
            frames.add(payload)
            heard = json.loads(inflate(payload, LIMIT))
            assert (opcode, heard["data"]) == (TEXT, json.loads(LONG))
            assert (await peer.message())["data"] == "short"
        assert len(frames) == 1
        assert len(calls) == 2
        assert (await narrow.message())["data"] == json.loads(LONG)
        assert len(frames.pop()) < len(LONG) // 4
    await settled(lambda: not node.node.hub._topics, "all are gone")


@pytest.mark.parametrize("codec", [JSONCodec(), ProtobufCodec()], ids=["json", "protobuf"])
async def test_the_centrifuge_protocol(start_node: StartNode, codec: Codec) -> None:
    """In each encoding clients that agreed, and others, hear the same publication."""
    node = await start_node(compression=True)
    url = f"{node.url}/connection/websocket".replace("http", "ws")
    commands = [Command(1, ConnectRequest()), Command(2, SubscribeRequest(channel="a"))]
    publish = Command(3, PublishRequest(channel="a", data=LONG.encode()))

    async def say(client: ClientConnection, *commands: Command) -> None:
        payload = codec.encode_commands(commands)
        await client.send(payload, text=not codec.binary)

    async def hear(client: ClientConnection) -> bytes:
        async with asyncio.timeout(TIMEOUT):
            while True:
                for reply in codec.decode_replies(await client.recv()):
                    if reply.push is not None and isinstance(reply.push.event, Publication):
                        return reply.push.event.data

    subprotocols = [Subprotocol(codec.subprotocol)]
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                connect(url, proxy=None, subprotocols=subprotocols, compression=compression)
            )
            for compression in ("deflate", None)
        ]
        for client in clients:
            await say(client, *commands)
        topics = [f"{codec.name} {f} publications a" for f in ("websocket", "websocket-deflate")]
        await settled(lambda: all(map(node.node.hub.has, topics)), "both are subscribed")
        await say(clients[1], publish)
        for client in clients:
            assert json.loads(await hear(client)) == json.loads(LONG)


OFFERS = [
    ClientPerMessageDeflateFactory(),
    ClientPerMessageDeflateFactory(client_no_context_takeover=True),
    ClientPerMessageDeflateFactory(server_no_context_takeover=True),
    ClientPerMessageDeflateFactory(server_max_window_bits=9),
    ClientPerMessageDeflateFactory(client_max_window_bits=9),
    ClientPerMessageDeflateFactory(client_max_window_bits=True, server_max_window_bits=15),
]


async def test_libraries_of_python(start_node: StartNode) -> None:
    """Websockets with each of its parameters, and aiohttp, hear and say what is compressed."""
    node = await start_node(compression=True)
    url = f"{node.url}/ws".replace("http", "ws")
    async with contextlib.AsyncExitStack() as stack:
        listeners = [
            await stack.enter_async_context(connect(url, proxy=None, extensions=[offer]))
            for offer in OFFERS
        ]
        assert all(listener.protocol.extensions for listener in listeners)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        other = await stack.enter_async_context(session.ws_connect(url, compress=15))
        assert other.compress == 15
        for sender in listeners:
            for text in (LONG, "short", LONG):
                await sender.send(text)
                assert json.loads(await sender.recv())["type"] == "ack"
                expected = json.loads(text) if text is LONG else text
                for listener in listeners:
                    if listener is not sender:
                        assert json.loads(await listener.recv())["data"] == expected
                assert (await other.receive_json())["data"] == expected
        await other.send_str(LONG)
        assert (await other.receive_json())["type"] == "ack"
        assert json.loads(await listeners[0].recv())["data"] == json.loads(LONG)


async def test_ws_of_node(start_node: StartNode, modules: None) -> None:
    """It agrees, and hears and says what is compressed."""
    node = await start_node(compression=True)
    url = f"{node.url}/ws".replace("http", "ws")
    script = JAVASCRIPT / "deflate.mjs"
    async with connect(url, proxy=None) as other:
        process = await asyncio.create_subprocess_exec(
            "node", str(script), url, stdout=subprocess.PIPE
        )
        async with asyncio.timeout(TIMEOUT):
            assert json.loads(await other.recv())["data"] == "x" * 5000
            await other.send(LONG)
            out, _ = await process.communicate()
    assert json.loads(out) == ["permessage-deflate", json.loads(LONG)]


IN_A_PAGE = """
url => new Promise((resolve, reject) => {
    const client = new WebSocket(url);
    client.onopen = () => client.send("x".repeat(5000));
    client.onerror = client.onclose = reject;
    client.onmessage = event => {
        const message = JSON.parse(event.data);
        if (message.type === "message") resolve([client.extensions, message.data]);
    };
})
"""


async def test_a_browser(start_node: StartNode) -> None:
    """Chromium agrees, and hears and says what is compressed."""
    node = await start_node(compression=True)
    url = f"{node.url}/ws".replace("http", "ws")

    def browse() -> Any:
        with chromium() as browser:
            return browser.new_page().evaluate(IN_A_PAGE, url)

    async with connect(url, proxy=None) as other:
        browsing = asyncio.create_task(asyncio.to_thread(browse))
        async with asyncio.timeout(60):
            assert json.loads(await other.recv())["data"] == "x" * 5000
            await other.send(LONG)
            assert await browsing == [ANSWER, json.loads(LONG)]

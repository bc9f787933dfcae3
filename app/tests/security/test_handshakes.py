"""Forged handshakes: tokens, origins, headers."""

import base64
import hmac
import json
import time

import httpx
import jwt
import pytest
from websockets.exceptions import InvalidStatus

from tests.support.clients import closed, command
from tests.support.tokens import API_KEY, RSA_KEY, RSA_STRANGER, SECRET, bearer, by_hand, pem
from tests.support.victim import ANYWHERE, WITH_APPLICATION, Victim

CLAIMS = {"sub": "admin"}


def with_the_public_key() -> str:
    """Return a token whose HMAC key is the text of the public key."""
    head = by_hand({"typ": "JWT", "alg": "HS256"}, CLAIMS).rpartition(".")[0]
    mac = hmac.digest(pem(RSA_KEY).encode(), head.encode(), "sha256")
    return f"{head}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


def changed() -> str:
    """Return a token with changed claims."""
    head, _, signature = jwt.encode(CLAIMS, SECRET, "HS256").split(".")
    claims = base64.urlsafe_b64encode(json.dumps({"sub": "root"}).encode()).decode().rstrip("=")
    return f"{head}.{claims}.{signature}"


FORGED = {
    "alg none": by_hand({"typ": "JWT", "alg": "none"}, CLAIMS),
    "alg None": by_hand({"typ": "JWT", "alg": "None"}, CLAIMS),
    "no alg": by_hand({"typ": "JWT"}, CLAIMS),
    "the public key as a secret": with_the_public_key(),
    "another secret": jwt.encode(CLAIMS, "x" * 32, "HS256"),
    "another RSA key": jwt.encode(CLAIMS, RSA_STRANGER, "RS256"),
    "a key of its own": jwt.encode(
        CLAIMS, "x" * 32, "HS256", {"jwk": {"kty": "oct", "k": "eHh4"}, "jku": "http://evil/"}
    ),
    "a kid that is a path": by_hand({"alg": "HS256", "kid": "../../../dev/null"}, CLAIMS),
    "other claims": changed(),
    "no signature": jwt.encode(CLAIMS, SECRET, "HS256").rpartition(".")[0] + ".",
    "noise": "..",
    "a long one": "a" * 12_000,
}


@WITH_APPLICATION
@pytest.mark.parametrize("name", FORGED)
async def test_forged_tokens(victim: Victim, name: str) -> None:
    """A forged token is 401 or 3500 by protocol, and the metrics count both."""
    refused, before = await victim.refused("invalid_token"), await victim.disconnected(3500)
    for path in (f"/ws?token={FORGED[name]}", "/ws"):
        headers = bearer(FORGED[name]) if path == "/ws" else {}
        with pytest.raises(InvalidStatus) as caught:
            await victim.client(path, additional_headers=headers)
        assert caught.value.response.status_code == 401
    assert await victim.refused("invalid_token") == refused + 2
    async with victim.client("/connection/websocket") as client:
        await client.send(json.dumps({"id": 1, "connect": {"token": FORGED[name]}}))
        assert (await closed(client))[0] == 3500
    await victim.has_disconnected(3500, before + 1)


async def test_a_token_after_its_time(victim: Victim) -> None:
    """An expired token is refused, also in a replay."""
    old = jwt.encode(CLAIMS | {"exp": int(time.time()) - 1}, SECRET, "HS256")
    before = await victim.refused("expired_token")
    with pytest.raises(InvalidStatus) as caught:
        await victim.client(f"/ws?token={old}")
    assert caught.value.response.status_code == 401
    assert await victim.refused("expired_token") == before + 1
    async with victim.client("/connection/websocket") as client:
        assert (await command(client, connect={"token": old}))["error"]["code"] == 109


async def test_a_token_of_one_channel_for_another(victim: Victim) -> None:
    """A token for another channel disconnects with 3500."""
    own = {"channel": "$own"}
    right = jwt.encode(CLAIMS | own, SECRET, "HS256")
    async with victim.client("/connection/websocket") as client:
        await command(client, connect={"token": jwt.encode(CLAIMS, SECRET, "HS256")})
        assert "subscribe" in await command(client, subscribe=own | {"token": right})
        await client.send(json.dumps({"id": 2, "subscribe": {"channel": "$other", "token": right}}))
        assert (await closed(client))[0] == 3500


@WITH_APPLICATION
async def test_foreign_origins(victim: Victim) -> None:
    """A foreign page is refused although it has the user's cookies."""
    foreign = ("https://evil.org", "https://example.com.evil.org", "http://example.com", "null")
    for path in victim.paths:
        before = await victim.refused("origin")
        for origin in foreign:
            with pytest.raises(InvalidStatus) as caught:
                await victim.client(path, origin=origin, additional_headers={"Cookie": "session=1"})
            assert caught.value.response.status_code == 403
        assert await victim.refused("origin") == before + len(foreign)
        async with victim.client(path, origin="https://example.com"):
            pass


HEADERS = {
    "a name with a space": (b"X Y: z\r\n", 400),
    "no colon": (b"nonsense\r\n", 400),
    "a NUL": (b"X: a\0b\r\n", 400),
    "two lengths": (b"Content-Length: 1\r\nContent-Length: 2\r\n", 400),
    "length and chunks": (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
    "a negative length": (b"Content-Length: -1\r\n", 400),
    "a header of 600 KB": (b"X: %b\r\n" % (b"x" * 600_000), 431),
    "60,000 headers": (b"".join(b"X%d: y\r\n" % n for n in range(60_000)), 431),
    "two nonces": (b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", 101),
    "two origins": (b"Origin: https://evil.org\r\nOrigin: https://example.com\r\n", 403),
    "an address of its own": (b"X-Forwarded-For: 10.0.0.1\r\nX-Real-IP: ::1\r\n", 101),
    "an extension that is none": (b'Sec-WebSocket-Extensions: x; y="z\r\n', 101),
    "10,000 subprotocols": (b"Sec-WebSocket-Protocol: %b\r\n" % (b"," * 10_000), 101),
}
AT_HAPROXY = {
    "length and chunks": {400, 404},  # if it is taken, as chunks: with a body it is no handshake
    "a header of 600 KB": {400, 431},
    "60,000 headers": {400, 431},
}
"""What HAProxy answers instead, which depends on its release."""


@ANYWHERE
@pytest.mark.parametrize("name", HEADERS)
async def test_headers(victim: Victim, name: str) -> None:
    """Malformed or oversized headers are refused; unknown ones have no effect."""
    header, status = HEADERS[name]
    direct = victim.entry == victim.port
    expected = {status} if direct else AT_HAPROXY.get(name, {status})
    async with victim.tcp(victim.handshake()[:-2] + header + b"\r\n") as peer:
        assert int((await peer.head()).split()[1]) in expected


@ANYWHERE
async def test_a_second_request_behind_a_handshake(victim: Victim) -> None:
    """Bytes after the handshake are read as frames, never as another request."""
    smuggled = b"POST /api/info HTTP/1.1\r\nHost: x\r\nX-API-Key: x\r\nContent-Length: 2\r\n\r\n{}"
    async with victim.tcp(victim.handshake() + smuggled) as peer:
        rest = await peer.rest()
    assert rest.count(b"HTTP/1.1") == 1
    assert rest.startswith(b"HTTP/1.1 101 ")
    assert rest[-40:].find(b"\x88") >= 0


async def test_the_api_is_closed(victim: Victim) -> None:
    """Without a configured key every key is refused."""
    async with httpx.AsyncClient(trust_env=False) as http:
        for key in ("", "x", API_KEY):
            url = f"{victim.internal_url}/api/disconnect"
            response = await http.post(url, json={"user": ""}, headers={"X-API-Key": key})
            assert response.status_code == 403

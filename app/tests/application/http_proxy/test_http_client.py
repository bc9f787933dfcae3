"""Calls of an endpoint: what is sent, what counts as an answer, and how connections are used."""

import asyncio
import itertools
import ssl
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from lab.ports import free_port
from lab.waiting import settled
from tests.support.certificates import make_certificate
from tests.support.http_backend import (
    HTTPBackend,
    ReceivedRequest,
    always,
    answer,
    running_backend,
)
from wsfleet.application.http_proxy import http_client
from wsfleet.application.http_proxy.http_client import HTTPAnswer, HTTPClient
from wsfleet.application.port import BackendError
from wsfleet.config.endpoint_url import EndpointURL

FIELDS = b"x-one: 1\r\n"
OK = answer("{}")


def client_of(
    backend: HTTPBackend, timeout: float = 5.0, path: str = "/path?q=1", **options: Any
) -> HTTPClient:
    """Return a client of a backend."""
    return HTTPClient(EndpointURL.parse(backend.url + path), timeout, **options)


async def failure(client: HTTPClient) -> tuple[str, str]:
    """Return how a call fails: the reason for the metrics, and the message."""
    with pytest.raises(BackendError) as caught:
        await client.post(FIELDS, b"{}")
    return caught.value.reason, str(caught.value)


async def test_a_call_is_one_post_with_a_length() -> None:
    """Method, target with query, host, the given fields and the body."""
    async with running_backend(always(OK)) as backend:
        assert await client_of(backend).post(FIELDS, b'{"a":1}') == (200, b"{}")
    (request,) = backend.requests
    assert (request.method, request.target) == ("POST", "/path?q=1")
    assert request.fields == [
        ("host", backend.url.removeprefix("http://")),
        ("x-one", "1"),
        ("content-length", "7"),
    ]
    assert request.body == b'{"a":1}'


async def test_connections_are_used_again() -> None:
    """Calls one after the other need one connection."""
    async with running_backend(always(OK)) as backend:
        client = client_of(backend)
        for _ in range(20):
            await client.post(FIELDS, b"{}")
        assert (len(backend.requests), backend.accepted) == (20, 1)
        client.close()
        await settled(lambda: backend.open == 0, "the connection is closed")


async def test_an_idle_connection_is_used_for_a_limited_time() -> None:
    """The backend may close it at any moment, and a request that crosses that is lost."""
    async with running_backend(always(OK)) as backend:
        client = client_of(backend, max_idle=-1.0)
        for _ in range(2):
            await client.post(FIELDS, b"{}")
        assert (backend.accepted, backend.open) == (2, 1)
        client.close()


async def test_without_idle_connections_each_call_has_its_own() -> None:
    """It is closed with the answer."""
    async with running_backend(always(OK)) as backend:
        client = client_of(backend, max_idle=0)
        for _ in range(3):
            await client.post(FIELDS, b"{}")
        assert backend.accepted == 3
        await settled(lambda: backend.open == 0, "all connections are closed")


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}",
        "HTTP/1.0 200 OK\r\nX: Connection: close\r\n\r\n{}",
    ],
)
async def test_an_answer_that_ends_its_connection_is_an_answer(head: str) -> None:
    """With a length or, as HTTP/1.0 servers do it, ended by the close."""
    async with running_backend(always(head.encode())) as backend:
        client = client_of(backend)
        for _ in range(2):
            assert await client.post(FIELDS, b"{}") == (200, b"{}")
        assert backend.accepted == 2


async def test_other_forms_of_answers() -> None:
    """Chunks, a preliminary answer, one without a body, and one with a redirect."""
    forms = {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n": (
            200,
            b"{}",
        ),
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK: (200, b"{}"),
        b"HTTP/1.1 204 No Content\r\n\r\n": (204, b""),
        answer("", 307, "Location: http://127.0.0.1:1/"): (307, b""),
    }
    for form, wanted in forms.items():
        async with running_backend(always(form)) as backend:
            client = client_of(backend)
            for _ in range(2):
                assert await client.post(FIELDS, b"{}") == wanted
            assert (len(backend.requests), backend.accepted) == (2, 1)
            client.close()


async def test_a_second_answer_to_one_request_is_not_the_next_ones() -> None:
    """Its connection is given up, whether it came whole or in part."""
    for more in (OK, OK[:-1], OK[:5]):
        async with running_backend(always(answer('"mine"') + more)) as backend:
            client = client_of(backend)
            for _ in range(3):
                assert await client.post(FIELDS, b"{}") == (200, b'"mine"')
            assert backend.accepted == 3


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\n{}", "unavailable",
         "closed before the answer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\n{",
         "unavailable", "closed before the answer"),
        (b"HTTP/1.1 200 OK\r\nConnection: close", "unavailable", "closed before the answer"),
        (b"SSH-2.0-OpenSSH_10.0\r\n", "invalid", "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "invalid", "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1",
         "invalid", "not HTTP/1.1"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "invalid",
         "not HTTP/1.1"),
    ],
)  # fmt: skip
async def test_half_answers_and_other_protocols_fail(
    content: bytes, reason: str, message: str
) -> None:
    """At once, and the connection is not used again."""
    async with running_backend(always(content)) as backend:
        client = client_of(backend)
        for _ in range(2):
            failed = await failure(client)
            assert failed[0] == reason
            assert message in failed[1]
        await settled(lambda: backend.open == 0, "the connections are closed")


async def test_a_large_answer_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not it tells its length; the head counts as well."""
    monkeypatch.setattr(http_client, "MAX_ANSWER", 10_000)
    body = b"x" * 20_000
    for content in (
        answer(body),
        b"HTTP/1.1 200 OK\r\n\r\n" + body,
        answer("", 200, f"X: {body.decode()}"),
    ):
        async with running_backend(always(content)) as backend:
            assert await failure(client_of(backend)) == (
                "invalid",
                "the answer is larger than 10000 bytes",
            )
            await settled(lambda: backend.open == 0, "the connection is closed")


async def test_an_answer_that_does_not_come_is_not_waited_for() -> None:
    """No answer, half of one, or one that drips: the call ends within its time."""
    never, ended = asyncio.Event(), asyncio.Event()

    async def silent(request: ReceivedRequest) -> bytes:
        await never.wait()
        return b""

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.01)
        writer.close()
        ended.set()

    async with running_backend(silent) as backend:
        client = client_of(backend, timeout=0.2)
        assert await failure(client) == ("timeout", "no answer within 0.2 s")
        never.set()
        await settled(lambda: backend.open == 0, "the connection is closed")
    server = await asyncio.start_server(half, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = HTTPClient(EndpointURL.parse(f"http://127.0.0.1:{port}"), 0.2)
    assert await failure(client) == ("timeout", "no answer within 0.2 s")
    await ended.wait()
    server.close()


async def test_a_backend_that_is_not_there_fails_at_once() -> None:
    """A closed port, a socket that does not exist, a name that DNS cannot have."""
    for url in (f"http://127.0.0.1:{free_port()}", "http+unix://%2Fnowhere%2Fapp.sock/x"):
        reason, message = await failure(HTTPClient(EndpointURL.parse(url), 5.0))
        assert reason == "unavailable"
        assert message.startswith("no connection: ")
    url = f"http://{'a' * 70}.example"
    assert (await failure(HTTPClient(EndpointURL.parse(url), 5.0)))[0] == "unavailable"


async def test_a_reset_connection_fails() -> None:
    """A process that is killed while it answers."""

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    server = await asyncio.start_server(reset, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reason, message = await failure(HTTPClient(EndpointURL.parse(f"http://127.0.0.1:{port}"), 5))
    assert reason == "unavailable"
    assert "before the answer" in message
    server.close()


async def test_the_pool_is_bounded() -> None:
    """200 calls at once: each is answered, over no more connections than the bound."""
    bound = http_client.MAX_CONNECTIONS
    together = asyncio.Barrier(bound)

    async def reply(request: ReceivedRequest) -> bytes:
        await together.wait()  # so many requests are answered at the same time
        return answer(request.body)

    async with running_backend(reply) as backend:
        client = client_of(backend, timeout=30)
        bodies = [b"%d" % i for i in range(2 * bound)]
        answers = await asyncio.gather(*(client.post(FIELDS, body) for body in bodies))
        assert [each.body for each in answers] == bodies
        assert backend.most == bound
        client.close()


async def test_a_stuck_backend_leaves_no_call_behind() -> None:
    """200 calls of a backend that never answers: all fail in time, and it is usable again."""
    stuck = asyncio.Event()

    async def reply(request: ReceivedRequest) -> bytes:
        await stuck.wait()
        return OK

    async with running_backend(reply) as backend:
        client = client_of(backend, timeout=0.3)
        calls = [client.post(FIELDS, b"{}") for _ in range(2 * http_client.MAX_CONNECTIONS)]
        failed = await asyncio.gather(*calls, return_exceptions=True)
        assert {str(each) for each in failed} == {"no answer within 0.3 s"}
        stuck.set()
        await settled(lambda: backend.open == 0, "the connections are closed")
        assert (await client_of(backend).post(FIELDS, b"{}")).status == 200
        assert (await client.post(FIELDS, b"{}")).status == 200
        client.close()


async def test_a_cancelled_call_closes_its_connection() -> None:
    """Its client has gone; the late answer is nobody's."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def reply(request: ReceivedRequest) -> bytes:
        asked.set()
        await go_on.wait()
        return OK

    async with running_backend(reply) as backend:
        client = client_of(backend)
        call = asyncio.create_task(client.post(FIELDS, b"first"))
        await asked.wait()
        call.cancel()
        go_on.set()
        assert await client.post(FIELDS, b"second") == (200, b"{}")
        assert backend.accepted == 2
        client.close()


class FakeTransport(asyncio.Transport):
    """A transport that goes nowhere."""

    def write(self, data: object) -> None:
        """Send nothing."""

    def abort(self) -> None:
        """Close nothing."""


def received(parts: list[bytes], *, eof: bool) -> HTTPAnswer | None:
    """Return the answer in the parts that a connection receives; None if it fails or waits."""

    async def main() -> HTTPAnswer | None:
        connection = http_client._Connection()
        connection.connection_made(FakeTransport())
        call = asyncio.create_task(connection.call(b""))
        await asyncio.sleep(0)
        for part in parts:
            connection.data_received(part)
        if eof:
            connection.eof_received()
            connection.connection_lost(None)
        await asyncio.sleep(0)
        if not call.done():
            assert not eof, "it waits for nothing"
            call.cancel()
            return None
        failed = call.exception()
        assert failed is None or isinstance(failed, BackendError)
        return call.result() if failed is None else None

    return asyncio.run(main())


FORMS = (
    answer('{"result":{}}'),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,
    b"HTTP/1.0 200 OK\r\n\r\nto the end",
)


@given(st.sampled_from(FORMS), st.lists(st.integers(0, 90), max_size=5))
def test_it_does_not_matter_how_an_answer_is_cut(content: bytes, cuts: list[int]) -> None:
    """TCP cuts anywhere."""
    places = [0, *sorted(cuts), len(content)]
    parts = [content[a:b] for a, b in itertools.pairwise(places) if b > a]
    whole = received([content], eof=True)
    assert whole is not None
    assert received(parts, eof=True) == whole


@given(
    st.lists(st.binary() | st.sampled_from([form[:30] for form in FORMS]), max_size=4),
    st.booleans(),
)
def test_any_bytes_are_an_answer_or_a_failure(parts: list[bytes], eof: bool) -> None:
    """And after the connection has ended, nobody waits."""
    received([part for part in parts if part], eof=eof)


async def test_unix_sockets(tmp_path: Path) -> None:
    """A socket's path is the URL's host, in percent encoding."""
    async with running_backend(always(OK), socket=str(tmp_path / "app.sock")) as backend:
        client = client_of(backend, path="/connect")
        assert await client.post(FIELDS, b"{}") == (200, b"{}")
        client.close()
    (request,) = backend.requests
    assert request.target == "/connect"
    assert request.all("host") == ["localhost"]


async def test_tls(processes: None, tmp_path: Path) -> None:
    """A backend must show a certificate that the context trusts, for its host or `server_name`."""
    make_certificate(tmp_path / "cert.pem", tmp_path / "key.pem", "backend.example")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "key.pem")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    async with running_backend(always(OK), tls=server) as backend:
        url = EndpointURL.parse(backend.url)
        for name in ("", "backend.example"):
            client = HTTPClient(url, 5.0, trusting, name)
            assert await client.post(FIELDS, b"{}") == (200, b"{}")
            client.close()
        for context, name in ((ssl.create_default_context(), ""), (trusting, "other.example")):
            reason, message = await failure(HTTPClient(url, 5.0, context, name))
            assert reason == "unavailable"
            assert "certificate verify failed" in message


def test_the_nodes_own_event_loop() -> None:
    """The same on uvloop, which a node runs on: calls, reuse, close, and a failure."""

    async def main() -> None:
        async with running_backend(always(OK)) as backend:
            client = client_of(backend)
            answers = await asyncio.gather(*(client.post(FIELDS, b"{}") for _ in range(10)))
            assert [each.status for each in answers] == [200] * 10
            assert (await client.post(FIELDS, b"{}")).body == b"{}"
            assert backend.accepted == 10
            client.close()
            await settled(lambda: backend.open == 0, "the connections are closed")
        assert (await failure(client))[0] == "unavailable"

    uvloop.run(main())

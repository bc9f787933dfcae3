"""``wsfleet check node``: does one node answer, over HTTP and over a WebSocket?"""

import asyncio
import contextlib
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx
import uvloop
from picows import WSMsgType

from wsfleet.cli.access.fleet_file import trusted
from wsfleet.cli.access.redis import DRAIN_STATES
from wsfleet.cli.access.websocket_client import Asker, ConnectError, DisconnectedError, Endpoint
from wsfleet.cli.measure.report import Report, table

_TIMEOUT = 3.0  # seconds for one answer
_BAD_REQUEST = 3501  # the Centrifuge protocol's close code
_PAUSE = 0.25  # seconds between two attempts


@dataclass
class Found:
    """What the last attempt found; `problem` is None if all was well."""

    ready: bool = False
    reason: str | None = None
    exchanged: bool = False
    problem: str | None = "no answer"


class _Asker(Asker):
    """Asks something that no other client hears of: a binary message is answered with an error."""

    def send(self, text: bytes) -> None:
        self.transport.send(WSMsgType.BINARY, text)


async def _exchange(endpoint: Endpoint) -> str | None:
    """Ask what nobody may ask; the answer, unless it is the one that is due."""
    asker = _Asker()
    try:
        await asker.connect(endpoint)
    except ConnectError as error:
        if error.status != HTTPStatus.UNAUTHORIZED:
            raise
        return await _exchange_without_token(endpoint)
    reply = await asker.ask(b"\0")
    await asker.close()
    return None if reply.get("code") == "unsupported_data" else str(reply)


async def _exchange_without_token(endpoint: Endpoint) -> str | None:
    """The same where `/ws` wants a token: the other endpoint wants one only after the handshake."""
    asker = _Asker()
    await asker.connect(endpoint.at("/connection/websocket"))
    with contextlib.suppress(DisconnectedError):
        await asker.ask(b"\0")  # a push, and then the end
        await asker.transport.wait_disconnected()
    return None if asker.close_code == _BAD_REQUEST else f"it closed with {asker.close_code}"


async def _attempt(endpoint: Endpoint) -> Found:
    try:
        async with httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False, verify=trusted()) as client:
            answer = (await client.get(f"{endpoint.http}/ready")).json()
        ready, reason = bool(answer["ready"]), answer.get("reason")
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        return Found(problem=f"/ready: {str(error) or type(error).__name__}")
    if not ready:
        drained = reason == DRAIN_STATES[-1]
        return Found(reason=reason, problem=None if drained else f"not ready: {reason}")
    try:
        async with asyncio.timeout(_TIMEOUT):
            strange = await _exchange(endpoint)
    except TimeoutError:
        return Found(ready, problem=f"WebSocket: no answer within {_TIMEOUT:g} s")
    except (ConnectError, DisconnectedError) as error:
        return Found(ready, problem=f"WebSocket: {error}")
    if strange is not None:
        return Found(ready, problem=f"WebSocket: a strange answer: {strange}")
    return Found(ready, exchanged=True, problem=None)


async def _probe(endpoint: Endpoint, timeout_seconds: float) -> Found:
    found = Found()
    try:
        async with asyncio.timeout(timeout_seconds):
            while (found := await _attempt(endpoint)).problem is not None:
                await asyncio.sleep(_PAUSE)
    except TimeoutError:
        pass  # the last attempt's problem is reported
    return found


def run(endpoint: Endpoint, timeout_seconds: float) -> Report:
    """Try until the node answers as it should, or the time is over."""
    found = uvloop.run(_probe(endpoint, timeout_seconds))
    data: dict[str, Any] = {
        "url": endpoint.http,
        "ready": found.ready,
        "reason": found.reason,
        "exchanged": found.exchanged,
    }
    rows = [("ready", found.ready if found.ready else found.reason), ("WebSocket", found.exchanged)]
    problems = [f"{endpoint.http}: {found.problem}"] if found.problem else []
    return Report(data, [table("node", ("", ">value"), rows)], problems)

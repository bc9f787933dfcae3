"""``wsfleet check node``: one node must answer over HTTP and over a WebSocket."""

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import typer
import uvloop
from picows import WSMsgType

from wsfleet.cli.access.endpoint import FleetEndpoint, parse_url
from wsfleet.cli.access.http import TIMEOUT, trusted
from wsfleet.cli.access.websocket_client import Asker, ConnectError, ConnectionEndedError
from wsfleet.cli.measure.report import Report, emit, table
from wsfleet.cli.options import Ca, Json
from wsfleet.cluster.node_state import NodeState
from wsfleet.protocol.centrifuge.codes import DisconnectCode
from wsfleet.protocol.centrifuge.negotiation import PATH

_PAUSE = 0.25  # seconds between two attempts


def command(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help=f"http(s)://HOST:PORT or ws(s)://HOST:PORT[/PATH]; the path defaults to {PATH}.",
            show_default=False,
        ),
    ],
    internal_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="URL of the node's internal port, which has /ready. Default: URL.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds in which the check may be repeated.")
    ] = 10.0,
    ca: Ca = None,
    as_json: Json = False,
) -> int:
    """Check that one node answers on a WebSocket, or is drained.

    URL is the node's own port for clients. Without a path, the command uses the Centrifuge
    protocol, which each node has, also beside an application. With a path, it only opens and closes
    the WebSocket there. No other client receives anything. Exit code 1 if the node is neither ready
    nor drained, or does not answer.
    """
    report = run(parse_url(url, PATH), parse_url(internal_url or url), timeout)
    return emit(report, as_json=as_json)


@dataclass
class Found:
    """The result of the last attempt; `problem` is None if all was well."""

    ready: bool = False
    reason: str | None = None
    exchanged: bool = False
    problem: str | None = None


class _BinaryAsker(Asker):
    """A client that sends binary messages: the answer is an error, and nothing is broadcast."""

    def send(self, text: bytes) -> None:
        self.transport.send(WSMsgType.BINARY, text)


async def _exchange(endpoint: FleetEndpoint) -> str | None:
    """Open a WebSocket, and send a message that must be rejected; return a wrong answer, if any.

    At another path than that of the Centrifuge protocol nothing is sent, because the effect of a
    message there is unknown.
    """
    asker = _BinaryAsker()
    await asker.connect(endpoint)
    if endpoint.path != PATH:
        await asker.close()
        return None
    with contextlib.suppress(ConnectionEndedError):
        await asker.ask(b"\0")  # a push, and then the end
        await asker.transport.wait_disconnected()
    expected = DisconnectCode.BAD_REQUEST.code
    return None if asker.close_code == expected else f"it closed with {asker.close_code}"


async def _attempt(endpoint: FleetEndpoint, internal: FleetEndpoint) -> Found:
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, verify=trusted()) as client:
            answer = (await client.get(f"{internal.http}/ready")).json()
        ready, reason = bool(answer["ready"]), answer.get("reason")
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        return Found(problem=f"/ready: {str(error) or type(error).__name__}")
    if not ready:
        drained = reason == NodeState.DRAINED.value
        return Found(reason=reason, problem=None if drained else f"not ready: {reason}")
    try:
        async with asyncio.timeout(TIMEOUT):
            unexpected = await _exchange(endpoint)
    except TimeoutError:
        return Found(ready, problem=f"WebSocket: no answer within {TIMEOUT:g} s")
    except (ConnectError, ConnectionEndedError) as error:
        return Found(ready, problem=f"WebSocket: {error}")
    if unexpected is not None:
        return Found(ready, problem=f"WebSocket: unexpected answer: {unexpected}")
    return Found(ready, exchanged=True)


async def probe(endpoint: FleetEndpoint, internal: FleetEndpoint, timeout_seconds: float) -> Found:
    """Return the first attempt without a problem, or the last one that the time allows.

    An attempt is never cut short, so that its problem is the node's: it has time limits of its own.
    """
    deadline = time.monotonic() + timeout_seconds
    while (found := await _attempt(endpoint, internal)).problem is not None:
        if time.monotonic() + _PAUSE > deadline:
            break
        await asyncio.sleep(_PAUSE)
    return found


def run(endpoint: FleetEndpoint, internal: FleetEndpoint, timeout_seconds: float) -> Report:
    """Probe a node, repeating for `timeout_seconds` at most, and return the report.

    `internal` is where `/ready` is, `endpoint` the port for clients.
    """
    found = uvloop.run(probe(endpoint, internal, timeout_seconds))
    data: dict[str, Any] = {
        "url": endpoint.http,
        "ready": found.ready,
        "reason": found.reason,
        "exchanged": found.exchanged,
    }
    rows = [("ready", found.ready if found.ready else found.reason), ("WebSocket", found.exchanged)]
    problems = [f"{endpoint.http}: {found.problem}"] if found.problem else []
    return Report(data, [table("node", ("", ">value"), rows)], problems)

"""The clients of ``wsfleet check stickiness``: they come back with their cookie, or without one."""

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from http.cookies import Morsel

import orjson
import uvloop

from wsfleet.cli.access.endpoint import Endpoint, unreachable
from wsfleet.cli.access.websocket_client import (
    ANSWER_TIMEOUT,
    Asker,
    Client,
    ConnectError,
    DisconnectedError,
    cookie_node,
)
from wsfleet.cli.measure.histogram import Timeline

#: The part of the given time that is spent in pauses; the rest is for the network.
_PAUSED = 0.9


@dataclass(frozen=True, slots=True)
class StickinessPlan:
    """The size of a check of `seconds`; `jars` tells for each pass if clients keep cookies."""

    clients: int = 20
    connections: int = 5
    messages: int = 3
    seconds: float = 10.0
    jars: tuple[bool, ...] = (True, False)

    @property
    def pause(self) -> float:
        """The seconds between two messages of a client."""
        return self.seconds * _PAUSED / (len(self.jars) * self.connections * self.messages)


@dataclass
class Visitor:
    """One client: `servers` has the node of each of its connections, in order."""

    client_id: str
    server: str | None = None
    connections: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    broadcasts_received: int = 0
    moves: int = 0
    servers: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass
class Cookie:
    """The stickiness cookie as the answer to a handshake set it, with its attributes."""

    value: str
    node: str
    path: str
    max_age: str | None
    expires: str | None
    httponly: bool
    secure: bool
    samesite: str | None


class Pass:
    """One pass of all clients, with cookie jars or without."""

    def __init__(self, endpoint: Endpoint, plan: StickinessPlan, *, jar: bool) -> None:
        self.endpoint = endpoint
        self.plan = plan
        self.jar = jar
        self.cookies: list[Cookie] = []
        self.answers = Timeline()
        self._began = time.perf_counter()
        run = secrets.token_hex(2)
        kind = "jar" if jar else "plain"
        self.visitors = [Visitor(f"{kind}-{run}-{index}") for index in range(plan.clients)]

    async def execute(self) -> None:
        """Run all clients at the same time."""
        self._began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for index, visitor in enumerate(self.visitors):
                # The starts are spread over one pause, for an even load.
                offset = self.plan.pause * index / len(self.visitors)
                group.create_task(self._visit(visitor, offset))

    async def _visit(self, visitor: Visitor, offset: float) -> None:
        await asyncio.sleep(offset)
        kept: str | None = None
        for _ in range(self.plan.connections):
            client = Asker()
            try:
                await client.connect(self.endpoint, cookie=kept if self.jar else None)
            except ConnectError as error:
                visitor.errors.append(str(error))
                await asyncio.sleep(self.plan.pause * self.plan.messages)
                continue
            visitor.connections += 1
            if client.cookie is not None:
                kept = client.cookie.value
                self.cookies.append(_cookie(client.cookie))
            try:
                servers = {client.node} if client.node else await self._talk(client, visitor)
                _note(visitor, servers)
                if client.node:  # an application need not answer messages
                    await asyncio.sleep(self.plan.pause * self.plan.messages)
            finally:
                visitor.broadcasts_received += client.broadcasts
                await client.close()

    async def _talk(self, client: Asker, visitor: Visitor) -> set[str]:
        """Send the messages of one connection, and return the nodes that answer."""
        servers: set[str] = set()
        for _ in range(self.plan.messages):
            question = {
                "type": "stickiness",
                "client_id": visitor.client_id,
                "timestamp": datetime.now(UTC).isoformat(),
                "number": visitor.messages_sent,
            }
            visitor.messages_sent += 1
            asked = time.perf_counter()
            try:
                answer = await client.ask(orjson.dumps(question))
            except DisconnectedError as error:
                visitor.errors.append(str(error))
                break
            except TimeoutError:
                visitor.errors.append(f"no answer within {ANSWER_TIMEOUT:g} s")
                break
            self.answers.add(asked - self._began, time.perf_counter() - asked)
            if answer.get("type") == "ack":
                visitor.messages_received += 1
                servers.add(str(answer.get("hostname")))
            else:
                visitor.errors.append(f"error {answer.get('code')}: {answer.get('message')}")
            await asyncio.sleep(self.plan.pause)
        return servers


def _note(visitor: Visitor, servers: set[str]) -> None:
    """Record the nodes of one connection, which should be one."""
    if len(servers) > 1:
        visitor.errors.append(f"one connection was answered by {sorted(servers)}")
    for server in sorted(servers)[:1]:
        if visitor.servers and visitor.servers[-1] != server:
            visitor.moves += 1
        visitor.servers.append(server)
        visitor.server = visitor.server or server


def _cookie(morsel: "Morsel[str]") -> Cookie:
    return Cookie(
        value=morsel.value,
        node=cookie_node(morsel.value),
        path=morsel["path"],
        max_age=morsel["max-age"] or None,
        expires=morsel["expires"] or None,
        httponly=bool(morsel["httponly"]),
        secure=bool(morsel["secure"]),
        samesite=morsel["samesite"] or None,
    )


def run_stickiness(endpoint: Endpoint, plan: StickinessPlan) -> list[Pass]:
    """Run all passes of a plan, one after the other.

    Raises:
        CannotRun: no connection succeeds.

    """
    passes = uvloop.run(_execute(endpoint, plan))
    visitors = [visitor for each in passes for visitor in each.visitors]
    if not any(visitor.connections for visitor in visitors):
        raise unreachable(endpoint, visitors[0].errors[0])
    return passes


async def _execute(endpoint: Endpoint, plan: StickinessPlan) -> list[Pass]:
    try:
        first = Client()
        await first.connect(endpoint)
        await first.close()
    except ConnectError as error:
        # The 503 of a full fleet is a finding. Any other error, as of a wrong URL, ends the check.
        if error.status != HTTPStatus.SERVICE_UNAVAILABLE:
            raise unreachable(endpoint, error) from error
    passes = [Pass(endpoint, plan, jar=jar) for jar in plan.jars]
    for each in passes:
        await each.execute()
    return passes

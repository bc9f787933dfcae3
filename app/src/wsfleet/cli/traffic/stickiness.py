"""The clients of ``wsfleet check stickiness``: they come back with their cookie, or without one."""

import asyncio
import itertools
import math
import random
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from http.cookies import Morsel

import orjson
import uvloop

from wsfleet.cli.access.endpoint import FleetEndpoint, unreachable
from wsfleet.cli.access.websocket_client import (
    ANSWER_TIMEOUT,
    Asker,
    Client,
    ConnectError,
    ConnectionEndedError,
    cookie_node,
)
from wsfleet.cli.measure.histogram import Timeline

#: The part of the given time that is spent in pauses; the rest is for the network.
_PAUSED = 0.9

#: A result that has this probability by chance, or a smaller one, is not taken for chance.
SIGNIFICANCE = 1e-6


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
        pauses = self.messages + 1  # one over which the clients of a round start
        return self.seconds * _PAUSED / (len(self.jars) * self.connections * pauses)


@dataclass
class StickinessVisitor:
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


@dataclass(frozen=True, slots=True)
class Returns:
    """The number of reconnects, and of those that returned to the node before.

    `expected` is the number of returns if the node of a connection does not depend on the node
    of the client's last connection.
    """

    reconnects: int
    returned: int
    expected: float

    @property
    def share(self) -> float | None:
        """The part of the reconnects that returned; None without a reconnect."""
        return self.returned / self.reconnects if self.reconnects else None

    @property
    def expected_share(self) -> float | None:
        """The part of the reconnects that return by chance; None without a reconnect."""
        return self.expected / self.reconnects if self.reconnects else None

    @property
    def conclusive(self) -> bool:
        """Whether clients that always return would differ from chance."""
        return self._probability(self.reconnects) <= SIGNIFICANCE

    @property
    def more_than_chance(self) -> bool:
        """Whether clients returned more often than chance explains."""
        return self._probability(self.returned) <= SIGNIFICANCE

    def _probability(self, least: int) -> float:
        """Return the probability of `least` returns or more: the binomial distribution's tail."""
        total, share = self.reconnects, self.expected_share or 0.0
        if least == 0 or share >= 1:
            return 1.0
        if share == 0:
            return 0.0
        yes, no, ways = math.log(share), math.log1p(-share), math.lgamma(total + 1)
        return math.fsum(
            math.exp(
                ways
                - math.lgamma(count + 1)
                - math.lgamma(total - count + 1)
                + count * yes
                + (total - count) * no
            )
            for count in range(least, total + 1)
        )


def count_returns(rounds: Sequence[Mapping[str, str]]) -> Returns:
    """Return the returns from each round to the next; a round has the node of each client.

    By chance a client returns with the sum over all nodes of the node's share of the last round
    times its share of this one.
    """
    reconnects, returned, expected = 0, 0, 0.0
    for last, this in itertools.pairwise(rounds):
        both = last.keys() & this.keys()
        if not both:
            continue
        reconnects += len(both)
        returned += sum(last[client] == this[client] for client in both)
        before = Counter(last[client] for client in both)
        after = Counter(this[client] for client in both)
        expected += sum(before[node] * after[node] for node in before) / len(both)
    return Returns(reconnects, returned, expected)


class Pass:
    """One pass of all clients, with cookie jars or without.

    In each round every client opens one connection, in random order, after all have closed that
    of the round before. In a fixed order a load balancer with `leastconn` or `roundrobin` leads
    clients without a cookie back too.
    """

    def __init__(self, endpoint: FleetEndpoint, plan: StickinessPlan, *, jar: bool) -> None:
        self.endpoint = endpoint
        self.plan = plan
        self.jar = jar
        self.cookies: list[Cookie] = []
        self.answers = Timeline()
        self.rounds: list[dict[str, str]] = []
        self._began = time.perf_counter()
        self._kept: dict[str, str] = {}
        run = secrets.token_hex(2)
        kind = "jar" if jar else "plain"
        self.visitors = [
            StickinessVisitor(f"{kind}-{run}-{index}") for index in range(plan.clients)
        ]

    @property
    def returns(self) -> Returns:
        """The clients' returns to their node."""
        return count_returns(self.rounds)

    async def execute(self) -> None:
        """Run all rounds, each with all clients at the same time."""
        self._began = time.perf_counter()
        for _ in range(self.plan.connections):
            self.rounds.append({})
            order = random.sample(self.visitors, len(self.visitors))
            async with asyncio.TaskGroup() as group:
                for index, visitor in enumerate(order):
                    # The starts are spread over one pause, for an even load.
                    group.create_task(self._visit(visitor, self.plan.pause * index / len(order)))

    async def _visit(self, visitor: StickinessVisitor, offset: float) -> None:
        """Open one connection, talk, and close it."""
        await asyncio.sleep(offset)
        client = Asker()
        kept = self._kept.get(visitor.client_id) if self.jar else None
        try:
            await client.connect(self.endpoint, cookie=kept)
        except ConnectError as error:
            visitor.errors.append(str(error))
            await asyncio.sleep(self.plan.pause * self.plan.messages)
            return
        visitor.connections += 1
        if client.cookie is not None:
            self._kept[visitor.client_id] = client.cookie.value
            self.cookies.append(_cookie(client.cookie))
        try:
            servers = {client.node} if client.node else await self._talk(client, visitor)
            self._note(visitor, servers)
            if client.node:  # an application need not answer messages
                await asyncio.sleep(self.plan.pause * self.plan.messages)
        finally:
            visitor.broadcasts_received += client.broadcasts
            await client.close()

    async def _talk(self, client: Asker, visitor: StickinessVisitor) -> set[str]:
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
            except ConnectionEndedError as error:
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

    def _note(self, visitor: StickinessVisitor, servers: set[str]) -> None:
        """Record the nodes of one connection, which should be one."""
        if len(servers) > 1:
            visitor.errors.append(f"one connection was answered by {sorted(servers)}")
        for server in sorted(servers)[:1]:
            if visitor.servers and visitor.servers[-1] != server:
                visitor.moves += 1
            visitor.servers.append(server)
            self.rounds[-1][visitor.client_id] = server
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


def run_stickiness(endpoint: FleetEndpoint, plan: StickinessPlan) -> list[Pass]:
    """Run all passes of a plan, one after the other.

    Raises:
        CannotRun: no connection succeeds.

    """
    passes = uvloop.run(_execute(endpoint, plan))
    visitors = [visitor for each in passes for visitor in each.visitors]
    if not any(visitor.connections for visitor in visitors):
        raise unreachable(endpoint, visitors[0].errors[0])
    return passes


async def _execute(endpoint: FleetEndpoint, plan: StickinessPlan) -> list[Pass]:
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

"""The shedding of clients: a node with more than its share sends some of them to other nodes."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import structlog

from wsfleet.broker import control
from wsfleet.broker.control import ControlMessage
from wsfleet.broker.events import BrokerEventHandler
from wsfleet.hub.connection import Connection
from wsfleet.hub.hub import Hub
from wsfleet.node.pace import paced

log = structlog.get_logger(__name__)

RETURN_TIMEOUT = 30.0
"""Seconds in which a shed client is sent on to another node when it comes back to this one."""


class Shedding(BrokerEventHandler):
    """The clients that a node sends to other nodes, by a control message.

    A shed client comes back to this node, since HAProxy follows its cookie. Its handshake is then
    refused with 503, HAProxy repeats it at another node (`retry-on 503`, `option redispatch`), and
    the client gets that node's cookie. A handshake has nothing that names the client, and the
    cookie names the node alone. So a shed client is recognised by its address, and of several
    clients with one address as many are sent on as were shed.

    The clients that have been connected for the longest time go first: one that has just moved
    here stays.
    """

    def __init__(self, hub: Hub, allowed: Callable[[], bool], on_shed: Callable[[], None]) -> None:
        self.left = 0
        """Clients that are still to be shed."""
        self._hub = hub
        self._allowed = allowed
        self._on_shed = on_shed
        self._task: asyncio.Task[None] | None = None
        self._expected: Counter[int] = Counter()  # handshakes to send on, by the client's address
        self._expected_until = 0.0

    def commanded(self, command: ControlMessage) -> None:
        """Begin to shed; nothing happens if the node sheds already, or drains."""
        if not isinstance(command, control.Shed) or self.left or not self._allowed():
            return
        clients = [client for client in self._hub if client.is_open]
        surplus = max(0, min(command.count, len(clients) - command.keep))
        chosen = [client for client in clients if not client.holds][:surplus]
        if not chosen:
            return
        self.left = len(chosen)
        log.info("shedding", clients=len(chosen), connections=len(clients), rate=command.rate)
        self._task = asyncio.create_task(self._shed(chosen, command.rate))

    def sends_on(self, address: int) -> bool:
        """Return whether a handshake is that of a shed client; it then counts as sent on."""
        if not self._expected or not self._expected[address]:
            return False
        if time.monotonic() > self._expected_until:
            self._expected.clear()
            return False
        self._expected[address] -= 1
        return True

    def stop(self) -> None:
        """Keep the clients that are still to be shed."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self.left = 0

    async def _shed(self, clients: list[Connection], rate: float) -> None:
        began = len(clients)
        async for count in paced(lambda: rate):
            if not clients or not self._allowed():
                break
            now, clients = clients[:count], clients[count:]
            for client in now:
                if client.is_open and not client.holds:
                    self._expected[client.address] += 1
                    self._on_shed()
                    client.restart()
            self._expected_until = time.monotonic() + RETURN_TIMEOUT
            self.left = len(clients)
        self.left = 0
        log.info("shed", clients=began - len(clients), connections=len(self._hub))

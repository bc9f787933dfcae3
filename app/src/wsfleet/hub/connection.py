"""One client's connection: sending to it, and the reason why it ended."""

import itertools
import secrets
import time

from wsfleet.transports.outbox import Limits
from wsfleet.transports.transport import Closes, Transport

NORMAL = 1000

# Publications have the number of their publisher, which is not sent them. They may outlive a
# process: the next process of this name must not reuse its numbers.
_numbers = itertools.count(1 + secrets.randbits(48))


class Connection:
    """An open connection of one client, over any transport.

    Data that the client does not take wait in the transport's write buffer, then in an `Outbox`.
    """

    __slots__ = (
        "_closes",
        "_corked",
        "_corked_size",
        "_limits",
        "_transport",
        "client_id",
        "close_code",
        "framing",
        "holds",
        "last_message_at",
        "message_count",
        "number",
        "opened_at",
        "reason",
        "shared_framing",
    )

    def __init__(
        self, transport: Transport, *, client_id: str, limits: Limits, closes: Closes
    ) -> None:
        self._transport = transport
        self._limits = limits
        self._closes = closes
        self._corked: list[bytes] | None = None
        self._corked_size = 0
        transport.limit_outbox(limits)
        self.framing = transport.framing
        self.shared_framing = transport.shared_framing
        self.number = next(_numbers)
        self.client_id = client_id
        self.opened_at = self.last_message_at = time.monotonic()
        self.message_count = 0
        self.holds = 0
        """How many blocks of an application hold the connection back from a drain."""
        self.close_code = 1006
        self.reason = "lost"

    @property
    def is_open(self) -> bool:
        """Whether something can still be sent."""
        return self._transport.writer is not None

    @property
    def address(self) -> int:
        """A hash of the client's address."""
        return self._transport.address

    @property
    def buffered(self) -> int:
        """Bytes that the client has not taken yet."""
        return self._transport.buffered

    @property
    def paused(self) -> bool:
        """Whether nothing is read from the client: too much waits to be handled."""
        return self._transport.paused

    def send(self, frames: bytes) -> bool:
        """Send framed payloads; False if the client is gone, or is closed as too slow."""
        writer = self._transport.writer  # the path of each delivery: as few calls as can be
        if writer is None:
            return False
        if self._corked is not None:
            return self._cork_in(self._corked, frames)
        if writer.write(frames) is False:
            self.slow()
            return False
        return True

    def _cork_in(self, held: list[bytes], frames: bytes) -> bool:
        self._corked_size += len(frames)
        if self._corked_size > self._limits.size:
            self.slow()
            return False
        held.append(frames)
        return True

    async def drained(self) -> None:
        """Wait until the client has taken all that waited for it, or is gone."""
        await self._transport.drained()

    def slow(self) -> None:
        """Close the connection as too slow, and drop the client's backlog."""
        self._corked = None
        self._transport.discard_outbox()
        self.close(*self._closes.slow)

    def cork(self) -> None:
        """Hold back all data, until `uncork`."""
        self._corked, self._corked_size = [], 0

    def uncork(self, first: bytes) -> None:
        """Send `first`, and then the data held back."""
        held, self._corked = self._corked or [], None
        self.send(first + b"".join(held))

    def restart(self) -> None:
        """Ask the client to reconnect: another node takes it."""
        self.close(*self._closes.restart)

    def answer_pings_itself(self) -> None:
        """Leave pings to the client's protocol."""
        self._transport.stop_keepalive()

    def close(self, code: int, reason: str) -> None:
        """Close the connection; of several calls the first one counts."""
        self._transport.start_close(code, reason)

    def closed(self, code: int, reason: str) -> None:
        """Record why the connection ended."""
        self.close_code, self.reason = code, reason or "closed by client"

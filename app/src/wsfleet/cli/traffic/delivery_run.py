"""One run of ``wsfleet verify-delivery``: its plan, its account, and its errors."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import centrifuge  # type: ignore[import-untyped]
import orjson

from wsfleet.cli.access.endpoint import FleetEndpoint
from wsfleet.cli.access.websocket_client import ConnectError, ConnectionEndedError
from wsfleet.cli.errors import CannotRun
from wsfleet.cli.measure.delivery_account import Account
from wsfleet.cli.measure.delivery_events import Acknowledged, Event, Received, Sent, Terms
from wsfleet.protocol.plain import CHANNEL

#: Seconds before a client retries.
RETRY_PAUSE = 0.2


@dataclass(frozen=True, slots=True)
class DeliveryPlan:
    """The size of a run: `rate` is messages a second of each publisher, `timeout` seconds in all.

    `keyed` means that a handler publishes each message of the SDK with its `idempotency_key`. If
    `events` is a file, every event is written to it, and each connection of the SDK with its id.
    """

    publishers: int = 4
    subscribers: int = 20
    messages: int = 50
    rate: float = 20.0
    protocol: str = "centrifuge"
    channel: str = CHANNEL
    timeout: float = 300.0
    keyed: bool = False
    events: Path | None = None


class DeliveryRun:
    """One run: its account, and the state that its publishers and subscribers share."""

    def __init__(
        self, endpoint: FleetEndpoint, plan: DeliveryPlan, log: IO[bytes] | None = None
    ) -> None:
        self.endpoint = endpoint
        self.plan = plan
        self._log = log
        self.id = secrets.token_hex(4)
        self.account = Account(Terms(plan.publishers, plan.subscribers, plan.messages))
        self.errors: dict[str, int] = {}
        self.last_error = "no answer"
        self.entered = asyncio.Event()
        self.finishing = False
        self.stopping = False
        self._started = time.monotonic()  # the loop's own clock has whole milliseconds
        self._write("began", lambda: {"time": time.time(), "run": self.id})

    @property
    def at(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    def enter(self, event: Event) -> None:
        """Enter an event; events after the end of the run are ignored."""
        if not self.stopping:
            self.account.enter(event)
            self._write(type(event).__name__, event._asdict)

    def connected(self, client: str) -> None:
        """Write the id of a new connection to the events; the account does not need it."""
        self._write("connected", lambda: {"at": self.at, "client": client})

    def _write(self, kind: str, fields: Callable[[], dict[str, Any]]) -> None:
        if self._log is not None:
            # orjson passes a named tuple, as a position is, to `default`.
            line = orjson.dumps({"event": kind.lower(), **fields()}, default=list)
            self._log.write(line + b"\n")

    def finish(self) -> None:
        """Stop publishing; published messages are still accounted for."""
        self.finishing = True

    def message(self, publisher: int, sequence: int) -> dict[str, Any]:
        """Return a message; its key makes a repeated message one publication.

        The key is that of the plain protocol. A handler can publish with it as well.
        """
        return {
            "run": self.id,
            "publisher": publisher,
            "sequence": sequence,
            "idempotency_key": f"{self.id}-{publisher}-{sequence}",
        }

    def received(self, subscriber: int, data: Any, offset: int = 0) -> None:
        """Enter a publication if it belongs to this run."""
        if isinstance(data, dict) and data.get("run") == self.id:
            publisher, sequence = data["publisher"], data["sequence"]
            self.enter(Received(self.at, subscriber, publisher, sequence, offset))

    def failed(self, error: Exception) -> None:
        """Count an error after which the client retries."""
        self.last_error = _reason(error)
        self.errors[self.last_error] = self.errors.get(self.last_error, 0) + 1

    async def publish_all(
        self, publisher: int, publish: Callable[[dict[str, Any]], Awaitable[None]], *, keyed: bool
    ) -> None:
        """Wait for all subscribers, then publish each message until it is acknowledged."""
        await self.entered.wait()
        for sequence in range(self.plan.messages):
            if self.finishing:
                return
            message = self.message(publisher, sequence)
            while True:
                self.enter(Sent(self.at, publisher, sequence, keyed))
                try:
                    await publish(message)
                except TRANSIENT as error:
                    self.failed(error)
                else:
                    break
                await asyncio.sleep(RETRY_PAUSE)
            self.enter(Acknowledged(self.at, publisher, sequence))
            await asyncio.sleep(1 / self.plan.rate)

    def complete(self) -> bool:
        """Return whether every subscriber is connected and misses nothing."""
        findings = self.account.findings()
        return not findings.lost.count and not findings.absent


class TemporaryServerError(Exception):
    """The server answered a message with a temporary error."""


#: Errors after which a client retries.
TRANSIENT = (
    ConnectError,
    ConnectionEndedError,
    TimeoutError,
    TemporaryServerError,
    centrifuge.CentrifugeError,
)


def _reason(error: Exception) -> str:
    """Return the reason without details that differ each time, so that it can be counted."""
    match error:
        case TimeoutError() | centrifuge.OperationTimeoutError():
            return "no answer in time"
        case centrifuge.ClientDisconnectedError():
            return "disconnected"
        case centrifuge.ReplyError():
            return f"{error.code} {error.message}"
        case _:
            return str(error) or type(error).__name__


def refused_for_good(who: str, code: object, reason: str) -> CannotRun:
    """Return the error for an answer after which retrying is useless."""
    return CannotRun(
        f"{who} was refused for good: {code} {reason}. "
        "Check --channel, and the permissions in the nodes' configuration (docs/configuration.md)."
    )

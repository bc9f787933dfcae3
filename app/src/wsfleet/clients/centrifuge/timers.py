"""The timers of one client: connecting, pings, and the expiry of tokens."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

from wsfleet.clients.centrifuge.errors import DisconnectedError
from wsfleet.clients.centrifuge.push import Sender
from wsfleet.config.schema import ClientConfig
from wsfleet.protocol.centrifuge.codes import DisconnectCode

LONGEST_TTL = 365 * 86_400
"""Seconds; a token that is valid for longer is refreshed after this time."""
RETRY_RENEWAL = 60
"""Seconds after which the server tries again to renew something, as in Centrifugo."""


def ttl(expire_at: int) -> int:
    """Return the seconds until a moment in Unix seconds, at least 1; 0 if it is 0, never."""
    return min(max(1, int(expire_at - time.time())), LONGEST_TTL) if expire_at else 0


def call_at(
    expire_at: int, delay: float, action: Callable[..., None], *args: Any
) -> asyncio.TimerHandle | None:
    """Call `action` `delay` seconds after a moment in Unix seconds; never if that is 0."""
    if not expire_at:
        return None
    seconds = max(0.0, expire_at - time.time()) + delay
    return asyncio.get_running_loop().call_later(seconds, action, *args)


class Timers:
    """The timers of one connection; a client that must connect in time is the first.

    With `app_pings` the server pings, and the client answers with pongs, in this protocol. Without,
    pings are those of the transport.
    """

    __slots__ = ("_app_pings", "_config", "_handles", "_loop", "_sender", "_unanswered")

    def __init__(self, config: ClientConfig, sender: Sender, *, app_pings: bool) -> None:
        self._config = config
        self._sender = sender
        self._app_pings = app_pings
        self._unanswered = 0  # pings
        self._handles: dict[str, asyncio.TimerHandle] = {}
        self._loop = asyncio.get_running_loop()
        self.await_connect()

    @property
    def ping_interval(self) -> int:
        """Seconds between two pings of this protocol; 0 without pings."""
        return int(self._config.ping_interval) if self._app_pings else 0

    @property
    def expects_pongs(self) -> bool:
        """Whether the client must answer pings."""
        return self._app_pings and self._config.pong_timeout > 0

    def connecting(self) -> None:
        """Stop the time to connect: the connect command is here, and its answer takes long."""
        self._cancel("stale")

    def await_connect(self) -> None:
        """Start the time to connect."""
        self._start("stale", self._config.stale_close_delay, DisconnectCode.STALE)

    def connected(self) -> None:
        """Start pings: the client has connected in time."""
        self._cancel("stale")
        if self._app_pings:
            first = random.uniform(0.5, 1.0) * self._config.ping_interval  # noqa: S311 - jitter
            self._handles["ping"] = self._loop.call_later(first, self._ping)

    def expire_at(self, expire_at: int, renew: Callable[[], None] | None = None) -> None:
        """Let the connection expire at a moment in Unix seconds; 0 is never.

        With `renew` the server renews it, and calls that then; otherwise the client has time to.
        """
        self._cancel("expiry")
        if renew is not None:
            timer = call_at(expire_at, 0, renew)
        else:
            delay = self._config.expired_close_delay
            timer = call_at(expire_at, delay, self._sender.disconnect, DisconnectCode.EXPIRED)
        if timer is not None:
            self._handles["expiry"] = timer

    def pong(self) -> None:
        """Note a pong.

        Raises:
            DisconnectedError: there was no ping.
        """
        if not self._unanswered:
            raise DisconnectedError(DisconnectCode.BAD_REQUEST)
        self._unanswered -= 1
        self._cancel("pong")

    def stop(self) -> None:
        """Cancel all timers."""
        for timer in self._handles.values():
            timer.cancel()

    def _ping(self) -> None:
        self._sender.ping()
        self._unanswered += 1
        self._handles["ping"] = self._loop.call_later(self._config.ping_interval, self._ping)
        if self._config.pong_timeout:
            self._await_pong()

    def _await_pong(self) -> None:
        self._cancel("pong")
        self._handles["pong"] = self._loop.call_later(self._config.pong_timeout, self._no_pong)

    def _no_pong(self) -> None:
        if self._sender.paused:  # the pong may have arrived
            self._await_pong()
        else:
            self._sender.disconnect(DisconnectCode.NO_PONG)

    def _start(self, name: str, seconds: float, code: DisconnectCode) -> None:
        """Disconnect with `code` after some seconds, unless the timer is cancelled."""
        self._cancel(name)
        self._handles[name] = self._loop.call_later(seconds, self._sender.disconnect, code)

    def _cancel(self, name: str) -> None:
        if (timer := self._handles.pop(name, None)) is not None:
            timer.cancel()

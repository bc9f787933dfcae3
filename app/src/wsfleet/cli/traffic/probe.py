"""One probe of an application's WebSocket: the handshake, and a message that comes back."""

import asyncio
import secrets
import ssl
import time
from dataclasses import dataclass

from wsfleet.cli.access.endpoint import FleetEndpoint
from wsfleet.cli.access.http import TIMEOUT
from wsfleet.cli.access.websocket_client import Client, ConnectError, cookie_node
from wsfleet.cli.measure.health import HealthReading
from wsfleet.cli.traffic.token_message import TokenMessage

#: The status of an application whose WebSocket opens.
OPEN = "open"


@dataclass(frozen=True, slots=True)
class WebSocketProbe:
    """A probe of one WebSocket; `tls` is used if its URL is wss."""

    endpoint: FleetEndpoint
    tls: ssl.SSLContext | None = None

    async def read(self, cookie: str | None, message: TokenMessage | None) -> HealthReading:
        """Open one WebSocket, send a message and wait until it comes back, and close.

        `cookie`, a raw value, leads to one node. Without a message nothing is sent.
        The reading names the node by its field in the answer, or else by the cookie.
        """
        client = _Listener()
        begin = time.perf_counter()
        try:
            async with asyncio.timeout(TIMEOUT):
                await client.connect(self.endpoint, cookie, self.tls)
        except ConnectError as error:
            return HealthReading(problems=[f"no WebSocket: {error}"])
        except TimeoutError:
            return HealthReading(problems=[f"no WebSocket: no answer within {TIMEOUT:g} s"])
        milliseconds = (time.perf_counter() - begin) * 1000
        set_cookie = client.cookie.value if client.cookie is not None else None
        value = set_cookie or cookie
        reading = HealthReading(
            node=client.node or (cookie_node(value) if value else None),
            status=OPEN,
            response_ms=milliseconds,
            values={"response_ms": milliseconds},
            set_cookie=set_cookie,
        )
        if message is not None:
            await self._round_trip(client, message, reading)
        await client.close()
        return reading

    async def _round_trip(
        self, client: "_Listener", message: TokenMessage, to: HealthReading
    ) -> None:
        token = f"wsfleet-{secrets.token_hex(8)}"
        came = client.expect(token.encode())
        begin = time.perf_counter()
        client.send(message.with_token(token))
        try:
            async with asyncio.timeout(TIMEOUT):
                closed = not await came
        except TimeoutError:
            to.problems.append(f"the message did not come back within {TIMEOUT:g} s")
            return
        if closed:
            to.problems.append(
                f"disconnected before the message came back (close code "
                f"{client.close_code or 1006})"
            )
        else:
            to.values["round_trip_ms"] = (time.perf_counter() - begin) * 1000


class _Listener(Client):
    """A client that waits for one token."""

    def __init__(self) -> None:
        super().__init__()
        self._token = b""
        self._came: asyncio.Future[bool] | None = None
        self._closed = False

    def expect(self, token: bytes) -> asyncio.Future[bool]:
        """Return a future: True when a message with the token comes, False at the end."""
        self._token = token
        self._came = asyncio.get_running_loop().create_future()
        if self._closed:
            self._came.set_result(False)
        return self._came

    def on_text(self, text: bytes) -> None:
        """Look for the token."""
        if self._token and self._token in text:
            self._settle(came=True)

    def on_closed(self) -> None:
        """Wait no longer."""
        self._closed = True
        self._settle(came=False)

    def _settle(self, *, came: bool) -> None:
        if self._came is not None and not self._came.done():
            self._came.set_result(came)

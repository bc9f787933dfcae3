"""Telling the application of disconnects, at least once each.

What the application is told of a client is in Redis before the client is connected, and stays there
until the application's backend has been called. So it is told

- by the client's node, at once, in the background; a node that stops first tells all, and waits for
  that at most until its drain time-out is over;
- by the next process of the same name, at its start, or by another node within `node_dead_after`
  seconds and one heartbeat interval, if the client's node died, or stopped before it had told all;
- one heartbeat interval later, if a node without a handler found them first (`untold`).

A call that fails is repeated, `ATTEMPTS` times in all, and then logged and given up. If the
application is slow, at most `MAX_WAITING` calls wait in memory. The others are left in Redis and
read from there, when fewer wait: as those of a dead node, they have code 0 and no state.

An application may be told twice: if the node dies between the call and its removal from Redis, if a
call was carried out and failed all the same, if a node was taken for dead while it was cut off (its
clients may even be connected still), and if a process without a handler starts with a dead node's
name in the moment when another node reaps that. It may be told after the client has connected
again, and of a client whose connect was never answered. It is not told of a client that was
connected when Redis lost its data, if the client's node died before it noticed, or of a dead node
if there is no other one and none of its name comes.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable, Sequence

import msgspec
import structlog
from redis.exceptions import RedisError

from wsfleet.application.measured import measured
from wsfleet.application.port import (
    Backend,
    BackendError,
    Client,
    Disconnect,
    DisconnectedCall,
    Error,
)
from wsfleet.application.untold import CHUNK, chunks, move
from wsfleet.node.node import Node
from wsfleet.redis import key_names
from wsfleet.redis.background import Background
from wsfleet.redis.store import UnavailableError

log = structlog.get_logger(__name__)

CONCURRENCY = 64
"""Calls that run at once."""
ATTEMPTS = 5
FIRST_PAUSE = 1.0
"""Seconds before the second attempt; before each later one, twice as many."""
MAX_WAITING = 10_000
"""Calls that wait in memory; some kilobytes each, with the headers of the handshake."""


class Kept(msgspec.Struct, array_like=True, frozen=True):
    """What Redis has of a client, under its id.

    New fields go to the end, with defaults: old and new nodes read each other's.
    """

    user: str = ""
    info: bytes = b""
    meta: bytes = b""
    transport: str = ""
    protocol: str = ""
    encoding: str = ""
    address: str = ""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Kept)


class Disconnects:
    """The disconnects of this node's clients, and of those of nodes that it reaps."""

    def __init__(self, node: Node, backend: Backend) -> None:
        self._node = node
        self._backend = backend
        self._own = key_names.node_disconnects(node.settings.name)
        self._known: dict[str, Client] = {}  # connected, or still to be told
        self._unkept: set[str] = set()  # connected, and not in Redis, which did not answer
        self._told: set[bytes] = set()  # and perhaps still in Redis, which did not answer
        self._waiting: deque[DisconnectedCall] = deque()
        self._left_in_redis = False  # whether calls are to be read from there
        self._record = asyncio.Lock()  # an entry that is being taken over must not be read yet
        self._callers = 0
        self._background = Background(node.metrics.handler_failed)
        self._idle = asyncio.Event()
        self._idle.set()
        node.registry.on_dead.append(self.reap)
        node.registry.on_unknown.append(self.reconcile)
        node.registry.on_beat.append(self.take_untold)
        node.on_connected.append(self.reconcile)
        node.on_drained.append(self.finish)

    async def opened(self, client: Client) -> None:
        """Keep what will be told of a client; if Redis is unavailable, `reconcile` does later."""
        self._known[client.id] = client
        try:
            await self._keep([client])
        except (UnavailableError, RedisError) as error:
            self._unkept.add(client.id)
            log.debug("disconnect_record_postponed", client_id=client.id, error=str(error))

    def forget(self, client: Client) -> None:
        """Drop what is kept of a client that was not connected."""
        self._unkept.discard(client.id)
        if self._known.pop(client.id, None) is not None:
            self._told.add(client.id.encode())
            self._background.start(self._remove([client.id.encode()]))

    def changed(self, client: Client) -> None:
        """Keep what the application has changed of a client."""
        if client.id in self._known:
            self._background.start(self._keep([client]))

    def tell(self, call: DisconnectedCall) -> None:
        """Tell the application, in the background."""
        if self._full and call.client.id not in self._unkept:
            self._known.pop(call.client.id, None)
            self._leave_in_redis()
            return
        self._waiting.append(call)
        self._idle.clear()
        if self._callers < CONCURRENCY:
            self._callers += 1
            self._background.start(self._call_all())

    async def finish(self) -> None:
        """Wait until all has been told; what is left is for the node that reaps this one."""
        takes_over = True  # those of dead nodes
        try:
            await self._node.registry.stop_reaping()
            takes_over = False
            await self._idle.wait()
            await self._remove(list(self._told))
        finally:
            left = len(self._waiting) + self._callers + len(self._told)
            if left or self._left_in_redis or takes_over:
                log.warning("disconnects_left", clients=left, more_in_redis=self._left_in_redis)
                self._node.to_be_reaped = True

    async def reconcile(self) -> None:
        """Repair Redis from memory, and tell what a process of this name has left.

        Raises:
            UnavailableError: Redis is unavailable again.
        """
        await self._remove(list(self._told))
        async with self._record:
            kept = await self._node.store.call("HGETALL", self._own)
            missing = [client for name, client in self._known.items() if name.encode() not in kept]
            self._tell_kept(kept)  # at once: what is told meanwhile is not left
        for some in chunks(missing):
            await self._keep(some)
            self._unkept.difference_update(client.id for client in some)
            gone = [client.id.encode() for client in some if client.id not in self._known]
            await self._remove(gone)  # told meanwhile

    async def reap(self, node: str) -> None:
        """Take over what a dead node has left: it is in this node's record before it is told.

        Raises:
            UnavailableError: Redis is unavailable; the next heartbeat tries again.
        """
        if taken := await self._take(key_names.node_disconnects(node)):
            log.warning("dead_node_disconnects_taken", dead=node, clients=taken)

    async def take_untold(self) -> None:
        """Take over what nodes without a handler have found.

        Raises:
            UnavailableError: Redis is unavailable; the next heartbeat tries again.
        """
        if taken := await self._take(key_names.UNTOLD_DISCONNECTS):
            log.warning("untold_disconnects_taken", clients=taken)

    async def _take(self, source: str) -> int:
        """Tell what is in another record; return how much this node has got of it.

        Several nodes may do so at once: the one that removes an entry tells it.
        """
        taken = 0
        async with self._record:
            async for moved in move(self._node.store, source, self._own):
                await self._remove(moved.lost)
                self._tell_kept(moved.won)
                taken += len(moved.won)
        return taken

    @property
    def _full(self) -> bool:
        return len(self._waiting) >= MAX_WAITING

    def _leave_in_redis(self) -> None:
        """Note that calls are to be read from Redis: by `_call_all`, when fewer wait."""
        if not self._left_in_redis:
            self._left_in_redis = True
            log.warning("disconnects_left_in_redis", waiting=len(self._waiting))

    async def _read_on(self) -> None:
        """Read calls that were left in Redis, until enough wait; if it is unavailable, later."""
        self._left_in_redis = False  # before the scan, which may miss what is left from now on
        cursor = b"0"
        try:
            while not self._left_in_redis:
                async with self._record:
                    cursor, flat = await self._node.store.call(
                        "HSCAN", self._own, cursor, "COUNT", CHUNK
                    )
                    self._tell_kept(dict(zip(flat[::2], flat[1::2], strict=True)))
                if cursor == b"0":
                    return
        except (UnavailableError, RedisError):
            self._left_in_redis = True

    def _tell_kept(self, kept: dict[bytes, bytes]) -> None:
        for name, value in kept.items():
            if self._full:
                self._leave_in_redis()
                return
            try:
                client = Client(name.decode(), **msgspec.structs.asdict(_decoder.decode(value)))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:  # of another program
                log.warning("disconnect_record_invalid", client_id=name, error=str(error))
                self._background.start(self._remove([name]))
                continue
            if client.id not in self._known and name not in self._told:
                self._known[client.id] = client
                self.tell(DisconnectedCall(client, 0, ""))

    async def _call_all(self) -> None:
        try:
            await self._node.listening.wait()  # the application has started
            while True:
                if self._left_in_redis and len(self._waiting) <= MAX_WAITING // 2:
                    await self._read_on()
                if not self._waiting:
                    return
                call = self._waiting.popleft()
                await self._call(call)
                self._known.pop(call.client.id, None)
                self._unkept.discard(call.client.id)
                await self._remove([call.client.id.encode()])
        finally:
            self._callers -= 1
            if not self._callers:
                self._idle.set()

    async def _call(self, call: DisconnectedCall) -> None:
        pause = FIRST_PAUSE
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await measured(
                    self._node.metrics, "disconnected", "", self._backend.disconnected(call)
                )
            except (Error, Disconnect):  # it has been told, and there is nothing to refuse
                return
            except BackendError:
                if attempt < ATTEMPTS:
                    await asyncio.sleep(pause)
                    pause *= 2
            else:
                return
        log.error("disconnect_untold", client_id=call.client.id, user=call.client.user)

    async def _keep(self, clients: Iterable[Client]) -> None:
        pairs: list[str | bytes] = []
        for each in clients:
            kept = Kept(
                each.user,
                each.info,
                each.meta,
                each.transport,
                each.protocol,
                each.encoding,
                each.address,
            )
            pairs += (each.id, _encoder.encode(kept))
        await self._node.store.call("HSET", self._own, *pairs)

    async def _remove(self, names: Sequence[bytes]) -> None:
        """Remove entries; if Redis is unavailable, they are noted and removed later."""
        self._told.update(names)
        for some in chunks(list(names)):
            with contextlib.suppress(UnavailableError, RedisError):
                await self._node.store.call("HDEL", self._own, *some)
                self._told.difference_update(some)

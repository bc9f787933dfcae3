"""The names of clients, in memory and in Redis: claim, release, reconcile."""

import asyncio
import secrets

import structlog

from wsfleet.cluster.registry import Registry
from wsfleet.hub.connection import Connection
from wsfleet.redis import key_names
from wsfleet.redis.background import Background
from wsfleet.redis.store import Store, UnavailableError

log = structlog.get_logger(__name__)

CHUNK = 500


def new_client_id() -> str:
    """Return a new unique name."""
    return secrets.token_hex(16)


class ClientNames:
    """The names of this node's clients; memory is the truth, Redis follows.

    `connection:{id}` has the node of a client, `state:{id}` its last message (two keys, which may
    be on two primaries of a Redis Cluster). The set of the node's clients is written before
    `connection:{id}` and cleared after it, so it misses none: a node that reaps a dead one finds
    all of its clients there.
    """

    def __init__(self, store: Store, registry: Registry, node: str, resume_window: int) -> None:
        self._store = store
        self._registry = registry
        self._node = node
        self._window = resume_window
        self._local: dict[str, Connection] = {}
        self._background = Background()
        registry.on_dead.append(self.reap)
        registry.on_unknown.append(self.reconcile)

    async def open(self, connection: Connection) -> None:
        """Register a new connection under the name that it was given."""
        self._local[connection.client_id] = connection
        try:
            await self._claim(connection.client_id, new=True)
        except UnavailableError:
            log.debug("name_claim_postponed", client_id=connection.client_id)

    async def rename(self, connection: Connection, client_id: str) -> bool:
        """Rename a connection to `client_id`; return False if that name is taken.

        Raises:
            UnavailableError: Redis is unavailable; the connection keeps its name.
        """
        if client_id == connection.client_id:
            return True
        if client_id in self._local:
            return False
        self._local[client_id] = connection  # before the first await: no second one may take it
        try:
            taken = await self._claim(client_id)
        except BaseException:
            del self._local[client_id]
            self._background.start(self._undo_claim(client_id))
            raise
        if not taken:
            del self._local[client_id]
            return False
        old, connection.client_id = connection.client_id, client_id
        await self._background.finish(self._let_go(old))
        return True

    async def keep(self, connection: Connection, text: str) -> None:
        """Store the client's last message.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        await self._store.call("SET", key_names.state(connection.client_id), text)

    async def close(self, connection: Connection) -> None:
        """Release the name of a connection; its state stays for the resume window."""
        if connection.client_id not in self._local:
            return
        try:
            await self._let_go(connection.client_id)
        except UnavailableError:
            log.debug("name_release_postponed", client_id=connection.client_id)

    async def reconcile(self) -> None:
        """Repair Redis from memory: after a start, an outage, or after the node was taken for dead.

        Raises:
            UnavailableError: Redis is unavailable again.
        """
        stored = await self._store.call("SMEMBERS", key_names.node_clients(self._node))
        gone = {name.decode() for name in stored} - self._local.keys()
        for some in _chunks(list(gone)):
            await asyncio.gather(*(self._release(self._node, name) for name in some))
        for some in _chunks(list(self._local)):
            claims = await asyncio.gather(*(self._claim(name) for name in some))
            for name, held in zip(some, claims, strict=True):
                if name not in self._local:  # it has left meanwhile
                    await self._release(self._node, name)
                elif not held:
                    await self._renew(name)
        if gone or self._local:
            log.info("names_reconciled", released=len(gone), claimed=len(self._local))

    async def reap(self, node: str) -> None:
        """Release all names of a dead node.

        Raises:
            UnavailableError: Redis is unavailable; the next heartbeat tries again.
        """
        released = 0
        while some := await self._store.call("SRANDMEMBER", key_names.node_clients(node), CHUNK):
            names = [name.decode() for name in some]
            released += sum(await asyncio.gather(*(self._release(node, name) for name in names)))
        log.warning("dead_node_reaped", dead=node, clients=released)

    async def _renew(self, client_id: str) -> None:
        """Give a client a new name: another client has its old one."""
        connection = self._local.pop(client_id, None)
        if connection is not None:
            connection.client_id = new_client_id()
            await self.open(connection)

    async def _claim(self, client_id: str, *, new: bool = False) -> bool:
        """Claim a name for this node; return False if another live node holds it.

        A `new` name has no state yet.
        """
        await self._store.call("SADD", key_names.node_clients(self._node), client_id)
        holder = await self._fclaim(client_id)
        if holder != self._node and await self._registry.is_dead(holder):
            holder = await self._fclaim(client_id, dead=holder)
        if holder != self._node:
            await self._store.call("SREM", key_names.node_clients(self._node), client_id)
        elif not new:
            await self._store.call("PERSIST", key_names.state(client_id))
        return holder == self._node

    async def _undo_claim(self, client_id: str) -> None:
        """Release a name after a failed claim, which Redis may have run all the same."""
        if client_id not in self._local:
            await self._release(self._node, client_id)
        if client_id in self._local:  # another client of this node has it now
            await self._claim(client_id)

    async def _fclaim(self, client_id: str, dead: str = "") -> str:
        name = key_names.connection(client_id)
        holder: bytes = await self._store.function("claim", [name], self._node, dead)
        return holder.decode()

    async def _let_go(self, client_id: str) -> None:
        self._local.pop(client_id, None)
        await self._release(self._node, client_id)

    async def _release(self, node: str, client_id: str) -> int:
        name, state = key_names.connection(client_id), key_names.state(client_id)
        # Order matters: the expiry comes first, so a crash in between never leaves a `state:` key
        # without one; a node that takes the name afterwards persists it again.
        await self._store.call("EXPIRE", state, self._window)
        released: int = await self._store.function("release", [name], node)
        if not released and await self._store.call("EXISTS", name):
            await self._store.call("PERSIST", state)
        await self._store.call("SREM", key_names.node_clients(node), client_id)
        return released


def _chunks(names: list[str]) -> list[list[str]]:
    return [names[i : i + CHUNK] for i in range(0, len(names), CHUNK)]

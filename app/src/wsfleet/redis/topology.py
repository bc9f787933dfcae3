"""Finding the Redis primaries: one server, Sentinels, a Redis Cluster, or this process."""

import asyncio
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from wsfleet.config.redis_url import Address, RedisURL

SLOTS = 16384
"""Hash slots of a Redis Cluster, https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/"""
GRACE, GRACE_OF_SILENT = 0.1, 0.01
"""Seconds that other Sentinels have after a majority has answered, if they answered the last time,
and if they did not."""
IDLE = 30.0
"""Seconds after the last question when the connections to the Sentinels are closed: a firewall may
forget them, and the next question would get no answer."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A primary: its URL, the ranges of hash slots that it owns, and its number of replicas.

    The number is that of the Sentinels. It is 1 where no Sentinel tells it.
    """

    url: str
    slots: tuple[range, ...]
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class _Answer:
    """One Sentinel's view of the primary."""

    primary: Address
    epoch: int
    replicas: int
    up: bool
    in_failover: bool
    """Whether this Sentinel is replacing the primary by one of the replicas."""


class Topology:
    """A finder of the primaries, with a query each time.

    A connection to a Sentinel stays open for the next query, for `IDLE` seconds at most.
    """

    def __init__(self, url: RedisURL, timeout: float) -> None:
        self.url = url
        self._options: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            # A silent server must not delay the others: redis-py would retry it ten times.
            "retry": Retry(NoBackoff(), 0),
        }
        self._known = url.addresses
        self._silent: set[Address] = set()
        self._idle: asyncio.TimerHandle | None = None
        self._closing: asyncio.Future[list[BaseException | None]] | None = None
        # A node asks for each batch of replicated writes while a replica is missing: without a
        # connect, a login and a TLS handshake each time.
        self._sentinels = {
            address: Redis(
                host=address.host,
                port=address.port,
                username=url.sentinel_username,
                password=url.sentinel_password,
                ssl=url.scheme == "rediss",
                ssl_ca_certs=url.ca,
                # With them redis-py uses a connection that the Sentinel has closed.
                maint_notifications_config=MaintNotificationsConfig(enabled=False),
                **self._options,
            )
            for address in url.addresses
            if url.kind == "sentinel"
        }

    async def aclose(self) -> None:
        """Close the connections to the Sentinels; the next query opens them again."""
        if self._idle is not None:
            self._idle.cancel()
        closing = [client.aclose() for client in self._sentinels.values()]
        await asyncio.gather(*closing, return_exceptions=True)  # a dead machine does not answer

    def _connected(self, address: Address) -> Redis:
        """Return the client of a Sentinel; its connection is closed when it is idle."""
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE, self._close_idle)
        return self._sentinels[address]

    def _close_idle(self) -> None:
        pools = [client.connection_pool for client in self._sentinels.values()]
        closing = [pool.disconnect(inuse_connections=False) for pool in pools]
        self._closing = asyncio.gather(*closing, return_exceptions=True)

    async def discover(self) -> list[Shard]:
        """Return the current primaries.

        Raises:
            redis.exceptions.RedisError, OSError: no server knows, or none answers.
        """
        match self.url.kind:
            case "one" | "memory":
                return [Shard(self.url.text, (range(SLOTS),))]
            case "sentinel":
                return [self._chosen(await self._ask_sentinels())]
            case "cluster":
                return await self._ask_cluster()

    async def still_names(self, shard: Shard) -> bool:
        """Return whether a majority of the Sentinels answers, and none is replacing a primary."""
        try:
            answers = await self._ask_sentinels()
            return self._is_majority(answers) and self._chosen(answers).url == shard.url
        except RedisError:
            return False

    def _is_majority(self, answers: list[_Answer]) -> bool:
        return 2 * len(answers) > len(self.url.addresses)

    def _chosen(self, answers: list[_Answer]) -> Shard:
        """Return the primary that has the highest epoch.

        A Sentinel partitioned with the old primary still reports it; the others report the new one
        with a higher epoch.
        """
        up = [answer for answer in answers if answer.up]
        if not up:
            total = len(self.url.addresses)
            raise RedisError(f"{len(answers)} of {total} Sentinels say that the primary is down")
        primary = max(up, key=lambda each: each.epoch).primary
        if any(answer.in_failover and answer.primary == primary for answer in answers):
            # What it accepts now is lost if the replica that takes its place does not have it.
            raise RedisError(f"the Sentinels are replacing the primary {primary}")
        replicas = max(each.replicas for each in up if each.primary == primary)
        return Shard(self.url.of(primary), (range(SLOTS),), max(1, replicas))

    async def _ask_sentinels(self) -> list[_Answer]:
        """Ask all Sentinels at once, and return their answers.

        A majority is enough, and a dead machine must not delay the answer. But the others are given
        some time, because one may lead a failover of which no other knows yet.

        Raises:
            redis.exceptions.RedisError: none answers.
        """
        loop = asyncio.get_running_loop()
        asked = {asyncio.create_task(self._ask_sentinel(a)): a for a in self.url.addresses}
        waiting = set(asked)
        answers: list[_Answer] = []
        errors: list[str] = []
        end: float | None = None
        try:
            while waiting:
                left = None if end is None else max(0.0, end - loop.time())
                done, waiting = await asyncio.wait(
                    waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for task in done:
                    try:
                        answers.append(task.result())
                    except (RedisError, OSError) as error:
                        errors.append(str(error))
                if end is None and self._is_majority(answers):
                    silent = {asked[task] for task in waiting} <= self._silent
                    end = loop.time() + (GRACE_OF_SILENT if silent else GRACE)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        self._silent = {asked[task] for task in waiting}
        if not answers:
            raise RedisError(f"no Sentinel answers: {'; '.join(sorted(errors))}")
        return answers

    async def _ask_sentinel(self, address: Address) -> _Answer:
        client = self._connected(address)
        masters: dict[str, dict[str, Any]] = await client.sentinel_masters()  # type: ignore[assignment]
        state = masters.get(self.url.master)
        if state is None:
            raise RedisError(f"{address} knows no {self.url.master}")
        in_failover = "failover_in_progress" in state["flags"]
        down = not state["is_master"] or state["is_sdown"] or state["is_odown"]
        return _Answer(
            Address(state["ip"], state["port"]),
            state["config-epoch"],
            state["num-slaves"],
            up=not down and not in_failover,
            in_failover=in_failover,
        )

    async def replicas(self, sentinel: Address) -> dict[Address, bool]:
        """Return the replicas that one Sentinel knows, and whether it finds them healthy.

        Raises:
            redis.exceptions.RedisError, OSError: it does not answer.
        """
        client = self._connected(sentinel)
        states: list[dict[str, Any]] = await client.sentinel_slaves(self.url.master)
        return {
            Address(state["ip"], state["port"]): not (
                state["is_sdown"] or state["is_odown"] or state["is_disconnected"]
            )
            for state in states
        }

    async def _ask_cluster(self) -> list[Shard]:
        error: Exception = RedisError("the URL names no address")
        for address in self._known:
            client = Redis.from_url(self.url.of(address), **self._options)
            try:
                slots = await client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
            except (RedisError, OSError) as mistake:
                error = mistake
                continue
            finally:
                await client.aclose()
            owned: dict[Address, list[range]] = {}
            replicas: list[Address] = []
            for first, last, *servers in slots:
                # A node that does not know its own address leaves it empty: we asked that node.
                primary, *others = (
                    Address(host.decode() or address.host, port) for host, port, *_ in servers
                )
                owned.setdefault(primary, []).append(range(first, last + 1))
                replicas += others
            if sum(len(each) for ranges in owned.values() for each in ranges) < SLOTS:
                error = RedisError("not all slots of the Redis Cluster are served")
                continue
            self._known = tuple(dict.fromkeys([*owned, *replicas, *self.url.addresses]))
            return [Shard(self.url.of(a), tuple(ranges)) for a, ranges in owned.items()]
        raise error

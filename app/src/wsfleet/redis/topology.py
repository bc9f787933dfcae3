"""Finding the Redis primaries: one server, Sentinels, a Redis Cluster, or this process."""

import asyncio
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from wsfleet.config.redis_url import Address, RedisURL

SLOTS = 16384
"""Hash slots of a Redis Cluster, https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/"""


@dataclass(frozen=True, slots=True)
class Shard:
    """A primary: its URL, and the ranges of hash slots that it owns."""

    url: str
    slots: tuple[range, ...]


class Topology:
    """A finder of the primaries, with a query each time."""

    def __init__(self, url: RedisURL, timeout: float) -> None:
        self.url = url
        self._options: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            # A silent server must not delay the others: redis-py would retry it ten times.
            "retry": Retry(NoBackoff(), 0),
        }
        self._known = url.addresses

    async def discover(self) -> list[Shard]:
        """Return the current primaries.

        Raises:
            redis.exceptions.RedisError, OSError: no server knows, or none answers.
        """
        match self.url.kind:
            case "one" | "memory":
                return [Shard(self.url.text, (range(SLOTS),))]
            case "sentinel":
                return [Shard(self.url.of(await self._ask_sentinels()), (range(SLOTS),))]
            case "cluster":
                return await self._ask_cluster()

    async def _ask_sentinels(self) -> Address:
        """Ask all Sentinels at once, until a majority has answered.

        A Sentinel partitioned with the old primary still reports it; the others report the new one
        with a higher epoch. "Down" counts as an answer, so the Sentinel on the dead machine is not
        waited for.
        """
        addresses = self.url.addresses
        tasks = [asyncio.create_task(self._ask_sentinel(address)) for address in addresses]
        answers: list[tuple[int, Address | None]] = []
        errors: list[str] = []
        try:
            for answer in asyncio.as_completed(tasks):
                try:
                    answers.append(await answer)
                except (RedisError, OSError) as error:
                    errors.append(str(error))
                if 2 * len(answers) > len(addresses):
                    break
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        named = [(epoch, primary) for epoch, primary in answers if primary is not None]
        if not named:
            if answers:
                errors.append(f"{len(answers)} of {len(addresses)} say that it is down")
            raise RedisError(f"no Sentinel names a primary: {'; '.join(sorted(errors))}")
        _, primary = max(named, key=lambda each: each[0])
        return primary

    async def _ask_sentinel(self, address: Address) -> tuple[int, Address | None]:
        """Return the primary that one Sentinel reports, None if it is down, and its epoch."""
        client = self._sentinel(address)
        try:
            masters: dict[str, dict[str, Any]] = await client.sentinel_masters()  # type: ignore[assignment]
        finally:
            await asyncio.shield(client.aclose())  # late answers are cancelled
        state = masters.get(self.url.master)
        if state is None:
            raise RedisError(f"{address} knows no {self.url.master}")
        if not state["is_master"] or state["is_sdown"] or state["is_odown"]:
            return state["config-epoch"], None
        return state["config-epoch"], Address(state["ip"], state["port"])

    async def replicas(self, sentinel: Address) -> dict[Address, bool]:
        """Return the replicas that one Sentinel knows, and whether it finds them healthy.

        Raises:
            redis.exceptions.RedisError, OSError: it does not answer.
        """
        client = self._sentinel(sentinel)
        try:
            states: list[dict[str, Any]] = await client.sentinel_slaves(self.url.master)
        finally:
            await client.aclose()
        return {
            Address(state["ip"], state["port"]): not (
                state["is_sdown"] or state["is_odown"] or state["is_disconnected"]
            )
            for state in states
        }

    def _sentinel(self, address: Address) -> Redis:
        return Redis(
            host=address.host,
            port=address.port,
            username=self.url.sentinel_username,
            password=self.url.sentinel_password,
            ssl=self.url.scheme == "rediss",
            ssl_ca_certs=self.url.ca,
            **self._options,
        )

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

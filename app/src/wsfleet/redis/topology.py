"""Where Redis is: one server, the primary that Sentinels name, or the primaries of a Cluster."""

import asyncio
import re
import ssl
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from pydantic import AfterValidator
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

SLOTS = 16384
"""Hash slots of a Redis Cluster, https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/"""
DEFAULT_PORTS = {"one": 6379, "sentinel": 26379, "cluster": 6379}
FORMS = (
    "write redis://[USER:PASSWORD@]HOST:PORT/DB, "
    "redis+sentinel://[USER:PASSWORD@]SENTINEL:PORT,SENTINEL:PORT,.../MASTER/DB or "
    "redis+cluster://[USER:PASSWORD@]HOST:PORT,HOST:PORT,... (rediss for TLS, ?ssl_ca_certs=FILE "
    "for a CA of your own)"
)

_URL = re.compile(r"(\w+)(?:\+(\w+))?://([^/?]*@)?([^/?]*)([/?].*)?")
"""Scheme, kind, credentials, hosts, and the rest: urlsplit has no notion of several hosts."""


class RedisURLError(ValueError):
    """A URL that does not say where Redis is; the message tells how to mend it."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        """HOST:PORT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RedisURL:
    """A Redis URL, taken apart; `addresses` are those of Sentinels or of some Cluster nodes."""

    text: str
    kind: Literal["one", "sentinel", "cluster"]
    scheme: str
    credentials: str
    addresses: tuple[Address, ...]
    master: str
    database: int
    sentinel_username: str | None
    sentinel_password: str | None
    ca: str | None

    @classmethod
    def parse(cls, text: str) -> "RedisURL":
        """Read a URL.

        Raises:
            RedisURLError: it is none.
        """
        try:
            return cls._parse(text)
        except RedisURLError:
            raise
        except ValueError as error:
            raise RedisURLError(f"{error}: {FORMS}") from None

    @classmethod
    def _parse(cls, text: str) -> "RedisURL":
        found = _URL.fullmatch(text)
        if found is None:
            raise RedisURLError(f"it is no URL: {FORMS}")
        scheme, kind, credentials, hosts, rest = (part or "" for part in found.groups())
        if scheme not in ("redis", "rediss", "unix") or kind not in ("", "sentinel", "cluster"):
            raise RedisURLError(f"there is no scheme {text.partition('://')[0]!r}: {FORMS}")
        parts = urlsplit(rest)
        path = parts.path.strip("/").split("/")
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        master = ""
        if kind == "sentinel":
            master = unquote(path.pop(0))
            if not master:
                raise RedisURLError(f"the name of the master is missing: {FORMS}")
        if not hosts and scheme != "unix":
            raise RedisURLError(f"an address is missing: {FORMS}")
        database = path.pop(0) if path and scheme != "unix" else ""
        if not (database or "0").isdigit() or (path and scheme != "unix"):
            raise RedisURLError(f"{parts.path!r} is too much of a path: {FORMS}")
        if kind == "cluster" and database not in ("", "0"):
            raise RedisURLError("a Redis Cluster has database 0 alone: leave the path out")
        ca = query.get("ssl_ca_certs")
        if ca is not None:
            _check_ca(ca, scheme)
        return cls(
            text=text,
            kind=kind or "one",  # type: ignore[arg-type]  # it is one of the three, see above
            scheme=scheme,
            credentials=credentials,
            addresses=tuple(
                _address(host, DEFAULT_PORTS[kind or "one"]) for host in hosts.split(",") if host
            ),
            master=master,
            database=int(database or 0),
            sentinel_username=query.get("sentinel_username"),
            sentinel_password=query.get("sentinel_password"),
            ca=ca,
        )

    def __str__(self) -> str:
        """The URL without its passwords."""
        if self.scheme == "unix":
            return self.text.partition("?")[0].rpartition("@")[2]
        kind = "" if self.kind == "one" else f"+{self.kind}"
        hosts = ",".join(map(str, self.addresses))
        master = f"/{self.master}" if self.master else ""
        return f"{self.scheme}{kind}://{hosts}{master}/{self.database}"

    def of(self, address: Address) -> str:
        """The URL of one Redis server of this topology."""
        query = f"?{urlencode({'ssl_ca_certs': self.ca})}" if self.ca else ""
        return f"{self.scheme}://{self.credentials}{address}/{self.database}{query}"


def _checked(text: str) -> str:
    RedisURL.parse(text)
    return text


CheckedURL = Annotated[str, AfterValidator(_checked)]
"""A setting that is a Redis URL, as text."""


def _check_ca(file: str, scheme: str) -> None:
    if scheme != "rediss":
        raise RedisURLError("ssl_ca_certs is for TLS: write rediss in place of redis")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except OSError as error:
        raise RedisURLError(f"the CA {file} cannot be read: {error.strerror}") from error


def _address(text: str, port: int) -> Address:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(f"{text!r} is no address")
    return Address(parts.hostname, parts.port or port)


@dataclass(frozen=True, slots=True)
class Shard:
    """A primary, by its URL, and the ranges of hash slots that it owns."""

    url: str
    slots: tuple[range, ...]


class Topology:
    """Finds the primaries, anew each time it is asked."""

    def __init__(self, url: RedisURL, timeout: float) -> None:
        self.url = url
        self._options: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            # A server that is silent is no reason to wait: redis-py would try it ten times.
            "retry": Retry(NoBackoff(), 0),
        }
        self._known = url.addresses

    async def discover(self) -> list[Shard]:
        """Ask who the primaries are now.

        Raises:
            redis.exceptions.RedisError, OSError: nobody knows, or nobody answers.
        """
        match self.url.kind:
            case "one":
                return [Shard(self.url.text, (range(SLOTS),))]
            case "sentinel":
                return [Shard(self.url.of(await self._ask_sentinels()), (range(SLOTS),))]
            case "cluster":
                return await self._ask_cluster()

    async def _ask_sentinels(self) -> Address:
        """Ask all at once, until most have answered.

        One that is cut off with the primary of before goes on naming it; the others know of a
        failover with a higher epoch. That it is down is an answer, too: the Sentinel on its machine
        is likely to be down as well, and is not waited for.
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
        """Whom one Sentinel calls the primary, None if it is down, and since which epoch it is."""
        client = self._sentinel(address)
        try:
            masters: dict[str, dict[str, Any]] = await client.sentinel_masters()  # type: ignore[assignment]
        finally:
            await asyncio.shield(client.aclose())  # whoever is asked too late is cancelled
        state = masters.get(self.url.master)
        if state is None:
            raise RedisError(f"{address} knows no {self.url.master}")
        if not state["is_master"] or state["is_sdown"] or state["is_odown"]:
            return state["config-epoch"], None
        return state["config-epoch"], Address(state["ip"], state["port"])

    async def replicas(self, sentinel: Address) -> dict[Address, bool]:
        """The replicas that one Sentinel knows, and whether it finds them well.

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
                # A node that does not know its own address says nothing: it is the one we asked.
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

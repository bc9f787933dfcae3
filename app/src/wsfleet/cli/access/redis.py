"""Access to the fleet's Redis: a blocking client with timeouts, and errors of one line."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry

from wsfleet.cli.errors import CannotRun
from wsfleet.config.redis_url import RedisURL, RedisURLError, check_shared
from wsfleet.config.settings import NODE_DEAD_AFTER
from wsfleet.redis import key_names
from wsfleet.redis.topology import Shard, Topology

#: Commands in one round trip: enough that the round trip costs little, few enough that the other
#: clients of this Redis do not wait.
BATCH = 500
_TIMEOUT = 5.0  # seconds

T = TypeVar("T")


@contextmanager
def connected(url: str, *, decode: bool = True) -> Iterator[Any]:
    """Yield a client of one server, of the primary that Sentinels name, or of a Redis Cluster.

    Its replies are text, or bytes if `decode` is off.

    Raises:
        CannotRun: Redis is unreachable, refuses the login, or stops answering; the message does not
            contain the password.

    """
    try:
        where = RedisURL.parse(url)
        check_shared(where)
    except RedisURLError as error:
        raise CannotRun(f"redis_url: {error}") from error
    try:
        with _client(where, decode=decode) as client:
            client.ping()
            yield client
    except AuthenticationError as error:
        raise CannotRun(f"Redis {where} refuses the login: {error}. Correct redis_url.") from error
    except (RedisError, OSError) as error:
        raise CannotRun(
            f"cannot read Redis {where}: {error}. Check that Redis runs, and redis_url."
        ) from error


def _client(where: RedisURL, *, decode: bool) -> Any:
    options: dict[str, Any] = {
        "decode_responses": decode,
        "socket_timeout": _TIMEOUT,
        "socket_connect_timeout": _TIMEOUT,
    }
    match where.kind:
        case "one" | "sentinel":
            primary = asyncio.run(_primary(where))
            return redis.Redis.from_url(primary.url, retry=Retry(NoBackoff(), 0), **options)
        case "cluster":
            first, *others = where.addresses
            node: Any = redis.cluster.ClusterNode
            nodes = [node(address.host, address.port) for address in others]
            return redis.RedisCluster.from_url(where.of(first), startup_nodes=nodes, **options)


async def _primary(where: RedisURL) -> Shard:
    async with aclosing(Topology(where, _TIMEOUT)) as topology:
        (primary,) = await topology.discover()
    return primary


def server_infos(client: Any) -> list[dict[str, Any]]:
    """Return the INFO of the server, or of each primary of a Redis Cluster."""
    if isinstance(client, redis.RedisCluster):
        return list(client.info(target_nodes=redis.RedisCluster.PRIMARIES).values())
    return [client.info()]


def iso(seconds: float) -> str:
    """Return a unix time as ISO 8601, with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _now(client: Any) -> float:
    """Return the unix time on Redis's clock."""
    seconds, micros = client.time()
    return float(seconds + micros / 1e6)


def live_nodes(client: Any) -> set[Any]:
    """Return the nodes with a heartbeat in the last `NODE_DEAD_AFTER` seconds, on Redis's clock.

    Names are text or bytes, as the client's replies are.
    """
    oldest = _now(client) - NODE_DEAD_AFTER
    return set(client.zrangebyscore(key_names.NODES, oldest, "+inf"))


def registry(client: Any) -> dict[str, dict[str, Any]]:
    """Return every node of the registry with its own description, by name.

    `live` and `heartbeat_age` (seconds) come from its last heartbeat, `uptime` (seconds) from when
    it started.
    """
    live = live_nodes(client)
    now = client.time()[0]
    nodes = {}
    for name, beat in client.zrange(key_names.NODES, 0, -1, withscores=True):
        said = client.hgetall(key_names.node(name))
        nodes[name] = {
            **said,
            "live": name in live,
            "heartbeat_age": round(now - beat, 1),
            "uptime": _since(said.get("started"), now),
        }
    return nodes


def handler_processes(client: Any) -> dict[str, float]:
    """Return the seconds since the last heartbeat of each process of `wsfleet app`, by name."""
    now = _now(client)
    beats = client.zrange(key_names.HANDLERS, 0, -1, withscores=True)
    return {name: round(now - beat, 1) for name, beat in beats}


def _since(started: str | None, now: float) -> float | None:
    try:
        return round(now - float(started or ""), 1)
    except ValueError:
        return None


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield a sequence in parts of at most `BATCH` items."""
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def shown(url: str) -> str:
    """Return a Redis URL without its password."""
    try:
        return str(RedisURL.parse(url))
    except RedisURLError:
        return "(unreadable)"

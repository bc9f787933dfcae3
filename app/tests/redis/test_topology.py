"""URLs of Redis: what they mean, and what is wrong with those that mean nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.exceptions import RedisError

from lab.waiting import settled
from tests.support.nodes import StartNode
from wsfleet.config.redis_url import Address, RedisURL, RedisURLError
from wsfleet.redis.primary import DIGEST
from wsfleet.redis.topology import Topology


def test_one_server() -> None:
    """It is taken as it is, the password is not shown."""
    url = RedisURL.parse("redis://user:p%40ss@host:7000/2")
    assert (url.kind, url.text) == ("one", "redis://user:p%40ss@host:7000/2")
    assert str(url) == "redis://host:7000/2"


def test_sentinels() -> None:
    """Addresses are the Sentinels', user and password the servers'."""
    url = RedisURL.parse("redis+sentinel://:pw@a,[::1]:7000/fleet/1?sentinel_password=other")
    assert url.addresses == (Address("a", 26379), Address("::1", 7000))
    assert (url.master, url.sentinel_password) == ("fleet", "other")
    assert url.of(Address("b", 6379)) == "redis://:pw@b:6379/1"
    assert str(url) == "redis+sentinel://a:26379,[::1]:7000/fleet/1"


def test_a_cluster() -> None:
    """Some of its nodes are enough."""
    url = RedisURL.parse("rediss+cluster://user:pw@a:7000,b")
    assert url.addresses == (Address("a", 7000), Address("b", 6379))
    assert url.of(Address("c", 7001)) == "rediss://user:pw@c:7001/0"


def test_memory() -> None:
    """It has a name and no address."""
    for text, shown in (("memory://", "memory://"), ("memory://one/", "memory://one")):
        url = RedisURL.parse(text)
        assert (url.kind, url.addresses, str(url)) == ("memory", (), shown)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("memory://10.0.0.1", "the memory of this process, not a server"),
        ("memory://host:6379", "the memory of this process, not a server"),
        ("memory://user:secret@host", "several processes need a Redis"),
        ("memory://one/0", "write memory:// or memory://NAME"),
        ("redis+memory://one", "no scheme"),
        ("http://host", "no scheme 'http'"),
        ("redis+ring://host", "no scheme 'redis\\+ring'"),
        ("redis+sentinel://host", "name of the master is missing"),
        ("redis+sentinel://host/fleet/0/1", "too much of a path"),
        ("redis+cluster://host/1", "database 0 alone"),
        ("redis+cluster://", "an address is missing"),
        ("redis://host/one", "too much of a path"),
        ("redis://host:port/0", "Port could not be cast"),
        ("rediss://host/0?ssl_ca_certs=/nowhere", "CA /nowhere cannot be read: No such file"),
        ("redis://host/0?ssl_ca_certs=/nowhere", "write rediss in place of redis"),
        (f"rediss://host/0?ssl_ca_certs={__file__}", "cannot be read: .* no certificate"),
    ],
)
def test_invalid_urls(text: str, what: str) -> None:
    """The message says what is wrong, and never repeats a password."""
    with pytest.raises(RedisURLError, match=what):
        RedisURL.parse(text)


async def test_functions_that_no_node_uses_are_removed(start_node: StartNode, store: Any) -> None:
    """A node that starts clears away the libraries of versions that are gone."""
    old = "#!lua name=wsfleet_0ld\nredis.register_function('wsfleet_old', function() end)"
    foreign = "#!lua name=other\nredis.register_function('other', function() end)"
    await store.function_load(old)
    await store.function_load(foreign)
    await start_node()

    async def libraries() -> set[str]:
        found = await store.function_list()
        return {
            dict(zip(library[::2], library[1::2], strict=True))["library_name"] for library in found
        }

    async def cleared() -> bool:
        return await libraries() == {f"wsfleet_{DIGEST}", "other"}

    await settled(cleared, "only what is used is left, and what is not ours")


class Late(str):
    """An answer that comes after those of the others."""


@contextlib.asynccontextmanager
async def sentinel(answer: str | None) -> AsyncIterator[int]:
    """Something that answers every question with the same, or never; gives its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())
        while data := await reader.read(1000):
            if answer is None:
                await gone.wait()
                break
            if isinstance(answer, Late) and b"MASTERS" in data:
                await asyncio.sleep(0.03)
            # The client's own words of greeting come first, perhaps in one piece with what it asks.
            questions = data.count(b"*")
            last = answer.encode() if b"MASTERS" in data else b"+OK\r\n"
            writer.write(b"+OK\r\n" * (questions - 1) + last)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    served: list[asyncio.Task[None] | None] = []
    gone = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        gone.set()
        server.close()
        await asyncio.gather(*filter(None, served))


FAILOVER = "master,o_down,failover_in_progress"


def names(port: int, epoch: int, flags: str = "master") -> str:
    """The answer of a Sentinel to SENTINEL MASTERS."""
    fields: dict[str, object] = {
        "name": "fleet",
        "ip": "127.0.0.1",
        "port": port,
        "flags": flags,
        "num-slaves": 2,
        "config-epoch": epoch,
    }
    words = [str(word) for pair in fields.items() for word in pair]
    return f"*1\r\n%{len(fields)}\r\n" + "".join(f"${len(w)}\r\n{w}\r\n" for w in words)


async def primary_of(*answers: str | None, timeout: float = 1.0) -> int:  # noqa: ASYNC109
    """The port of the primary that a node finds with Sentinels which answer so."""
    async with contextlib.AsyncExitStack() as stack:
        ports = [await stack.enter_async_context(sentinel(answer)) for answer in answers]
        addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
        url = RedisURL.parse(f"redis+sentinel://{addresses}/fleet/0")
        topology = await stack.enter_async_context(contextlib.aclosing(Topology(url, timeout)))
        async with asyncio.timeout(10):  # a silent one alone used to take half a minute
            (shard,) = await topology.discover()
    return int(shard.url.rpartition(":")[2].partition("/")[0])


@pytest.mark.parametrize("leader", [str, Late])
async def test_a_primary_that_is_being_replaced_is_not_used(leader: type[str]) -> None:
    """One Sentinel leads the failover; no other knows of it."""
    with pytest.raises(RedisError, match="are replacing the primary "):
        await primary_of(names(1, 7), names(1, 7), leader(names(1, 7, FAILOVER)))


@pytest.mark.parametrize(
    "answers",
    [
        (None, names(2, 1), names(2, 1)),
        (names(1, 0), names(2, 1), names(2, 1)),
        (names(1, 7, "master,s_down"), names(2, 8), None),
        (None, None, names(2, 1)),
        (names(1, 8, FAILOVER), names(2, 8), names(1, 7)),
    ],
    ids=["one is silent", "one is cut off", "one sees it down", "one is left", "it is promoted"],
)
async def test_the_sentinels_of_the_highest_epoch_are_believed(
    answers: tuple[str | None, ...],
) -> None:
    """One that is silent holds nobody up, one that has not heard of a failover does not count."""
    assert await primary_of(*answers) == 2


async def test_no_sentinel_names_a_primary() -> None:
    """The error says how many of them answered."""
    with pytest.raises(RedisError, match="1 of 1 Sentinels say that the primary is down"):
        await primary_of(names(1, 1, "master,o_down"))
    with pytest.raises(RedisError, match="no Sentinel answers: "):
        await primary_of(None, timeout=0.1)


async def test_two_that_see_it_down_are_enough() -> None:
    """The third is likely to be on the machine that is down: nobody waits for it."""
    down = names(1, 1, "master,s_down")
    with pytest.raises(RedisError, match="2 of 3 Sentinels say that the primary is down"):
        await primary_of(down, None, down, timeout=60)

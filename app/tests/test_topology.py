"""URLs of Redis: what they mean, and what is wrong with those that mean nothing."""

from typing import Any

import pytest

from tests.harness import StartNode, settled
from wsfleet.primary import DIGEST
from wsfleet.topology import Address, RedisURL, RedisURLError


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


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("http://host", "no scheme 'http'"),
        ("redis+ring://host", "no scheme 'redis\\+ring'"),
        ("redis+sentinel://host", "name of the master is missing"),
        ("redis+sentinel://host/fleet/0/1", "too much of a path"),
        ("redis+cluster://host/1", "database 0 alone"),
        ("redis+cluster://", "an address is missing"),
        ("redis://host/one", "too much of a path"),
        ("redis://host:port/0", "Port could not be cast"),
    ],
)
def test_what_is_no_url(text: str, what: str) -> None:
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

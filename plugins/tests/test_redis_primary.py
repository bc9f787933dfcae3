"""The choice of the primary: a wrong one would undo a failover, or lose data."""

import json
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.wsfleet.wsfleet.plugins.filter.redis_primary import redis_primary

MEMBERS = [{"name": f"redis{n}", "address": f"10.0.0.{n}", "port": 6379} for n in (1, 2, 3)]


def primary_of(*said: str) -> str:
    """Ask the filter about redis1, redis2 and redis3."""
    return redis_primary({f"redis{n}": text for n, text in enumerate(said, 1)}, MEMBERS)


def info(role: str = "master", version: str = "8.0.2", **fields: Any) -> str:
    """INFO as redis-cli prints it."""
    lines = [f"redis_version:{version}", "# Replication", f"role:{role}"]
    return "\r\n".join([*lines, *(f"{key}:{value}" for key, value in fields.items()), ""])


def replica(of: int, **fields: Any) -> str:
    """INFO of a server that follows one of ours."""
    return info("slave", master_host=f"10.0.0.{of}", master_port=6379, **fields)


def sentinel(primary: int, epoch: int) -> str:
    """The Sentinel's line."""
    view = {"ip": f"10.0.0.{primary}", "port": "6379", "config-epoch": str(epoch)}
    return json.dumps(view) + "\n"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param(("", "", ""), "redis1", id="nobody has anything: the first"),
        pytest.param((info(), info(), info()), "redis1", id="all are fresh: the first"),
        pytest.param(
            (info(), info(db0="keys=1,expires=0"), info()),
            "redis2",
            id="one server has data",
        ),
        pytest.param(
            (replica(3), replica(3), info(connected_slaves=2)),
            "redis3",
            id="who has replicas",
        ),
        pytest.param(
            ("", replica(1), replica(1)),
            "redis1",
            id="away, and missed by its replicas",
        ),
        pytest.param(
            (
                info(db0="keys=9") + sentinel(1, 0),
                replica(3) + sentinel(3, 2),
                sentinel(3, 2),
            ),
            "redis3",
            id="the old primary is back, and its Sentinel knows nothing yet",
        ),
        pytest.param(
            (replica(9, db0="keys=1"), info(db0="keys=1"), replica(9, db0="keys=1")),
            "redis2",
            id="all have new addresses, and the Sentinels know nothing any more",
        ),
        pytest.param(
            (replica(9), info(), replica(9)),
            "redis2",
            id="the same, and nobody has anything",
        ),
        pytest.param(
            (
                "sh: redis-cli-auth: not found",
                'error:"ERR No such master with that name"',
                "",
            ),
            "redis1",
            id="errors say nothing",
        ),
    ],
)
def test_the_primary_is_found(said: tuple[str, str, str], expected: str) -> None:
    """The newest Sentinel's word counts, then that of the servers, then the inventory's order."""
    assert primary_of(*said) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            (info(db0="keys=1"), info(db0="keys=1"), ""),
            "redis1 and redis2 have data of their own",
        ),
        (("", sentinel(9, 1), ""), "the primary is 10.0.0.9:6379, which is no host"),
        (
            (info(), replica(9, db0="keys=1"), replica(9, db0="keys=1")),
            "the primary is 10.0.0.9:6379, which is no host",
        ),
        (
            (info(db0="keys=1"), info(version="7.0.15"), ""),
            "redis2 has Redis 7.0.15 and the primary, redis1, 8.0.2",
        ),
    ],
)
def test_a_change_that_would_lose_data_is_refused(
    said: tuple[str, str, str], expected: str
) -> None:
    """Nothing is changed, and the message says how to go on."""
    with pytest.raises(AnsibleFilterError, match=expected):
        primary_of(*said)


def test_new_addresses_of_all_have_one_way() -> None:
    """The message names whose Sentinels know old ones; without these the way is free."""
    servers = [replica(9, db0="keys=1"), info(db0="keys=1"), replica(9, db0="keys=1")]
    known = [sentinel(9, 4), sentinel(9, 3), sentinel(9, 4)]
    for left in (3, 2, 1):
        views = ["", "", "", *known[-left:]][-3:]
        said = [server + view for server, view in zip(servers, views, strict=True)]
        hosts = {3: "redis1, redis2 and redis3", 2: "redis2 and redis3", 1: "redis3"}[left]
        with pytest.raises(AnsibleFilterError) as error:
            primary_of(*said)
        assert "know the primary as 10.0.0.9:6379, which no host" in str(error.value)
        assert f"the Sentinels of {hosts} forget the old ones" in str(error.value)
        assert "redis2 stays the primary" in str(error.value)
        assert "FAILOVER" not in str(error.value)
    assert primary_of(*servers) == "redis2"


def test_an_older_primary_has_newer_replicas() -> None:
    """That is how Debian is upgraded: replicas first."""
    old = info(version="7.0.15", db0="keys=1", connected_slaves=2)
    assert primary_of(replica(2), old, replica(2)) == "redis2"

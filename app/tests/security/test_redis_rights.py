"""The rights of each Redis user, for the case that its password leaks."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.redis import RedisServer, redis_rights

OF_OTHERS = ["GET other", "SET other 1", "DEL other", "PUBLISH other 1", "COPY wsfleet:x other"]
OF_THE_SERVER = [
    *("CONFIG GET *", "CONFIG SET appendonly no", "ACL LIST", "CLIENT LIST", "MONITOR", "SAVE"),
    *("FLUSHALL", "FLUSHDB", "SWAPDB 0 1", "SHUTDOWN", "DEBUG SLEEP 0", "REPLICAOF NO ONE"),
    *("KEYS *", "RANDOMKEY", "DBSIZE", "FUNCTION FLUSH", "MODULE LIST"),
]


@pytest.fixture
def server(processes: None, tmp_path: Path) -> Iterator[RedisServer]:
    """Return a Redis that allows DEBUG, so that only its users' rights refuse it."""
    server = RedisServer(tmp_path / "redis", enable_debug_command="yes")
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("user", [user for user in redis_rights() if user != "admin"])
def test_users_of_redis_have_no_other_rights(server: RedisServer, user: str) -> None:
    """No user but the admin may administrate the server or read others' keys."""
    with redis.Redis.from_url(server.url_of(user)) as client:
        for command in (*OF_OTHERS, *OF_THE_SERVER):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command.split())


def test_a_node_does_not_look_for_keys(redis_process: RedisServer) -> None:
    """A node's user may run neither SCAN nor EVAL; the command line's user may scan."""
    with redis.Redis.from_url(redis_process.url_of("node")) as client:
        for command in (["SCAN", "0"], ["EVAL", "return 0", "0"]):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)
    with redis.Redis.from_url(redis_process.url_of("cli")) as client:
        client.scan()

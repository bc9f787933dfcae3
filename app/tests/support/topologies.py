"""Redis as a team runs it that must not depend on one machine: Sentinel, and Redis Cluster."""

import contextlib
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import redis

from lab.ports import free_port
from lab.waiting import until
from tests.support.redis import RedisServer

MASTER = "wsfleet"


def ask(server: RedisServer, *command: object) -> Any:
    """One command to one server, answers decoded."""
    with redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=5) as client:
        return client.execute_command(*command)


class SentinelTopology:
    """A primary, two replicas and three Sentinels."""

    def __init__(self, directory: Path, tls: Path | None = None) -> None:
        careful: dict[str, Any] = {
            "min_replicas_to_write": 1,
            "min_replicas_max_lag": 2,
            "tls": tls,
        }
        primary = RedisServer(directory / "redis1", **careful)
        replicaof = f"127.0.0.1 {primary.port}"
        self.servers = [
            primary,
            RedisServer(directory / "redis2", replicaof=replicaof, **careful),
            RedisServer(directory / "redis3", replicaof=replicaof, **careful),
        ]
        self.sentinels = [
            RedisServer(
                directory / f"sentinel{n}",
                tls=tls,
                sentinel=f"monitor {MASTER} 127.0.0.1 {primary.port} 2",
            )
            for n in (1, 2, 3)
        ]
        addresses = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        scheme, query = ("rediss", f"?ssl_ca_certs={tls}/ca.pem") if tls else ("redis", "")
        self.url = f"{scheme}+sentinel://{addresses}/{MASTER}{query}"

    @property
    def primary(self) -> RedisServer:
        """The primary that the Sentinels name."""
        for sentinel in self.sentinels:
            with contextlib.suppress(redis.RedisError, OSError):
                _, port = ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
                return next(server for server in self.servers if server.port == int(port))
        raise AssertionError("no Sentinel answers")

    @property
    def replicas(self) -> list[RedisServer]:
        """The others."""
        primary = self.primary
        return [server for server in self.servers if server is not primary]

    def start(self) -> None:
        """Start all, and return once they know of each other."""
        for server in self.servers:
            server.start()
        until(lambda: len(ask(self.servers[0], "ROLE")[2]) == 2, "both replicas follow")
        for sentinel in self.sentinels:
            sentinel.start()
            for option, value in (("down-after-milliseconds", 500), ("failover-timeout", 3000)):
                ask(sentinel, "SENTINEL", "SET", MASTER, option, value)
        for sentinel in self.sentinels:
            until(partial(self._complete, sentinel), "the Sentinels know of each other")

    def _complete(self, sentinel: RedisServer) -> bool:
        state = ask(sentinel, "SENTINEL", "MASTER", MASTER)
        return int(state["num-slaves"]) == int(state["num-other-sentinels"]) == 2

    def wait_for_failover(self, old: RedisServer) -> None:
        """Until another one is the primary, and says so itself."""
        until(
            lambda: self.primary is not old and ask(self.primary, "ROLE")[0] == "master",
            "a replica was promoted",
        )

    def stop(self) -> None:
        """End all processes."""
        for server in [*self.sentinels, *self.servers]:
            server.stop()


class ClusterTopology:
    """Three primaries with a replica each."""

    def __init__(self, directory: Path) -> None:
        self.servers = [
            RedisServer(
                directory / f"redis{n}",
                cluster_enabled="yes",
                cluster_node_timeout=2000,
                cluster_port=free_port(),
            )
            for n in range(1, 7)
        ]
        self.url = f"redis+cluster://127.0.0.1:{self.servers[0].port}"

    def start(self) -> None:
        """Start all, and return once the cluster serves."""
        for server in self.servers:
            server.start()
        addresses = [f"127.0.0.1:{server.port}" for server in self.servers]
        self.manage("create", *addresses, "--cluster-replicas", "1", "--cluster-yes")
        for server in self.servers:
            until(partial(self._complete, server), "the cluster is whole")

    def _complete(self, server: RedisServer) -> bool:
        role = ask(server, "ROLE")
        well = "cluster_state:ok" in str(ask(server, "CLUSTER", "INFO"))
        return well and (len(role[2]) == 1 if role[0] == "master" else role[3] == "connected")

    def manage(self, *command: str) -> str:
        """Run `redis-cli --cluster`."""
        done = subprocess.run(
            ["redis-cli", "--cluster", *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def move_slot(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Give a slot with its keys to another primary, as `redis-cli --cluster reshard` does."""
        ids = {server: ask(server, "CLUSTER", "MYID") for server in (source, target)}
        ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        while names := ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *names)
        for server in (target, source):
            ask(server, "CLUSTER", "SETSLOT", slot, "NODE", ids[target])

    def owner(self, key: str) -> RedisServer:
        """The primary that has a key."""
        slot = int(ask(self.servers[0], "CLUSTER", "KEYSLOT", key))
        for server in self.servers:
            with contextlib.suppress(redis.RedisError, OSError):
                for first, last, (_, port, *_), *_ in self._slots(server):
                    if first <= slot <= last:
                        return next(s for s in self.servers if s.port == port)
        raise AssertionError(f"nobody has {key}")

    def _slots(self, server: RedisServer) -> Iterator[Any]:
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            yield from client.execute_command("CLUSTER", "SLOTS")

    def stop(self) -> None:
        """End all processes."""
        for server in self.servers:
            server.stop()


T = TypeVar("T", SentinelTopology, ClusterTopology)


@contextlib.contextmanager
def started(topology: T) -> Iterator[T]:
    """Start it, and end all its processes whatever happens."""
    try:
        topology.start()
        yield topology
    finally:
        topology.stop()

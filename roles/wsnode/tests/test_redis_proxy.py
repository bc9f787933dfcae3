"""HAProxy on a node leads an application that knows no Sentinel to the Redis primary."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import jinja2
import pytest
import redis

from lab.ports import free_port
from lab.waiting import until

ROOT = Path(__file__).resolve().parents[3]
ROLE = ROOT / "roles" / "wsnode"
ADMIN = "c" * 64
PASSWORDS = {"app": "a" * 64, "proxy": "b" * 64}
ACL = f"""\
user default off resetpass ~* &* +@all
user admin on >{ADMIN} ~* &* +@all
user replica on >replica +psync +replconf +ping
user app on >{PASSWORDS["app"]} ~app:* &app:* +@all -@admin -@dangerous
user proxy on >{PASSWORDS["proxy"]} +info
"""


class Server:
    """A Redis server with the users of the cluster."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.port = free_port()
        folder.mkdir()
        (folder / "acl").write_text(ACL)
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": folder,
            "aclfile": folder / "acl",
            "save": "",
            "masteruser": "replica",
            "masterauth": "replica",
            "min-replicas-to-write": 1,
            "min-replicas-max-lag": 5,
            "repl-diskless-sync-delay": 0,
        }
        lines = "".join(f'{name} "{value}"\n' for name, value in options.items())
        (folder / "redis.conf").write_text(lines)
        command = [Path(sys.executable).with_name("redis-server"), folder / "redis.conf"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        stack.callback(self.stop)
        self.admin = redis.Redis(port=self.port, username="admin", password=ADMIN)
        stack.callback(self.admin.close)
        until(self.admin.ping, "Redis answers")

    def follow(self, other: Server | None) -> None:
        """Become the other's replica, or a primary."""
        self.admin.replicaof(*(("127.0.0.1", other.port) if other else ("NO", "ONE")))

    def stop(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()


class Cluster:
    """A primary, a replica, and the node's HAProxy before them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.servers = [Server(folder / name, stack) for name in ("redis1", "redis2")]
        self.servers[1].follow(self.servers[0])
        self.port = free_port()
        environment = jinja2.Environment(trim_blocks=True)  # noqa: S701 - no HTML
        environment.filters["wsfleet.wsfleet.netloc"] = lambda address, port: f"{address}:{port}"
        members = [
            {"name": f"redis{n}", "address": "127.0.0.1", "port": server.port, "tls": False}
            for n, server in enumerate(self.servers, 1)
        ]
        members[0]["min_replicas"] = 1
        text = environment.from_string((ROLE / "templates" / "redis.cfg.j2").read_text()).render(
            fleet_members={"redis": members, "redis_passwords": PASSWORDS},
            _wsnode_redis_connections=100,
            _wsnode_redis_timeout=2,
            _wsnode_redis_login=ROLE / "files" / "redis-login.lua",
            _wsnode_redis_address="127.0.0.1",
        )
        file = folder / "redis.cfg"
        file.write_text(text.replace(":6379\n", f":{self.port}\n", 1))
        program = shutil.which("haproxy", path="/usr/sbin:/usr/bin")
        assert program, "haproxy is not installed"
        process = subprocess.Popen([program, "-f", file], stdout=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.kill)
        until(self.leads_to_the_primary, "HAProxy has checked all servers")

    def client(self, **login: str) -> redis.Redis:
        """Return a client as an application has it; by default it knows nothing of a password."""
        return redis.Redis(port=self.port, decode_responses=True, **login)  # type: ignore[arg-type]

    def leads_to_the_primary(self) -> bool:
        """Tell whether all new connections write: a server is up before its first check."""
        for _ in range(10):
            with self.client() as client:
                client.set("app:here", "yes")
        return True


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start all of it."""
    with ExitStack() as stack:
        yield Cluster(tmp_path_factory.mktemp("redis"), stack)


def test_a_client_without_a_password_is_the_user_app(cluster: Cluster) -> None:
    """It may use the application's keys, and no others."""
    with cluster.client() as client:
        assert client.execute_command("ACL WHOAMI") == "app"
        assert client.set("app:x", "1")
        assert client.get("app:x") == "1"
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.get("wsfleet:nodes")
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.flushdb()


@pytest.mark.parametrize("size", [0, 1, 5, 16_384, 5_000_000])
def test_answers_of_all_sizes_are_whole(cluster: Cluster, size: int) -> None:
    """The answer to the login is taken out, and nothing else, also where +OK comes first."""
    with cluster.client() as client:
        assert client.set("app:size", "+" * size)
    with cluster.client() as client:
        assert client.get("app:size") == "+" * size
        with client.pipeline(transaction=False) as pipeline:
            for number in range(1000):
                pipeline.set("app:number", number).get("app:number")
            assert pipeline.execute()[1::2] == [str(number) for number in range(1000)]


def test_a_client_may_log_in_by_itself(cluster: Cluster) -> None:
    """By its own name and password, also in RESP3; a wrong password is refused."""
    with cluster.client(username="proxy", password=PASSWORDS["proxy"]) as client:
        assert client.info("replication")["role"] == "master"
    with (
        cluster.client(username="app", password=ADMIN) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()


def test_messages_are_published_and_received(cluster: Cluster) -> None:
    """On the application's channels."""
    with cluster.client() as client, client.pubsub() as subscription:
        subscription.subscribe("app:news")
        assert subscription.get_message(timeout=10)
        client.publish("app:news", "hello")
        message = subscription.get_message(timeout=10)
        assert message is not None
        assert message["data"] == "hello"


def test_a_failover_is_followed(cluster: Cluster) -> None:
    """Of two that say they are the primary, the one that has the replicas is it."""
    first, second = cluster.servers
    with cluster.client() as client:
        client.set("app:before", "yes")
        first.admin.wait(1, 10_000)
        second.follow(None)  # as Sentinel does it: the old one still says that it is the primary
        until(lambda: first.admin.info("replication")["connected_slaves"] == 0, "it has no replica")
        first.follow(second)

        until(lambda: client.set("app:after", "yes"), "the same client writes again")
        assert client.get("app:before") == "yes"
    assert second.admin.get("app:after") == b"yes"

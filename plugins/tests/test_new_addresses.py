"""All Redis hosts get new addresses: what docs/operations.md says brings them together again."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.wsfleet.wsfleet.plugins.filter.redis_primary import redis_primary

from lab.ports import free_port
from lab.processes import start, stop
from lab.waiting import until

HOSTS = ("redis1", "redis2", "redis3")
MASTER = "wsfleet"


class Cluster:
    """Three Redis servers and Sentinels, each pair at an address of the loopback.

    Their own files outlive them, and what the roles say follows on the command line, as in the
    units of the roles.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.sentinel_port = free_port(), free_port()
        self.running: list[subprocess.Popen[bytes]] = []
        self.network = 1

    def address(self, host: str) -> str:
        """The address of a host."""
        return f"127.0.{self.network}.{host[-1]}"

    def start(self, file: Path, host: str, port: int, *options: str) -> None:
        """Run a server or a Sentinel by its own file."""
        address = self.address(host)
        command = ["redis-server", file, "--port", port, "--bind", address, "--dir", file.parent]
        words = [str(word) for word in (*command, *options)]
        self.running.append(start(words, file.parent / "log"))
        until(lambda: self.ask(host, port, "PING") == "PONG", f"{file} answers")

    def start_servers(self) -> None:
        """Run the servers, which follow whom they followed."""
        for host in HOSTS:
            file = self.folder / host / "redis.conf"
            file.parent.mkdir(exist_ok=True)
            file.touch()
            announced = ("--replica-announce-ip", self.address(host), "--appendonly", "yes")
            self.start(file, host, self.port, *announced)

    def follow(self, primary: str) -> None:
        """Do what the role `redis` does: replicas follow the primary, and keep that."""
        for host in set(HOSTS) - {primary}:
            self.ask(host, self.port, "REPLICAOF", self.address(primary), str(self.port))
            self.ask(host, self.port, "CONFIG", "REWRITE")
        for host in set(HOSTS) - {primary}:
            until(partial(self.has_link, host), f"{host} follows {primary}")

    def has_link(self, host: str) -> bool:
        """Return whether a replica is connected to its primary."""
        return "master_link_status:up" in self.info(host)

    def start_sentinels(self, primary: str) -> None:
        """Do what the role `sentinel` does: a Sentinel without a file watches the primary."""
        for host in HOSTS:
            file = self.folder / f"sentinel-{host}" / "sentinel.conf"
            file.parent.mkdir(exist_ok=True)
            if not file.exists():
                file.write_text(
                    f"sentinel monitor {MASTER} {self.address(primary)} {self.port} 2\n"
                    f"sentinel down-after-milliseconds {MASTER} 1000\n"
                )
            announced = ("--sentinel", "--sentinel announce-ip", self.address(host))
            self.start(file, host, self.sentinel_port, *announced)

    def have_quorum(self) -> bool:
        """Whether each Sentinel knows both others, and both replicas."""
        views = [self.ask(host, self.sentinel_port, "SENTINEL", "MASTER", MASTER) for host in HOSTS]
        return all(
            '"num-slaves":"2"' in view and '"num-other-sentinels":"2"' in view for view in views
        )

    def ask(self, host: str, port: int, *words: str) -> str:
        """Ask by redis-cli."""
        command = ["redis-cli", "-h", self.address(host), "-p", str(port), *words]
        if words[0] == "SENTINEL":
            command.insert(1, "--json")
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    def info(self, host: str) -> str:
        """The server's INFO."""
        return self.ask(host, self.port, "INFO")

    @property
    def primary(self) -> str:
        """Return the primary that the role's filter finds from all answers."""
        said = {
            host: self.info(host)
            + "\n"
            + self.ask(host, self.sentinel_port, "SENTINEL", "MASTER", MASTER)
            for host in HOSTS
        }
        members = [
            {"name": host, "address": self.address(host), "port": self.port} for host in HOSTS
        ]
        return redis_primary(said, members)

    def stop(self) -> None:
        """End all."""
        for process in self.running:
            process.terminate()
        for process in self.running:
            stop(process, grace=30)
        self.running.clear()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster whose primary is its second host."""
    with ExitStack() as stack:
        cluster = Cluster(tmp_path)
        stack.callback(cluster.stop)
        cluster.start_servers()
        cluster.follow("redis2")
        cluster.start_sentinels("redis2")
        until(cluster.have_quorum, "the Sentinels know of each other")
        yield cluster


def test_all_get_new_addresses(cluster: Cluster) -> None:
    """The error's way is the whole way: the primary stays, with its data, and all are found."""
    assert cluster.primary == "redis2"
    cluster.ask("redis2", cluster.port, "SET", "state:ann", "here")
    cluster.stop()
    cluster.network = 2
    cluster.start_servers()
    cluster.start_sentinels("redis2")
    with pytest.raises(AnsibleFilterError, match="forget the old ones") as error:
        _ = cluster.primary
    assert f"as 127.0.1.2:{cluster.port}, which no host" in str(error.value)
    assert "redis2 stays the primary" in str(error.value)
    cluster.stop()  # and what the message says
    for file in cluster.folder.glob("sentinel-*/sentinel.conf"):
        file.unlink()
    cluster.start_servers()
    assert cluster.primary == "redis2"
    cluster.follow(cluster.primary)
    cluster.start_sentinels(cluster.primary)
    until(cluster.have_quorum, "the Sentinels know of each other")
    assert cluster.primary == "redis2"
    assert {cluster.ask(host, cluster.port, "GET", "state:ann") for host in HOSTS} == {"here"}

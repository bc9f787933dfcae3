"""The file of the guides, unmodified, on a cluster: the tests follow each other."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import pytest
from websockets.sync.client import connect

from lab.waiting import until

if TYPE_CHECKING:
    from molecule.conftest import Cluster

TUTORIAL = Path(__file__).parents[3] / "examples" / "tutorial"
CLIENTS = 40
STATE = {"client_id": "kept"}
SECRET = 'a-secret-of-$this-"test"'  # noqa: S105 - of the inventory


class Crowd:
    """Clients with a cookie jar each, which send, and reconnect whenever they are disconnected."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.nodes: dict[int, str] = {}
        self.acknowledged: Counter[int] = Counter()
        self.moves: Counter[int] = Counter()
        self.closed: Counter[int | None] = Counter()
        self.refused: list[str] = []
        self._ends = threading.Event()

    def run(self) -> None:
        """Run all of them until `end`."""
        asyncio.run(self._run())

    def end(self) -> None:
        """Send all of them home."""
        self._ends.set()

    @property
    def is_complete(self) -> bool:
        """Tell whether each is connected and has been answered."""
        return len(self.nodes) == CLIENTS

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._client(number))

    async def _client(self, number: int) -> None:
        jar = aiohttp.CookieJar(unsafe=True)  # of an address, not of a name
        async with aiohttp.ClientSession(cookie_jar=jar) as session:
            while not self._ends.is_set():
                try:
                    socket = await session.ws_connect(f"{self.url}/ws")
                except aiohttp.ClientError as error:
                    self.refused.append(repr(error))
                else:
                    with suppress(ConnectionResetError):  # it went while a message was sent
                        await self._talk(number, socket)
                    await socket.close()
                    self.closed[socket.close_code] += 1
                self.nodes.pop(number, None)
                self.moves[number] += not self._ends.is_set()
                await asyncio.sleep(random.random())  # noqa: S311 - as clients do

    async def _talk(self, number: int, socket: aiohttp.ClientWebSocketResponse) -> None:
        while not self._ends.is_set():
            await socket.send_json({"client_id": f"client-{number}"})
            async for message in socket:
                answer = json.loads(message.data)
                if answer.get("type") == "ack":
                    self.nodes[number] = answer["hostname"]
                    self.acknowledged[number] += 1
                    break
            else:
                return
            await asyncio.sleep(0.5)


@contextmanager
def crowd(cluster: Cluster) -> Iterator[Crowd]:
    """Have clients connected all the while; at the end all are still served."""
    clients = Crowd(cluster.url)
    thread = threading.Thread(target=clients.run)
    thread.start()
    try:
        until(lambda: clients.is_complete, "all are in")
        yield clients
        until(lambda: clients.is_complete, "all are in again")
        before = clients.acknowledged.copy()
        until(lambda: all(clients.acknowledged[n] > before[n] for n in before), "answers")
    finally:
        clients.end()
        thread.join(timeout=30)
    assert not thread.is_alive()


def health(cluster: Cluster) -> dict[str, Any]:
    """Return what the application says of itself, by way of the balancer."""
    answer: dict[str, Any] = httpx.get(f"{cluster.url}/health").raise_for_status().json()
    return answer


def write_state(cluster: Cluster) -> None:
    """Be a client whose last message the application keeps in Redis."""
    with connect(f"{cluster.url.replace('http', 'ws', 1)}/ws") as client:
        client.send(json.dumps(STATE))
        client.recv(timeout=10)


def has_state(cluster: Cluster) -> bool:
    """Tell whether a node answers with the state of `write_state`; without Redis none does."""
    answer = httpx.get(f"{cluster.url}/state/{STATE['client_id']}")
    return answer.is_success and answer.json() == STATE


def variant(folder: Path, line: str) -> Path:
    """Return a source of the application with one more line."""
    copy = Path(shutil.copytree(TUTORIAL, folder / "variant"))
    with (copy / "main.py").open("a") as file:
        file.write(f"{line}\n")
    return copy


def test_the_application_has_the_paths_of_the_clients(cluster: Cluster) -> None:
    """It answers by way of the balancer and has its Redis; the cluster's own are elsewhere."""
    assert health(cluster) | {"hostname": "", "connections": 0} == {
        "status": "healthy",
        "hostname": "",
        "connections": 0,
        "redis_connected": True,
    }
    assert httpx.get(f"{cluster.url}/metrics").status_code == 404
    assert httpx.get(f"{cluster.url}/openapi.json").json()["info"]["title"] == "FastAPI"


async def test_a_client_comes_back_to_its_node(cluster: Cluster) -> None:
    """By the cookie on the handshake's own answer, each time."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        nodes = Counter[str]()
        for _ in range(20):
            async with session.ws_connect(f"{cluster.url}/ws") as socket:
                await socket.send_json({"client_id": "sticky"})
                nodes[(await socket.receive_json(timeout=10))["hostname"]] += 1
        assert list(nodes.values()) == [20]
        (cookie,) = jar
        assert cookie.value.startswith(f"{next(iter(nodes))}-")


def test_what_is_kept_in_redis_is_there_on_all_nodes(cluster: Cluster) -> None:
    """The state that a client left on its node is read on each of the others."""
    write_state(cluster)
    nodes = set()
    for _ in range(10):
        with httpx.Client() as visitor:  # without a cookie yet
            assert visitor.get(f"{cluster.url}/state/kept").json() == STATE
            nodes.add(visitor.get(f"{cluster.url}/health").json()["hostname"])
    assert nodes == {"node1", "node2"}


@pytest.mark.parametrize("name", ["node1", "node2"])
def test_it_runs_as_the_variables_say(cluster: Cluster, name: str) -> None:
    """Its environment is its own alone; folder, memory and sandbox are systemd's business."""
    file = cluster.host(name).file("/etc/wsfleet/app.env")
    assert (file.user, file.group, file.mode) == ("root", "wsfleet", 0o640)
    process = cluster.on(name, "systemctl show --property MainPID --value wsnode@8001")
    environment = cluster.on(name, f"tr '\\0' '\\n' < /proc/{process}/environ").splitlines()
    assert f"SECRET={SECRET}" in environment
    assert "REDIS_URL=redis://redis:6379/0" in environment
    assert "password" not in cluster.on(name, "cat /etc/wsfleet/app.env")
    show = "systemctl show --property MemoryMax --property MemoryDenyWriteExecute wsnode@8001"
    assert set(cluster.on(name, show).splitlines()) == {
        f"MemoryMax={2**30}",
        "MemoryDenyWriteExecute=no",
    }
    for path, result in {"/var/lib/tutorial/x": 0, "/var/lib/x": 1}.items():
        assert cluster.host(name).run(f"nsenter -t {process} -m touch {path}").rc == result


def test_the_command_before_a_release_ran_once(cluster: Cluster) -> None:
    """On one node, with the release's Python, by the node's user."""
    file = "/var/lib/tutorial/before"
    found = [cluster.host(name).file(file) for name in ("node1", "node2")]
    (done,) = (file for file in found if file.exists)
    assert (done.user, done.content_string) == ("wsfleet", "done\n")


def test_a_second_run_changes_nothing_and_shows_no_secret(cluster: Cluster) -> None:
    """Nor does what is shown when a secret is another one."""
    assert cluster.changed(cluster.play("site.yml", "--diff")) == []
    environment = json.dumps({"wsnode_app_environment": {"SECRET": "another-secret"}})
    shown = cluster.play("site.yml", "--check", "--diff", "-v", "-e", environment)
    assert len(cluster.changed(shown)) == 2
    assert SECRET not in shown
    assert 'another-secret"' not in shown.replace(environment, "")


def test_locks_that_clash_cost_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """The two versions are named, and no host has been changed."""
    source = variant(tmp_path, "")
    lock = source / "requirements.lock"
    lock.write_text(lock.read_text().replace("redis==8.1.0", "redis==5.0.1"))
    result = cluster.playbook("site.yml", f"-ewsnode_app_source={source}")
    assert result.returncode != 0
    assert "redis: 5.0.1 there, 8.1.0 in app/requirements.lock" in result.stdout
    assert cluster.changed(result.stdout) == []


def test_a_node_is_added_and_nobody_is_dropped(cluster: Cluster, with_node3: str) -> None:
    """One with another Debian; new clients come to it as well."""
    with crowd(cluster) as clients:
        cluster.play("site.yml", with_node3)
        assert not clients.moves
        assert not clients.refused
    with crowd(cluster) as clients:
        assert set(clients.nodes.values()) == {"node1", "node2", "node3"}


def test_an_update_moves_each_client_and_refuses_none(cluster: Cluster, with_node3: str) -> None:
    """A changed variable rolls the nodes; clients are sent away with 1012, and come in at once."""
    with crowd(cluster) as clients:
        environment = json.dumps({"wsnode_app_environment": {"SECRET": "the next one"}})
        cluster.play("playbooks/rolling_update.yml", with_node3, "-e", environment)
        assert clients.refused == []
        assert set(clients.closed) == {1012}
        assert set(clients.moves) == set(range(CLIENTS))
        assert max(clients.moves.values()) <= 3  # each node is restarted once
    cluster.well()


def test_a_killed_process_costs_its_clients_one_reconnect(cluster: Cluster) -> None:
    """Those of other nodes notice nothing."""
    with crowd(cluster) as clients:
        there = [number for number, node in clients.nodes.items() if node == "node1"]
        assert there
        cluster.on("node1", "systemctl kill --signal KILL wsnode@8001")
        until(lambda: set(clients.moves) == set(there), "its clients have gone")
        assert clients.refused == []
    cluster.well()


def primaries(cluster: Cluster) -> list[str]:
    """Return the hosts whose Redis is a primary; one that has just started may be the second."""
    ask = "redis-cli-auth INFO replication || true"  # one of them may be stopped
    return [name for name in ("lb1", "node1", "node2") if "role:master" in cluster.on(name, ask)]


def all_take_clients(cluster: Cluster) -> bool:
    """Tell whether the balancer sends clients to every node."""
    _, output = cluster.run("status", "--json")  # it is not well while a replica is away
    balancers = json.loads(output or "{}").get("loadbalancers", [])
    servers = [server for balancer in balancers for server in balancer["servers"]]
    return bool(servers) and all(server["status"] == "UP" for server in servers)


def test_redis_fails_over_and_the_application_goes_on(cluster: Cluster) -> None:
    """By the same name, without a restart; what was written before is there."""
    write_state(cluster)
    (before,) = primaries(cluster)
    processes = [
        cluster.on(name, "systemctl show --property MainPID --value wsnode@8001")
        for name in ("node1", "node2")
    ]
    cluster.on(before, "systemctl kill --signal KILL redis-server")
    cluster.on(before, "systemctl stop redis-server")
    try:
        until(lambda: {*primaries(cluster)} - {before}, "another primary")
        until(lambda: all_take_clients(cluster), "all nodes take clients")
        until(lambda: has_state(cluster), "the application has its state")
        with crowd(cluster) as clients:
            pass
        assert clients.refused == []
    finally:
        cluster.on(before, "systemctl start redis-server")
    until(lambda: before not in primaries(cluster), "the old one follows", 60)
    cluster.well()
    assert processes == [
        cluster.on(name, "systemctl show --property MainPID --value wsnode@8001")
        for name in ("node1", "node2")
    ]


@pytest.mark.parametrize("line", ["raise RuntimeError('at import')", "del app"])
def test_a_bad_release_is_put_back(
    cluster: Cluster, with_node3: str, tmp_path: Path, line: str
) -> None:
    """It ends at the first node, and says what the application said; all clients are served."""
    release = cluster.on("node1", "basename $(readlink /opt/wsfleet/current)")
    with crowd(cluster) as clients:
        result = cluster.playbook(
            "playbooks/rolling_update.yml",
            with_node3,
            f"-ewsnode_app_source={variant(tmp_path, line)}",
        )
        assert result.returncode != 0
        said = " ".join(result.stdout.split())
        assert f"and is back at releases/{release}" in said
        assert clients.refused == []
    for name in ("node1", "node2"):
        assert cluster.on(name, "basename $(readlink /opt/wsfleet/current)") == release
    cluster.well()

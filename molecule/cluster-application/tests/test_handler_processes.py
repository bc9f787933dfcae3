"""The chat instead of the guides' file, with handlers in processes of their own: in this order."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import pytest
import yaml
from wsfleet.redis import key_names
from yarl import URL

from lab.waiting import until

if TYPE_CHECKING:
    from molecule.conftest import Cluster

Variables = tuple[str, str]
Deployment = Callable[[Path, int], Variables]

CHAT = Path(__file__).parents[3] / "examples" / "chat"
NODES = ("node1", "node2", "node3")
UNITS = ("wsfleet-app@1.service", "wsfleet-app@2.service")
HANDLERS = '''

import os
import time


@realtime.on_rpc("process")
async def process(event: Rpc) -> int:
    """Return the process of the handlers."""
    return os.getpid()


@realtime.on_rpc("block")
async def block(event: Rpc[float]) -> None:
    """Block the event loop."""
    time.sleep(event.data)
'''
"""Handlers that the tests add to the chat; the second one is a defect."""


def source(folder: Path, more: str) -> Path:
    """Return a source of the chat with more code."""
    copy = Path(shutil.copytree(CHAT, folder / "chat"))
    with (copy / "chat" / "app.py").open("a") as file:
        file.write(more)
    return copy


@pytest.fixture(scope="module")
def variables(example: Callable[..., Variables]) -> Deployment:
    """Return a function that gives the arguments of a playbook for a source of the chat."""
    config = yaml.safe_load((CHAT / "wsfleet.yml").read_text())
    return lambda source, processes: example(
        config,
        wsnode_app="chat.app:realtime",
        wsnode_app_source=str(source),
        wsnode_app_processes=processes,
        wsnode_app_check="/",
        wsnode_app_environment={"CHAT_DATABASE": "/var/lib/tutorial/chat.db"},
    )


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the source of the chat with the handlers of these tests."""
    return source(tmp_path_factory.mktemp("source"), HANDLERS)


class Member:
    """Somebody in the chat, on one connection."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.heard: list[dict[str, Any]] = []
        self._socket = socket
        self._number = 0

    async def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command, and return its reply; pings are answered, and pushes kept, meanwhile."""
        self._number += 1
        await self._socket.send_json({"id": self._number, **command})
        async for message in self._socket:
            for line in message.data.splitlines():
                reply: dict[str, Any] = json.loads(line)
                if not reply:
                    await self._socket.send_str("{}")
                self.heard.append(reply.get("push", {}))
                if reply.get("id") == self._number:
                    return reply
        raise AssertionError(f"the connection ended with {self._socket.close_code}")

    async def processes(self) -> set[int]:
        """Return the processes that answer calls one after the other; each must answer."""
        replies = [await self.ask(rpc={"method": "process"}) for _ in range(20)]
        return {reply["rpc"]["data"] for reply in replies}


def sticky_cookie(cluster: Cluster, node: str) -> dict[str, str]:
    """Return the cookie that leads to a node, by name."""
    name = cluster.fleet["cookie"]
    for _ in range(100):  # the balancer chooses
        cookie = httpx.get(cluster.url, verify=cluster.trusted).cookies[name]
        if cookie.startswith(node):
            return {name: cookie}
    raise AssertionError(f"the balancer never chose {node}")


@asynccontextmanager
async def member(cluster: Cluster, name: str, cookie: dict[str, str]) -> AsyncIterator[Member]:
    """Sign in on the node of a sticky cookie, and connect."""
    jar = aiohttp.CookieJar(unsafe=True)  # of an address, not of a name
    jar.update_cookies(cookie, URL(cluster.url))
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        async with session.post(f"{cluster.url}/api/login", json={"name": name}) as answer:
            assert answer.ok
        async with session.ws_connect(f"{cluster.url}/connection/websocket") as socket:
            one = Member(socket)
            assert "connect" in await one.ask(connect={})
            yield one


def release_of(cluster: Cluster, name: str) -> str:
    """Return the release that a host has in use; its name ends with the host's Python."""
    return cluster.on(name, "basename $(readlink /opt/wsfleet/current)")


def main_pid(cluster: Cluster, name: str, unit: str) -> str:
    """Return the process of a unit."""
    return cluster.on(name, f"systemctl show --property MainPID --value {unit}")


def test_each_host_runs_the_handlers_beside_its_nodes(
    cluster: Cluster, with_node3: str, variables: Deployment, chat: Path
) -> None:
    """Two processes, now and after a reboot, of the release and in the sandbox of the nodes."""
    deploy = (with_node3, *variables(chat, 2))
    cluster.play("playbooks/rolling_update.yml", *deploy)
    assert cluster.changed(cluster.play("playbooks/rolling_update.yml", *deploy)) == []
    for name in NODES:
        for unit in (*UNITS, "wsfleet-app.socket"):
            service = cluster.host(name).service(unit)
            assert service.is_running, (name, unit)
            assert service.is_enabled, (name, unit)
        process = main_pid(cluster, name, UNITS[0])
        status = cluster.on(name, f"cat /proc/{process}/status")
        assert "CapEff:\t0000000000000000" in status
        show = f"systemctl show --property MemoryMax --value {UNITS[0]}"
        assert cluster.on(name, show) == str(2**30)
        assert cluster.host(name).run(f"nsenter -t {process} -m touch /var/lib/x").rc != 0
    cluster.well()


def test_status_knows_a_process_that_does_not_run(cluster: Cluster, tmp_path: Path) -> None:
    """It is named, with exit code 1, until it runs again."""
    document = json.loads(cluster.fleet_file.read_text())
    document["handlers"] = [f"{name}-app-{number}" for name in NODES for number in (1, 2)]
    path = tmp_path / "fleet.json"  # as site.yml would write it with this application
    path.write_text(json.dumps(document))
    problem = "handlers node1-app-1: the process does not run"
    status = ("status", "--json", "--fleet", str(path))
    until(lambda: cluster.run(*status)[0] == 0, "all processes have sent a heartbeat")
    cluster.on("node1", "systemctl stop wsfleet-app@1.service")
    try:
        code, output = cluster.run(*status)
        assert (code, json.loads(output)["problems"]) == (1, [problem])
    finally:
        cluster.on("node1", "systemctl start wsfleet-app@1.service")
    until(lambda: cluster.run(*status)[0] == 0, "all processes have sent a heartbeat")


async def test_a_handler_publishes_to_the_cluster(cluster: Cluster) -> None:
    """A member on another host hears what a handler publishes."""
    one, two = sticky_cookie(cluster, "node1"), sticky_cookie(cluster, "node2")
    async with member(cluster, "ada", one) as ada, member(cluster, "ben", two) as ben:
        assert "subscribe" in await ben.ask(subscribe={"channel": "room:kitchen"})
        rename = {"room": "kitchen", "title": "The kitchen"}
        reply = await ada.ask(rpc={"method": "room.rename", "data": rename})
        renamed = {"name": "kitchen", "title": "The kitchen"}
        assert reply["rpc"]["data"] == renamed
        for _ in range(100):
            assert await ben.processes()
            if said := [push["pub"]["data"] for push in ben.heard if "pub" in push]:
                break
        assert said == [{"renamed": renamed}]


async def test_a_killed_process_costs_no_connection(cluster: Cluster) -> None:
    """The next calls on the same connection are answered, and systemd starts another process."""
    async with member(cluster, "ada", sticky_cookie(cluster, "node1")) as ada:
        running = {main_pid(cluster, "node1", unit) for unit in UNITS}
        node = main_pid(cluster, "node1", "wsnode@8001")
        killed = (await ada.processes()).pop()
        assert str(killed) in running
        cluster.on("node1", f"kill -KILL {killed}")
        assert killed not in await ada.processes()
        until(
            lambda: all(
                main_pid(cluster, "node1", unit) not in ("0", str(killed)) for unit in UNITS
            ),
            "another process runs",
        )
        assert await ada.processes()
        assert main_pid(cluster, "node1", "wsnode@8001") == node


async def test_a_blocked_handler_costs_its_own_call(cluster: Cluster) -> None:
    """It gets the temporary error 100; the connection stays, and all others are answered."""
    before = {main_pid(cluster, "node1", unit) for unit in UNITS}
    one = sticky_cookie(cluster, "node1")
    async with member(cluster, "ada", one) as ada, member(cluster, "ben", one) as ben:
        reply = await ada.ask(rpc={"method": "block", "data": 600})
        assert (reply["error"]["code"], reply["error"]["temporary"]) == (100, True)
        assert await ada.processes()
        assert await ben.processes()
    until(
        lambda: (
            "0" not in (now := {main_pid(cluster, "node1", unit) for unit in UNITS})
            and len(now - before) == 1
        ),
        "the watchdog has replaced the blocked process",
    )


def test_a_release_whose_handlers_do_not_start_is_put_back(
    cluster: Cluster, with_node3: str, variables: Deployment, tmp_path: Path
) -> None:
    """The host's nodes are not restarted, and other hosts not touched."""
    releases = [release_of(cluster, name) for name in NODES]
    before = [main_pid(cluster, name, "wsnode@8001") for name in NODES]
    bad = source(tmp_path, "\nraise RuntimeError('at import')\n")
    result = cluster.playbook("playbooks/rolling_update.yml", with_node3, *variables(bad, 2))
    assert result.returncode != 0
    said = " ".join(result.stdout.split())
    assert f"and is back at releases/{releases[0]}" in said
    assert "at import" in said
    assert [main_pid(cluster, name, "wsnode@8001") for name in NODES] == before
    assert [release_of(cluster, name) for name in NODES] == releases
    for name in NODES:
        assert all(cluster.host(name).service(unit).is_running for unit in UNITS)
    cluster.well()


async def test_one_process_fewer_and_none(
    cluster: Cluster, with_node3: str, variables: Deployment, chat: Path
) -> None:
    """The surplus one stops; without any the units go, and the nodes run the handlers."""
    cluster.play("playbooks/rolling_update.yml", with_node3, *variables(chat, 1))
    held = f"redis-cli-auth EXISTS '{key_names.REBALANCE_HELD}'"
    assert cluster.on("lb1", held) == "0"  # no client has moved
    for name in NODES:
        assert cluster.host(name).service(UNITS[0]).is_running
        assert not cluster.host(name).service(UNITS[1]).is_running
    none = (with_node3, *variables(chat, 0))
    planned = cluster.play("playbooks/rolling_update.yml", "--check", "--diff", *none)
    assert len(cluster.changed(planned)) == len(NODES)
    files = "/etc/systemd/system/wsfleet-app@.service /etc/systemd/system/wsfleet-app.socket"
    cluster.on("node1", f"cp {files} /root")
    cluster.play("playbooks/rolling_update.yml", *none)
    # As an interrupted run leaves it: the nodes are restarted, and the processes still run.
    cluster.on(
        "node1",
        "mv /root/wsfleet-app* /etc/systemd/system && systemctl daemon-reload"
        f" && systemctl enable --now wsfleet-app.socket {UNITS[0]}",
    )
    cluster.play("playbooks/rolling_update.yml", *none)
    assert cluster.changed(cluster.play("playbooks/rolling_update.yml", *none)) == []
    for name in NODES:
        assert cluster.on(name, "systemctl list-units --no-legend 'wsfleet-app*'") == ""
        assert cluster.on(name, "ls /etc/systemd/system | grep wsfleet-app || true") == ""
        assert not cluster.host(name).file("/run/wsfleet-app.sock").exists
    async with member(cluster, "ada", sticky_cookie(cluster, "node1")) as ada:
        node = main_pid(cluster, "node1", "wsnode@8001")
        assert await ada.processes() == {int(node)}
    cluster.well()

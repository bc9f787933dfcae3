"""The whole chain over ssh: clients, a balancer, nodes, Redis; a node dies."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import pytest
import redis.asyncio
import websockets

from lab.waiting import settled, until

if TYPE_CHECKING:
    from molecule.conftest import Cluster

INVENTORY = Path(__file__).parents[1] / "inventory"
FLEET = json.loads((INVENTORY / ".fleet.json").read_text())
URL: str = FLEET["base_url"]
WS = URL.replace("http", "ws") + "/ws"
BALANCERS = "molecule/role-haproxy/converge.yml"
ONLY_BALANCERS = ("--limit", "loadbalancers")
FIREWALL = ("molecule/cluster-end-to-end/firewall.yml", "--limit", "node1")


@pytest.fixture
async def store() -> AsyncIterator[Any]:
    """The cluster's Redis, answers decoded."""
    async with redis.asyncio.Redis.from_url(FLEET["redis_url"], decode_responses=True) as client:
        yield client


async def exchange(client: Any, message: Any) -> dict[str, Any]:
    """Send one message with `websockets` and read on to its ack."""
    await client.send(json.dumps(message))
    while True:
        answer: dict[str, Any] = json.loads(await asyncio.wait_for(client.recv(), 10))
        if answer["type"] == "ack":
            return answer


class Browser:
    """A client with a cookie jar, written only with aiohttp."""

    def __init__(self, session: aiohttp.ClientSession, name: str) -> None:
        self.session = session
        self.name = name

    async def visit(self) -> str:
        """Connect, exchange one message, leave; gives the node that answered."""
        async with self.session.ws_connect(WS) as ws:
            await ws.send_json({"type": "visit", "client_id": self.name})
            while True:
                answer = await ws.receive_json(timeout=10)
                if answer["type"] == "ack":
                    assert answer["client_id"] == self.name
                    hostname: str = answer["hostname"]
                    return hostname

    @property
    def cookie(self) -> str:
        """The sticky cookie's value in the jar, without the date that HAProxy adds."""
        jar = {cookie.key: cookie.value for cookie in self.session.cookie_jar}
        return jar["WSNODE"].split("|")[0]


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """A browser that takes cookies from an address, too."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield Browser(session, f"browser-{time.time_ns()}")


async def test_a_client_with_websockets_alone() -> None:
    """Connect, send one JSON text, read one JSON answer."""
    async with websockets.connect(WS) as client:
        await client.send(
            json.dumps({"type": "test", "client_id": "guide", "timestamp": time.time()})
        )
        answer = json.loads(await client.recv())
    assert answer["hostname"] in FLEET["nodes"]
    assert answer["timestamp"]


async def test_the_cookie_is_set_on_the_101_for_one_day() -> None:
    """The handshake's own answer carries it: no request before is needed."""
    async with websockets.connect(WS) as client:
        assert client.response is not None
        cookie = client.response.headers["Set-Cookie"]
        answer = await exchange(client, {"type": "x"})
    assert cookie.startswith(f"WSNODE={answer['hostname']}")
    assert "Max-Age=86400" in cookie
    assert "HttpOnly" in cookie


async def test_a_browser_comes_back_to_its_node(browser: Browser) -> None:
    """100 visits out of 100 end at the node of the first."""
    visits = Counter([await browser.visit() for _ in range(100)])
    assert list(visits.values()) == [100]
    assert browser.cookie in visits


async def test_fifty_clients_at_once(store: Any) -> None:
    """Fifty clients send and hear at the same time, on all nodes; Redis knows each of them."""

    async def client(number: int) -> tuple[str, int]:
        async with websockets.connect(WS) as connection:
            answers = []
            for count in range(3):
                message = {"type": "load", "client_id": f"fifty-{number}", "count": count}
                answers.append(await exchange(connection, message))
                await asyncio.sleep(0.5)
            assert await store.get(f"connection:fifty-{number}") == answers[0]["hostname"]
            state = json.loads(await store.get(f"state:fifty-{number}"))
            assert state["count"] == 2
            return answers[0]["hostname"], len(answers)

    results = await asyncio.gather(*(client(number) for number in range(50)))
    assert {hostname for hostname, _ in results} == set(FLEET["nodes"])
    assert sum(count for _, count in results) == 150


async def test_a_message_is_heard_on_the_other_node() -> None:
    """Clients of different nodes hear each other."""
    async with AsyncExitStack() as stack:
        by_node: dict[str, Any] = {}
        while len(by_node) < len(FLEET["nodes"]):
            client = await stack.enter_async_context(websockets.connect(WS))
            by_node[(await exchange(client, {"type": "hello"}))["hostname"]] = client
        sender, *others = by_node.values()
        await exchange(sender, {"type": "greeting", "to": "all"})
        for other in others:
            while (
                json.loads(await asyncio.wait_for(other.recv(), 10))["data"]["type"] != "greeting"
            ):
                pass


async def test_http_through_the_balancer() -> None:
    """/health is public, /metrics is not."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{URL}/health") as response:
            health = await response.json()
        async with session.get(f"{URL}/metrics") as response:
            assert response.status == 404
    assert health["status"] == "healthy"
    assert health["redis_connected"] is True
    assert {
        "connections",
        "memory_usage",
        "cpu_usage",
        "hostname",
        "version",
        "uptime",
    } <= health.keys()


def test_the_machines_are_made_once(cluster: Cluster) -> None:
    """A second run, as for one host more, replaces no VM that is there."""
    assert cluster.changed(cluster.play("playbooks/local/create.yml")) == []


@pytest.mark.parametrize(
    ("name", "private", "public"),
    [("lb1", 8404, {22, 80, 443}), ("node1", 9001, {22}), ("redis1", 6379, {22})],
)
def test_a_stranger_reaches_what_is_public_alone(
    cluster: Cluster, name: str, private: int, public: set[int]
) -> None:
    """Of all ports that are listened on, one in no group reaches those of clients, and ssh."""
    sockets = cluster.on(name, "ss --no-header --listening --tcp --numeric").splitlines()
    listening = {int(line.split()[3].rpartition(":")[2]) for line in sockets}
    assert listening >= public | {private}
    address = cluster.address(name)
    knock = "(timeout 2 bash -c '< /dev/tcp/{}/{}' && echo {}) 2> /dev/null &"
    knocks = " ".join(knock.format(address, port, port) for port in sorted(listening))
    reached = {int(port) for port in cluster.on("stranger", f"{knocks} wait").split()}
    assert reached == public


@pytest.mark.parametrize(
    "command",
    [
        "systemctl restart nftables",
        "systemctl reload nftables",
        "systemctl stop nftables",
        "systemctl start nftables",
        "nft flush ruleset",
        "nft delete table inet wsfleet",
        "systemctl kill --signal KILL wsfleet-firewall",
        "systemctl restart wsfleet-firewall",
    ],
)
def test_the_rules_hold_as_long_as_their_unit_is_active(cluster: Cluster, command: str) -> None:
    """The rules return if another program empties the tables, or if their own program is killed."""
    rules = "nft list chain inet wsfleet input"
    before = cluster.on("node1", rules)
    cluster.on("node1", command)
    until(lambda: cluster.host("node1").run(rules).stdout.strip() == before, "they hold")
    until(
        lambda: cluster.host("node1").run("systemctl is-active wsfleet-firewall").rc == 0,
        "their unit is active",
    )


def test_the_firewall_can_be_opened(cluster: Cluster) -> None:
    """Stopping its unit is how, and it stays open until the unit is started."""
    cluster.on("node1", "systemctl stop wsfleet-firewall")
    try:
        assert cluster.host("node1").run("nft list table inet wsfleet").rc != 0
    finally:
        cluster.on("node1", "systemctl start wsfleet-firewall")
    cluster.on("node1", "nft list table inet wsfleet")


def test_rules_change_after_an_interrupted_run(cluster: Cluster) -> None:
    """It has left the timer of its rollback: the next run replaces it, and then cancels its own."""
    undo, rule = "wsfleet-firewall-undo", "tcp dport 10050 accept"
    rules = "nft list chain inet wsfleet input"
    cluster.on("node1", f"systemd-run --quiet --unit={undo} --on-active=3600 true")
    cluster.play(*FIREWALL, "-e", json.dumps({"firewall_rules": [rule]}))
    assert rule in cluster.on("node1", rules)
    assert cluster.host("node1").run(f"systemctl is-active {undo}.timer").rc != 0
    cluster.play(*FIREWALL)
    assert rule not in cluster.on("node1", rules)


def test_a_node_does_not_read_what_opens_more(cluster: Cluster) -> None:
    """Its user has the password of its own Redis user, and not that of the command line."""
    for path in ("/etc/wsfleet/fleet.json", "/etc/wsfleet-firewall.nft"):
        assert cluster.host("node1").run(f"runuser -u wsfleet -- cat {path}").rc != 0
    secrets = cluster.on("node1", "cat /etc/wsfleet/wsnode.env")
    assert "rediss://node:" in secrets


def test_a_node_speaks_tls_alone(cluster: Cluster) -> None:
    """Plain HTTP has no answer; the certificate is the host's, by the cluster's CA."""
    for url in FLEET["nodes"].values():
        assert httpx.get(f"{url}/ready", verify=cluster.trusted).status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"{url.replace('https', 'http')}/ready")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/ready")


def haproxy(cluster: Cluster, command: str) -> str:
    """Ask HAProxy's admin socket."""
    ask = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "s.sendall(sys.argv[2].encode() + b'\\n'); print(s.makefile().read())"
    )
    return cluster.on("lb1", f'python3 -c "{ask}" /run/haproxy/admin.sock "{command}"')


def servers(cluster: Cluster) -> dict[str, str]:
    """Return the result of HAProxy's last check of each server."""
    rows = csv.DictReader(io.StringIO(haproxy(cluster, "show stat").removeprefix("# ")))
    return {
        row["svname"]: f"{row['status']} {row['check_status'].removeprefix('* ')}"  # it checks now
        for row in rows
        if row["pxname"] == "nodes" and row["type"] == "2"
    }


def test_the_balancer_speaks_tls_to_the_nodes(cluster: Cluster) -> None:
    """In its file and as it runs, for clients and for checks."""
    assert servers(cluster) == dict.fromkeys(FLEET["nodes"], "UP L7OK")
    states = haproxy(cluster, "show servers state nodes").partition("# ")[2].splitlines()
    rows = csv.DictReader(states, delimiter=" ")
    assert {row["srv_name"] for row in rows if row["srv_use_ssl"] == "1"} == set(FLEET["nodes"])
    lines = cluster.on("lb1", "grep -E '^ +server ' /etc/haproxy/haproxy.cfg").splitlines()
    for line in lines:
        host = line.split()[1].rpartition("-")[0]
        assert line.endswith(
            f"ssl check-ssl verify required ca-file /etc/haproxy/fleet/ca.pem verifyhost {host}"
        )


async def test_a_node_with_a_strangers_certificate_is_taken_out(
    cluster: Cluster, browser: Browser
) -> None:
    """HAProxy sends nobody there, and operators are told; the next run puts the right one back."""
    name, other = FLEET["nodes"]
    host = name.rpartition("-")[0]
    files = "-keyout /etc/wsfleet/tls/host.key -out /etc/wsfleet/tls/host.pem"
    subject = f"-subj /CN={host} -addext subjectAltName=DNS:{host}"
    cluster.on(host, f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 {subject} {files}")
    cluster.on(host, "systemctl restart wsnode@8001")
    await asyncio.to_thread(
        until, lambda: servers(cluster)[name].startswith("DOWN L6"), f"{name} is out"
    )
    assert {await browser.visit() for _ in range(10)} == {other}
    code, output = cluster.run("status", "--json")
    assert code == 1
    assert any(
        text.startswith(f"node {name}: ") and "CERTIFICATE_VERIFY_FAILED" in text
        for text in json.loads(output)["problems"]
    )
    await asyncio.to_thread(cluster.play, "playbooks/rolling_update.yml")
    await asyncio.to_thread(cluster.well)


def test_a_new_ca_is_taken_into_use(cluster: Cluster) -> None:
    """HAProxy is reloaded when the file of CAs changes, and not again."""
    file = Path(FLEET["ca"])
    before, settings = file.read_text(), haproxy(cluster, "show env WSFLEET_SETTINGS")
    file.write_text(f"{before}# and another one\n")
    try:
        cluster.play(BALANCERS, *ONLY_BALANCERS)
        assert haproxy(cluster, "show env WSFLEET_SETTINGS") != settings
    finally:
        file.write_text(before)
    cluster.play(BALANCERS, *ONLY_BALANCERS)
    assert haproxy(cluster, "show env WSFLEET_SETTINGS") == settings
    cluster.well()


async def test_redis_speaks_tls_alone(store: Any) -> None:
    """A client without TLS gets no answer, and a client without the CA sends nothing."""
    assert await store.ping()
    stranger = FLEET["redis_url"].partition("?")[0]
    with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        await redis.asyncio.Redis.from_url(stranger).ping()
    with pytest.raises(redis.ConnectionError):
        await redis.asyncio.Redis.from_url(stranger.replace("rediss", "redis")).ping()


async def test_a_node_dies(cluster: Cluster, browser: Browser, store: Any) -> None:
    """Its client lands on another node with a new cookie, and its state is still there."""
    first = await browser.visit()
    host = first.rpartition("-")[0]
    async with AsyncExitStack() as stack:
        held = await stack.enter_async_context(browser.session.ws_connect(WS))
        await held.send_json({"type": "last words", "client_id": browser.name})
        await held.receive_json(timeout=10)
        assert await store.get(f"connection:{browser.name}") == first
        cluster.on(host, "systemctl kill -s KILL wsnode@8001; systemctl stop wsnode@8001")
        try:
            assert json.loads(await store.get(f"state:{browser.name}"))["type"] == "last words"
            second = await browser.visit()
            assert second != first
            assert browser.cookie == second
            assert await browser.visit() == second

            async def reaped() -> bool:
                keys = [key async for key in store.scan_iter("connection:*")]
                return first not in [await store.get(key) for key in keys]

            await settled(reaped, "the dead node's connection: keys were reaped", 15)
        finally:
            cluster.on(host, "systemctl start wsnode@8001")

    async def back() -> bool:
        async with aiohttp.ClientSession() as session, session.get(f"{URL}/health") as response:
            return bool((await response.json())["hostname"] == first)

    await settled(back, f"{first} serves again")


def test_nothing_acknowledged_is_lost_when_nodes_die(cluster: Cluster) -> None:
    """Unmodified SDKs publish and subscribe while every node is killed once: all is recovered."""
    with cluster.load() as report:
        for name in FLEET["nodes"]:
            host, _, port = name.rpartition("-")
            cluster.on(host, f"systemctl kill -s KILL wsnode@{port}")
            cluster.well()
    assert report["reconnects"] >= 56


async def test_a_full_or_draining_node_is_not_the_last_word(
    cluster: Cluster, browser: Browser
) -> None:
    """A cookie that leads to a node which refuses is served by another, in the same handshake."""
    first = await browser.visit()
    host = first.rpartition("-")[0]
    cluster.on(host, "systemctl stop wsnode@8001")
    try:
        assert await browser.visit() != first
    finally:
        cluster.on(host, "systemctl start wsnode@8001")


def test_the_state_is_consistent_and_all_is_well(cluster: Cluster) -> None:
    """After a death and a return there are no orphans, and the cluster reports itself well."""
    cluster.well()
    code, output = cluster.run("check", "state", "--json")
    assert code == 0, output
    assert json.loads(output)["orphans"] == []


async def test_clients_without_cookies_stick_by_their_address(cluster: Cluster) -> None:
    """With `haproxy_stickiness: source` one address is one node, and no cookie is set."""
    by_address = (*ONLY_BALANCERS, "-e", "haproxy_stickiness=source")
    await asyncio.to_thread(cluster.play, BALANCERS, *by_address)
    try:
        nodes = set()
        for _ in range(20):
            async with websockets.connect(WS) as client:
                assert client.response is not None
                assert "Set-Cookie" not in client.response.headers
                nodes.add((await exchange(client, {"type": "x"}))["hostname"])
        assert len(nodes) == 1
    finally:
        await asyncio.to_thread(cluster.play, BALANCERS, *ONLY_BALANCERS)


async def test_check_mode_changes_nothing(cluster: Cluster) -> None:
    """`--check --diff` on a cluster that is as it should be finds nothing to do."""
    recap = await asyncio.to_thread(cluster.play, "site.yml", "--check", "--diff")
    assert cluster.changed(recap) == []


async def test_rollback_and_back(cluster: Cluster, browser: Browser) -> None:
    """The release before is taken into use node by node, and a second rollback undoes the first."""
    current = cluster.on("node1", "basename $(readlink /opt/wsfleet/current)")
    for host in ("node1", "node2"):  # whose Debian, and so whose release, may differ
        cluster.on(
            host,
            "cd /opt/wsfleet && cp -a $(readlink -f current) releases/before && "
            "ln -sfn releases/before previous",
        )
    await asyncio.to_thread(cluster.play, "playbooks/rollback.yml")
    for host in ("node1", "node2"):
        assert cluster.on(host, "basename $(readlink /opt/wsfleet/current)") == "before"
        started = cluster.on(host, "stat -c %Y /run/wsnode-8001/started")
        assert int(started) >= int(cluster.on(host, "stat -c %Y /opt/wsfleet/current"))
    assert await browser.visit() in FLEET["nodes"]
    await asyncio.to_thread(cluster.play, "playbooks/rollback.yml")
    assert cluster.on("node1", "basename $(readlink /opt/wsfleet/current)") == current

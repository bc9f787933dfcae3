"""The state of a machine after the role `haproxy`; the servers behind it imitate nodes."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

from lab.waiting import until

if TYPE_CHECKING:
    from molecule.conftest import Cluster

testinfra_hosts = ["ansible://loadbalancers"]

ROOT = Path(__file__).parents[3]
ADMIN = "/run/haproxy/admin.sock"
MASTER = "/run/haproxy-master.sock"
SERVERS = "molecule/role-haproxy/servers.yml"
CONVERGE = "molecule/role-haproxy/converge.yml"
NAMES = ("trixie", "bookworm")
RELOADED = "(item=settings other than the servers changed)"


def ask(host: Host, socket: str, command: str) -> str:
    """Send one command to a HAProxy socket."""
    code = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "s.sendall(sys.argv[2].encode()+b'\\n'); s.shutdown(1); "
        "print(b''.join(iter(lambda: s.recv(65536), b'')).decode())"
    )
    return host.check_output(f'python3 -c "{code}" {socket} "{command}"')


def get(host: Host, url: str) -> str:
    """Status and body of a page, as seen on the machine."""
    code = (
        "import sys,http.client as h,urllib.parse as p; u=p.urlsplit(sys.argv[1]); "
        "c=h.HTTPConnection(u.netloc, timeout=5); c.request('GET', u.path); r=c.getresponse(); "
        "print(r.status, r.read().decode())"
    )
    return host.check_output(f'python3 -c "{code}" {url}')


def address_of(host: Host) -> str:
    """Where clients connect to."""
    address: str = host.ansible.get_variables()["ansible_host"]
    return address


def workers(host: Host) -> set[int]:
    """The processes that serve."""
    return {process.pid for process in host.process.filter(comm="haproxy", user="haproxy")}


def answer(host: Host, cookie: str = "") -> tuple[int, str, str]:
    """Status, body and new cookie, as it is set, of an answer through the balancer."""
    with closing(http.client.HTTPConnection(address_of(host), timeout=5)) as connection:
        connection.request("GET", "/health", headers={"Cookie": f"WSNODE={cookie}"})
        got = connection.getresponse()
        new = (got.headers["Set-Cookie"] or "").removeprefix("WSNODE=")
        return got.status, got.read().decode(), new.split(";")[0]


def body(host: Host, cookie: str = "") -> tuple[int, str, str]:
    """The same, the new cookie without its dates."""
    status, text, new = answer(host, cookie)
    return status, text, new.split("|")[0]


def dated(host: Host, name: str) -> str:
    """A server's cookie as a browser has it: one without dates is set again, with maxlife."""
    _, _, issued = answer(host)
    return f"{name}|{issued.partition('|')[2]}"


def trust(ca: Path = ROOT / ".cache" / "vms" / "ca.pem") -> ssl.SSLContext:
    """Return the TLS context of a client: it trusts the CA of the local VMs."""
    return ssl.create_default_context(cafile=ca)


class WebSocket:
    """One client's WebSocket: after the handshake, bytes there and back."""

    def __init__(self, host: Host, cookie: str = "", tls: ssl.SSLContext | None = None) -> None:
        self._socket = socket.create_connection((address_of(host), 443 if tls else 80), timeout=5)
        if tls:
            self._socket = tls.wrap_socket(self._socket, server_hostname=address_of(host))
        self._socket.sendall(
            b"GET /ws HTTP/1.1\r\nHost: balancer\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Cookie: WSNODE=%s\r\n\r\n" % cookie.encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            data = self._socket.recv(1000)
            assert data, head
            head += data
        self.status = int(head.split()[1])
        self.headers = head.decode()

    def lives(self) -> bool:
        """Whether it was let in, and what is sent comes back."""
        assert self.status == 101, self.headers
        self._socket.sendall(b"there")
        return self._socket.recv(1000) == b"there"

    def close(self) -> None:
        """Go."""
        self._socket.close()


def start_nodes(host: Host) -> None:
    """Start three nodes on a balancer, unless they run, and wait until they listen."""
    source = (Path(__file__).parent / "node.py").read_bytes()
    host.check_output(
        f"echo {base64.b64encode(source).decode()} | base64 -d > /run/node.py\n"
        "for port in 9001 9002 9003; do\n"
        "    systemctl is-active --quiet node-$port ||\n"
        "        systemd-run --quiet --unit=node-$port python3 /run/node.py $port\n"
        "    for listening in $port 1$port; do\n"
        '        timeout 5 sh -c "until ss -ltn | grep --quiet :$listening; do sleep 0.1; done"\n'
        "    done\n"
        "done"
    )


@pytest.fixture
def balancers(cluster: Cluster) -> list[Host]:
    """Both balancers: a test that plays does it for both at once."""
    return [cluster.host(name) for name in NAMES]


@pytest.fixture
def become(balancers: list[Host], cluster: Cluster) -> Callable[..., str]:
    """Make these the balancers' servers, one list after the other, as a changed inventory would."""
    for host in balancers:
        start_nodes(host)

    def run(*events: list[str], **variables: object) -> str:
        extra = json.dumps({"events": events} | variables)
        return cluster.play(SERVERS, "--diff", "-e", extra)

    return run


def at_run_time(host: Host) -> bool:
    """Whether this HAProxy can be told of servers without a reload."""
    return "Version: 3." in ask(host, ADMIN, "show info")


def test_it_runs_and_starts_with_the_machine(host: Host) -> None:
    """The service is up, now and after a reboot; its worker is not root."""
    service = host.service("haproxy")
    assert service.is_running
    assert service.is_enabled
    assert {process.user for process in host.process.filter(comm="haproxy")} == {"root", "haproxy"}
    security = host.check_output("systemd-analyze security --no-pager haproxy")
    assert float(security.rpartition(": ")[2].split()[0]) <= 3.2


def test_the_sockets_are_not_for_everybody(host: Host) -> None:
    """Root and HAProxy's group have the admin socket, root alone the master's."""
    admin, master = host.file(ADMIN), host.file(MASTER)
    assert (admin.user, admin.group, admin.mode) == ("root", "haproxy", 0o660)
    assert (master.user, master.mode) == ("root", 0o600)
    assert "worker" in ask(host, MASTER, "show proc")


def test_servers_are_the_inventorys_nodes_with_their_cookies(host: Host) -> None:
    """Each node process is a server; its cookie is its name."""
    state = ask(host, ADMIN, "show servers state nodes")
    for name in ("trixie-8001", "bookworm-8001"):
        assert f" {name} " in state
        assert f"cookie {name}" in host.file("/etc/haproxy/haproxy.cfg").content_string


def test_without_a_node_clients_get_503(host: Host) -> None:
    """Once the checks have failed there is nobody to serve, and the answer says so at once."""
    for _ in range(20):
        if ask(host, ADMIN, "show stat nodes 4 -1").count("DOWN") >= 2:
            break
        host.check_output("sleep 1")
    address = host.ansible.get_variables()["ansible_host"]
    assert get(host, f"http://{address}/health").startswith("503")


def test_statistics_are_not_public(host: Host) -> None:
    """They are on HAProxy's private port alone."""
    address = host.ansible.get_variables()["ansible_host"]
    assert get(host, f"http://{address}/stats").startswith("503")
    assert "Statistics Report" in get(host, f"http://{address}:8404/stats")
    assert "haproxy_process_" in get(host, f"http://{address}:8404/metrics")


def test_a_wrong_configuration_is_refused(host: Host) -> None:
    """The check that guards each write takes the real file and refuses one with a mistake."""
    assert host.run("haproxy -c -f /etc/haproxy/haproxy.cfg").rc == 0
    host.check_output("sed s/leastconn/leastcon/ /etc/haproxy/haproxy.cfg > /tmp/wrong.cfg")
    assert host.run("haproxy -c -f /tmp/wrong.cfg").rc != 0


def test_a_reload_keeps_serving(host: Host) -> None:
    """A reload starts a new worker, and the port never stops answering."""
    before = ask(host, MASTER, "show proc")
    host.check_output("systemctl reload haproxy && sleep 1")
    assert ask(host, MASTER, "show proc") != before
    assert host.service("haproxy").is_running


A, B, C = "n-9001", "n-9002", "n-9003"


def test_a_failed_reload_is_an_error(
    balancers: list[Host], become: Callable[..., str], cluster: Cluster
) -> None:
    """A used port: each play fails, and prints HAProxy's error."""
    become([A])
    for host in balancers:
        host.check_output("systemd-run --quiet --unit=taken python3 -m http.server 8888")
        host.check_output("timeout 5 sh -c 'until ss -ltn | grep :8888; do sleep 0.1; done'")
    try:
        for _ in range(2):
            extra = json.dumps({"events": [[A]], "haproxy_port": 8888})
            result = cluster.playbook(SERVERS, "-e", extra)
            failures = cluster.failures(result.stdout)
            assert sorted(failures) == sorted(NAMES), result.stdout
            for printed in failures.values():
                assert "haproxy.service does not run with what is configured" in printed
                assert "cannot bind" in printed
            assert all(body(host)[:2] == (200, "9001") for host in balancers)
    finally:
        for host in balancers:
            host.check_output("systemctl stop taken")


def test_more_connections_come_with_more_open_files(
    balancers: list[Host], become: Callable[..., str]
) -> None:
    """Also by a change of the servers alone: a reload could not raise the limit of the process."""
    for variables in ({"haproxy_maxconn": 1000}, {}):
        become([A], **variables)
        for host in balancers:
            maxconn = re.search(r"(?m)^Maxconn: (\d+)$", ask(host, ADMIN, "show info"))
            assert maxconn
            assert (maxconn[1] == "1000") == bool(variables)
            process = host.check_output("systemctl show --property MainPID --value haproxy")
            limits = host.check_output(f"grep 'Max open files' /proc/{process}/limits")
            assert int(limits.split()[4]) == 2 * int(maxconn[1]) + 5000


@pytest.mark.parametrize("playbook", [CONVERGE, SERVERS])
def test_a_limit_that_the_machine_does_not_allow_ends_no_process(
    balancers: list[Host], become: Callable[..., str], cluster: Cluster, playbook: str
) -> None:
    """The role fails before it writes, so the process serves on, and again after a restart."""
    become([A])
    before = [workers(host) for host in balancers]
    extra = json.dumps({"events": [[A]], "haproxy_maxconn": 2_000_000})
    result = cluster.playbook(playbook, "-e", extra)
    failures = cluster.failures(result.stdout)
    assert sorted(failures) == sorted(NAMES), result.stdout
    for printed in failures.values():
        assert "LimitNOFILE=4005000, which is more open files than this machine allows" in printed
        assert "lower the variable that it is computed from (haproxy_maxconn" in printed
    for host, processes in zip(balancers, before, strict=True):
        assert workers(host) == processes
        assert "2000000" not in host.check_output("cat /etc/haproxy/haproxy.cfg")
        host.check_output("systemctl restart haproxy")
        assert body(host)[:2] == (200, "9001")


def test_servers_come_and_go_without_a_reload(
    balancers: list[Host], become: Callable[..., str], cluster: Cluster
) -> None:
    """After ten changes the process is the same, with the right servers; nobody was cut off."""
    become([A])
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(WebSocket(host, A))) for host in balancers]
        assert all(client.lives() for client in clients)
        before = [workers(host) for host in balancers]
        output = become(
            *([A, B], [A], [A, C], [A, B, C], [A, C], [A], [A, B], [A, B, C], [A, C], [A, B, C])
        )
        assert all(client.lives() for client in clients)
        for host, processes in zip(balancers, before, strict=True):
            if at_run_time(host):
                assert workers(host) == processes
                assert len(processes) == 1
    older = [host for host in balancers if not at_run_time(host)]
    assert output.count("cannot add servers") == 10 * len(older)
    for host in balancers:
        for name in (A, B, C):
            assert body(host, cookie=dated(host, name)) == (200, name[2:], "")
        assert body(host)[2] in (A, B, C)
        assert host.run("haproxy -c -f /etc/haproxy/haproxy.cfg").rc == 0
    assert not cluster.changed(become([A, B, C]))


def test_servers_of_all_backends_come_and_go(
    balancers: list[Host], become: Callable[..., str]
) -> None:
    """By a key, with console and static paths: the settings take a reload, servers take none."""
    settings: dict[str, object] = {
        "haproxy_stickiness": "path 1",
        "haproxy_console": True,
        "haproxy_static_paths": ["/static/"],
    }
    become([A], **settings)
    before = [workers(host) for host in balancers]
    become([A, B], [B, C], [A, B, C], **settings)
    for host, processes in zip(balancers, before, strict=True):
        if at_run_time(host):
            assert workers(host) == processes
        address = address_of(host)
        rooms = {number: get(host, f"http://{address}/room{number}") for number in range(32)}
        assert set(rooms.values()) == {f"200 {name[2:]}" for name in (A, B, C)}
        assert get(host, f"http://{address}/console/") == "200 private"
        static = {get(host, f"http://{address}/static/x") for _ in range(9)}
        assert static == set(rooms.values())
        # Another process has the same rooms: the balancers agree.
        host.check_output("systemctl restart haproxy")
        again = {number: get(host, f"http://{address}/room{number}") for number in rooms}
        assert again == rooms


def test_nodes_that_are_not_rolled_are_not_taken_out(
    balancers: list[Host], cluster: Cluster, become: Callable[..., str]
) -> None:
    """HAProxy checks a node of an old release on its one port: the play ends before it changes."""
    become([A, B])
    for host in balancers:
        ask(host, ADMIN, "set server nodes/n-9002 check-port 9002")  # as version 0.1 does
        host.check_output("sleep 1")
    extra = json.dumps({"events": [[A, B]], "haproxy_slowstart": 7})
    result = cluster.playbook(SERVERS, "-e", extra)
    failures = cluster.failures(result.stdout)
    assert sorted(failures) == sorted(NAMES), result.stdout
    for printed in failures.values():
        assert "n-9002 answer to health checks on another port" in " ".join(printed.split())
    for host in balancers:
        assert "slowstart 7s" not in host.file("/etc/haproxy/haproxy.cfg").content_string
        ask(host, ADMIN, "set server nodes/n-9002 check-port 19002")  # as the roll does
    become([A, B])


def test_what_a_process_cannot_learn_takes_a_reload(
    balancers: list[Host], become: Callable[..., str]
) -> None:
    """Other settings; a server whose clients stay, and they do."""
    become([A, B])
    output = become([A, B], haproxy_slowstart=5)
    assert output.count(RELOADED) == len(balancers)
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(WebSocket(host, B))) for host in balancers]
        assert all(client.lives() for client in clients)
        output = become([A], haproxy_slowstart=5)
        newer = [host for host in balancers if at_run_time(host)]
        reason = "(item=HAProxy says to 'wait 5s srv-removable nodes/n-9002'"
        assert output.count(reason) == len(newer)
        assert all(client.lives() for client in clients)
        for host in balancers:
            assert body(host, cookie=B) == (200, "9001", A)


def test_tls_is_there_beside_the_plain_port(
    balancers: list[Host], become: Callable[..., str]
) -> None:
    """A WebSocket over TLS has a cookie that is told over TLS alone; a plain one has its own."""
    become([A])
    for host, tls in itertools.product(balancers, (trust(), None)):
        with closing(WebSocket(host, tls=tls)) as client:
            assert client.lives()
            assert ("; Secure" in client.headers) == bool(tls)
            assert "strict-transport-security" not in client.headers


@pytest.mark.parametrize(("version", "spoken"), [("-tls1_3", 1), ("-tls1_2", 1), ("-tls1_1", 0)])
def test_old_tls_is_not_spoken(host: Host, version: str, spoken: int) -> None:
    """TLS 1.2 and 1.3 are, for HTTP/1.1, also for a client that would take anything."""
    client = f"openssl s_client -connect {address_of(host)}:443 -alpn h2,http/1.1 {version}"
    result = subprocess.run(
        [*client.split(), "-cipher", "ALL@SECLEVEL=0"], input="", capture_output=True, text=True
    )
    assert ("ALPN protocol: http/1.1" in result.stdout) == bool(spoken), result.stdout


def test_the_key_is_not_for_everybody(host: Host) -> None:
    """Root writes it, HAProxy's group reads it."""
    (path,) = host.ansible.get_variables()["haproxy_tls_certificates"]
    key = host.file(f"/etc/haproxy/tls/{Path(path).name}")
    assert (key.user, key.group, key.mode) == ("root", "haproxy", 0o640)
    assert "PRIVATE KEY" in key.content_string


def test_plain_requests_can_be_sent_to_tls(
    balancers: list[Host], become: Callable[..., str]
) -> None:
    """With a redirect nothing is served without TLS, and browsers are told to remember that."""
    become([A], haproxy_tls_redirect=True, haproxy_tls_hsts=3600)
    for address in map(address_of, balancers):
        with closing(http.client.HTTPConnection(address, timeout=5)) as plain:
            plain.request("GET", "/health?a=b")
            got = plain.getresponse()
            location = f"https://{address}/health?a=b"
            assert (got.status, got.headers["Location"]) == (308, location)
        with closing(http.client.HTTPSConnection(address, timeout=5, context=trust())) as secure:
            secure.request("GET", "/health")
            got = secure.getresponse()
            assert got.status == 200
            assert got.headers["Strict-Transport-Security"] == "max-age=3600"


def renewed_certificate(pem: Path, addresses: Iterable[str]) -> Path:
    """Write another key and certificate for the addresses into a file; return the CA to trust."""
    names = ",".join(f"IP:{address}" for address in addresses)
    request = "openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=new -addext"
    files = f"-keyout {pem} -out {pem}.crt"
    command = [*request.split(), f"subjectAltName={names}", *files.split()]
    subprocess.run(command, check=True, capture_output=True)
    pem.write_text(Path(f"{pem}.crt").read_text() + pem.read_text())
    return Path(f"{pem}.crt")


def test_a_renewed_certificate_is_taken_without_a_drop(
    balancers: list[Host], become: Callable[..., str], cluster: Cluster, tmp_path: Path
) -> None:
    """Connected clients stay, new clients get in, and the new certificate is served."""
    become([A])
    (before,) = balancers[0].ansible.get_variables()["haproxy_tls_certificates"]
    pem = tmp_path / Path(before).name
    ca = renewed_certificate(pem, map(address_of, balancers))
    renewed, either = trust(ca), trust()
    either.load_verify_locations(ca)
    for host in balancers:
        with pytest.raises(ssl.SSLCertVerificationError):
            WebSocket(host, tls=renewed)
    with ExitStack() as stack:
        early = [stack.enter_context(closing(WebSocket(host, tls=trust()))) for host in balancers]
        renewal = stack.enter_context(ThreadPoolExecutor()).submit(
            become, [A], haproxy_tls_certificates=[str(pem)]
        )
        while not renewal.done():
            for host in balancers:
                with closing(WebSocket(host, tls=either)) as client:
                    assert client.lives()
        assert renewal.result().count(RELOADED) == len(balancers)
        assert "PRIVATE KEY" not in renewal.result()
        assert all(client.lives() for client in early)
        for host in balancers:
            with closing(WebSocket(host, tls=renewed)) as late:
                assert late.lives()
    assert not cluster.changed(become([A], haproxy_tls_certificates=[str(pem)]))


def test_connections_of_an_address_are_limited(
    balancers: list[Host], become: Callable[..., str]
) -> None:
    """One more is refused, connected clients stay, and leaving clients make room."""
    become([A], haproxy_source_connections=3)
    for host in balancers:
        with ExitStack() as stack:
            clients = [stack.enter_context(closing(WebSocket(host))) for _ in range(3)]
            with closing(WebSocket(host)) as fourth:
                assert fourth.status == 429
            assert all(client.lives() for client in clients)
            clients.pop().close()
            # HAProxy has to see that it left.
            until(partial(is_let_in, host), "there is room for another one", 10)


def is_let_in(host: Host) -> bool:
    """Whether a WebSocket is accepted, and then works."""
    with closing(WebSocket(host)) as client:
        return client.status == 101 and client.lives()


@pytest.mark.parametrize(
    ("limit", "variable", "window", "status"),
    [
        ("limit_source", "haproxy_source_rate", 10, 429),
        ("limit_total", "haproxy_websocket_rate", 1, 503),
    ],
)
def test_a_storm_is_refused_with_retry_after(
    balancers: list[Host],
    become: Callable[..., str],
    limit: str,
    variable: str,
    window: float,
    status: int,
) -> None:
    """Up to the limit clients get in, others get Retry-After; connected clients stay."""
    become([A], **{"haproxy_source_rate": 0, "haproxy_websocket_rate": 0, variable: 20})
    for host in balancers:
        with closing(WebSocket(host)) as first:
            began = time.monotonic()
            storm = []
            for _ in range(100):
                with closing(WebSocket(host)) as client:
                    storm.append(client)
            seconds = time.monotonic() - began
            refused = [client for client in storm if client.status != 101]
            assert {client.status for client in refused} == {status}
            assert all(re.search(r"\r\nretry-after: ([1-9]|10)\r\n", c.headers) for c in refused)
            assert 0 < len(storm) - len(refused) <= 20 * (seconds / window + 1)
            assert first.lives()
        metric = f'haproxy_backend_requests_denied_total{{proxy="{limit}"}} {len(refused)}'
        assert metric in get(host, f"http://{address_of(host)}:8404/metrics").splitlines()
    time.sleep(1.2 * window)
    assert all(is_let_in(host) for host in balancers)

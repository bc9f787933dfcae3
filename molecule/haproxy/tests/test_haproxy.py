"""What the role `haproxy` leaves on a machine; no node runs behind it here."""

from testinfra.host import Host

testinfra_hosts = ["ansible://loadbalancers"]

ADMIN = "/run/haproxy/admin.sock"
MASTER = "/run/haproxy-master.sock"


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


def test_it_runs_and_starts_with_the_machine(host: Host) -> None:
    """The service is up, now and after a reboot; its worker is not root."""
    service = host.service("haproxy")
    assert service.is_running
    assert service.is_enabled
    assert {process.user for process in host.process.filter(comm="haproxy")} == {"root", "haproxy"}


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


def test_private_paths_are_not_public(host: Host) -> None:
    """The nodes' metrics and readiness are 404 outside; the private port is not the public one."""
    address = host.ansible.get_variables()["ansible_host"]
    for path in ("/metrics", "/ready", "/api/info", "/stats"):
        status = get(host, f"http://{address}{path}")[:3]
        assert status == ("503" if path == "/stats" else "404"), path
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

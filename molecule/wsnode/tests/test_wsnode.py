"""What the role `wsnode` leaves on a machine."""

import json

from testinfra.host import Host

testinfra_hosts = ["ansible://wsnodes"]


def get(host: Host, path: str) -> str:
    """Ask the node on its own address."""
    url = f"http://{host.ansible.get_variables()['ansible_host']}:8001{path}"
    code = f"import urllib.request as r; print(r.urlopen('{url}', timeout=5).read().decode())"
    return host.check_output(f'python3 -c "{code}"')


def test_it_runs_and_starts_with_the_machine(host: Host) -> None:
    """One process is up, now and after a reboot, as a user of its own."""
    service = host.service("wsnode@8001")
    assert service.is_running
    assert service.is_enabled
    assert host.process.get(user="wsfleet").comm == "wsfleet"


def test_it_is_ready(host: Host) -> None:
    """It has found Redis and names itself after host and port."""
    assert json.loads(get(host, "/ready")) == {"ready": True}
    health = json.loads(get(host, "/health"))
    name = host.ansible.get_variables()["inventory_hostname"]
    assert (health["status"], health["hostname"]) == ("healthy", f"{name}-8001")


def test_it_needed_no_package_index(host: Host) -> None:
    """What is installed came in the release: its versions are those of the lock file."""
    current = host.check_output("readlink -f /opt/wsfleet/current")
    assert host.file(f"{current}/installed").exists
    assert not host.file(f"{current}/wheels").exists
    assert host.check_output("wsfleet --version") in current
    bill = json.loads(host.file(f"{current}/sbom.cdx.json").content_string)
    assert bill["metadata"]["component"]["version"] == current.rpartition("/")[2]
    assert host.run(f"{current}/venv/bin/pip check").rc == 0


def test_it_is_sandboxed(host: Host) -> None:
    """The process has no privileges and cannot write outside of its own folders."""
    pid = host.check_output("systemctl show -p MainPID --value wsnode@8001")
    status = host.file(f"/proc/{pid}/status").content_string
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    for path in ("/opt/wsfleet/x", "/etc/x", "/var/lib/x"):
        assert host.run(f"nsenter -t {pid} -m touch {path}").rc != 0, path
    security = host.check_output("systemd-analyze security --no-pager wsnode@8001")
    assert float(security.rpartition(": ")[2].split()[0]) <= 2.0


def test_its_settings_are_not_for_everybody(host: Host) -> None:
    """Only root writes them, only the node reads them."""
    settings = host.file("/etc/wsfleet/wsnode.env")
    assert (settings.user, settings.group, settings.mode) == ("root", "wsfleet", 0o640)


def test_its_key_set_is_that_of_the_inventory(host: Host) -> None:
    """Where there is one; whether it can be used was asked before it was put there."""
    wanted = host.ansible.get_variables().get("wsnode_jwks")
    file = host.file("/etc/wsfleet/jwks.json")
    assert file.exists == (wanted is not None)
    if wanted is not None:
        assert (file.user, file.group, file.mode) == ("root", "wsfleet", 0o640)
        assert json.loads(file.content_string) == wanted


def test_the_log_is_json_in_the_journal(host: Host) -> None:
    """Each line of the service is one JSON object with a time, a level and an event."""
    lines = host.check_output("journalctl -u wsnode@8001 -o cat _COMM=wsfleet").splitlines()
    events = [json.loads(line) for line in lines]
    assert "listening" in [event["event"] for event in events]
    assert all({"timestamp", "level", "event"} <= event.keys() for event in events)


def test_a_crash_is_mended(host: Host) -> None:
    """After kill -9 systemd starts a new process, which is ready again."""
    before = host.check_output("systemctl show -p MainPID --value wsnode@8001")
    host.check_output(f"kill -9 {before} && sleep 4")
    assert host.check_output("systemctl show -p MainPID --value wsnode@8001") not in (before, "0")
    assert json.loads(get(host, "/ready")) == {"ready": True}


def test_a_hang_is_mended(host: Host) -> None:
    """A process that is alive but does not move is replaced by the watchdog."""
    before = host.check_output("systemctl show -p MainPID --value wsnode@8001")
    host.check_output(f"kill -STOP {before} && sleep 30")
    assert host.check_output("systemctl show -p MainPID --value wsnode@8001") not in (before, "0")
    assert json.loads(get(host, "/ready")) == {"ready": True}


def test_wrong_settings_do_not_get_in(host: Host) -> None:
    """The check that guards the settings names the variable that is wrong."""
    refused = host.run("WSFLEET_PING_INTERVAL=often wsfleet serve --check")
    assert refused.rc == 2
    assert "WSFLEET_PING_INTERVAL" in refused.stderr

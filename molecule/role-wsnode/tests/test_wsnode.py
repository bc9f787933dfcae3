"""The state of a machine after the role `wsnode`."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

from lab.waiting import until

if TYPE_CHECKING:
    from molecule.conftest import Cluster

testinfra_hosts = ["ansible://wsnodes"]
CONVERGE = "molecule/role-wsnode/converge.yml"
NAMES = ("trixie", "bookworm")
MAIN_PID = "systemctl show -p MainPID --value wsnode@8001"


def get(host: Host, path: str) -> str:
    """Ask the node on its private port."""
    url = f"http://{host.ansible.get_variables()['ansible_host']}:9001{path}"
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
    """The installed packages came in the release: their versions are those of the lock file."""
    current = host.check_output("readlink -f /opt/wsfleet/current")
    assert host.file(f"{current}/installed").exists
    assert not host.file(f"{current}/wheels").exists
    assert host.check_output("wsfleet --version") in current
    release, _, python = current.rpartition("/")[2].rpartition("-py")
    assert host.check_output("python3 --version").startswith(f"Python {python}.")
    bill = json.loads(host.file(f"{current}/sbom.cdx.json").content_string)
    assert bill["metadata"]["component"]["version"] == release
    assert host.run(f"{current}/venv/bin/pip check").rc == 0


def test_it_is_sandboxed(host: Host) -> None:
    """The process has no privileges and cannot write outside of its own folders."""
    pid = host.check_output(MAIN_PID)
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


def is_replaced(host: Host, before: str) -> bool:
    """Whether another process than before runs, and is ready."""
    now = host.check_output(MAIN_PID)
    address = host.ansible.get_variables()["ansible_host"]
    ready = host.run(f"curl --silent --fail --max-time 5 http://{address}:9001/ready")
    return now not in (before, "0") and ready.rc == 0


@pytest.mark.parametrize("signal", ["KILL", "STOP"])
def test_a_process_that_does_not_answer_is_replaced(cluster: Cluster, signal: str) -> None:
    """One that died by systemd, one that hangs by its watchdog; the new one is ready again."""
    before = {name: cluster.on(name, MAIN_PID) for name in NAMES}
    for name, pid in before.items():
        cluster.on(name, f"kill -{signal} {pid}")
    for name, pid in before.items():
        until(partial(is_replaced, cluster.host(name), pid), "another process is ready", 90)


def test_wrong_settings_do_not_get_in(host: Host) -> None:
    """The check that guards the settings names the variable that is wrong."""
    refused = host.run("WSFLEET_PING_INTERVAL=often wsfleet serve --check")
    assert refused.rc == 2
    assert "WSFLEET_PING_INTERVAL" in refused.stderr


def test_a_release_for_another_python_is_replaced(cluster: Cluster) -> None:
    """After an upgrade of Debian in place it is made again, and no rollback leads back."""
    current = {
        name: cluster.on(name, "basename $(readlink /opt/wsfleet/current)") for name in NAMES
    }
    # One name on all of them: the Python that it was made for is what differs.
    (before,) = {release.rpartition("-py")[0] + "-py3.9" for release in current.values()}
    for name, release in current.items():
        # As the old Debian left it: made for a Python that is not there any more, and no other.
        cluster.on(
            name,
            f"cd /opt/wsfleet/releases && mv {release} {before}"
            f" && ln -sfn releases/{before} ../current"
            f" && sed -i 1s#/{release}/#/{before}/# {before}/venv/bin/wsfleet"
            f" && mv {before}/venv/lib/python3.* {before}/venv/lib/python3.9",
        )
        cluster.host(name).run("systemctl restart wsnode@8001")
        assert cluster.host(name).run("wsfleet --version").rc != 0

    update = ("molecule/role-wsnode/update.yml", "-ewsnode_serial=2")
    cluster.play(*update)
    for name, release in current.items():
        assert json.loads(get(cluster.host(name), "/ready")) == {"ready": True}
        assert cluster.on(name, "basename $(readlink /opt/wsfleet/current)") == release

    back = ("playbooks/rollback.yml", "-ewsnode_serial=2", f"-ewsnode_rollback_to={before}")
    failures = cluster.failures(cluster.playbook(*back).stdout)
    assert sorted(failures) == sorted(NAMES)
    for printed in failures.values():
        assert f"cannot run releases/{before}, which was made for another Python" in printed
    for name in NAMES:
        assert json.loads(get(cluster.host(name), "/ready")) == {"ready": True}
    assert cluster.changed(cluster.play(*update)) == []


def test_an_unusable_release_is_built_again(cluster: Cluster) -> None:
    """A release that was made with another umask is made again."""
    for name in NAMES:
        cluster.on(name, "chmod -R go= /opt/wsfleet")
        assert cluster.host(name).run("runuser -u wsfleet -- wsfleet --version").rc != 0
    cluster.play("molecule/role-wsnode/update.yml", "-ewsnode_serial=2")
    for name in NAMES:
        cluster.on(name, "runuser -u wsfleet -- wsfleet --version")


def test_where_no_process_runs_the_new_release_is_started(cluster: Cluster) -> None:
    """On a stopped host and on a broken one: the old release may not know the settings."""
    broken = "releases/broken"
    release = {name: cluster.on(name, "readlink /opt/wsfleet/current") for name in NAMES}
    for name in NAMES:
        cluster.on(
            name,
            f"cd /opt/wsfleet && cp -a {release[name]} {broken} && ln -sfn {broken} current"
            f" && sed -i 1s#/{release[name]}/#/{broken}/# {broken}/venv/bin/wsfleet"
            f" && echo 'raise RuntimeError' | tee {broken}/venv/lib/*/*/wsfleet/server/__init__.py",
        )
        cluster.on(name, "wsfleet --version")
    cluster.on("trixie", "systemctl disable --now wsnode@8001")
    assert cluster.host("bookworm").run("systemctl restart wsnode@8001").rc != 0

    update = ("molecule/role-wsnode/update.yml", "-ewsnode_serial=2")
    cluster.play(*update)
    for name in NAMES:
        assert json.loads(get(cluster.host(name), "/ready")) == {"ready": True}
        assert cluster.on(name, "readlink /opt/wsfleet/current") == release[name]
        assert cluster.on(name, "readlink /opt/wsfleet/previous") == broken
        assert cluster.host(name).service("wsnode@8001").is_enabled
        cluster.on(name, f"rm -r /opt/wsfleet/previous /opt/wsfleet/{broken}")
    assert cluster.changed(cluster.play(*update)) == []


def test_a_refused_configuration_has_its_error(cluster: Cluster) -> None:
    """The node's own words are shown, also where no_log hides the task, and no key is."""
    config = {"http_api": {"key": "a-key-of-this-test", "kye": 1}}
    result = cluster.playbook(CONVERGE, "-e", json.dumps({"wsnode_config": config}))
    assert result.returncode != 0
    assert "http_api.kye: unknown key; did you mean key?" in result.stdout
    assert "a-key-of-this-test" not in result.stdout

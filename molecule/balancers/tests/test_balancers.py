"""Two balancers with one address: HAProxy stops, a machine dies, keepalived dies, clients go on."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra

ROOT = Path(__file__).resolve().parents[3]
INVENTORY = ROOT / "molecule" / "balancers" / "inventory"
FLEET = json.loads((INVENTORY / ".fleet.json").read_text())
URL: str = FLEET["base_url"]
ADDRESS = URL.removeprefix("http://")
SHOW = f"ip -brief address show to {ADDRESS}"
BALANCERS = ["lb1", "lb2"]
WSFLEET = str(Path(sys.executable).parent / "wsfleet")


def host(name: str) -> Any:
    """A machine, as root."""
    return testinfra.get_host(f"ansible://{name}", ansible_inventory=str(INVENTORY), sudo=True)


def holders() -> list[str]:
    """The balancers that have the address now."""
    return [name for name in BALANCERS if host(name).check_output(SHOW)]


def answers() -> bool:
    """Whether a new client gets /health through the address."""
    try:
        with urllib.request.urlopen(f"{URL}/health", timeout=2) as response:  # noqa: S310
            return bool(response.status == 200)
    except OSError:
        return False


def until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Wait until `condition()` is true, or fail with `what` did not happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen in {seconds:g} s: {what}"
        time.sleep(0.1)


@pytest.fixture
def active() -> Iterator[str]:
    """The balancer that has the address; afterwards both are well again, and one has it."""
    until(lambda: len(holders()) == 1 and answers(), "one balancer has the address and answers")
    yield holders()[0]
    for name in BALANCERS:
        host(name).check_output("systemctl start haproxy keepalived")
    until(lambda: len(holders()) == 1 and answers(), "one balancer has the address afterwards")


def other(name: str) -> str:
    """The other balancer."""
    (result,) = set(BALANCERS) - {name}
    return result


def podman(command: str, name: str) -> None:
    """Do something to a machine's container, as its host would."""
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    checkout = hashlib.sha1(str(ROOT).encode(), usedforsecurity=False).hexdigest()[:8]
    container = f"wsfleet-{checkout}-balancers-{name}"
    subprocess.run([*sudo, "podman", command, container], check=True, stdout=subprocess.DEVNULL)


def test_the_check_is_not_roots(active: str) -> None:
    """HAProxy is asked by a user that may do nothing else."""
    for name in BALANCERS:
        machine = host(name)
        assert machine.service("keepalived").is_enabled
        assert machine.user("keepalived_script").shell == "/usr/sbin/nologin"
        # Scripts that root would run for others are refused, with these words.
        log = machine.check_output("journalctl -u keepalived -o cat")
        assert "SECURITY VIOLATION" not in log
        assert "succeeded" in log, log


def test_a_wrong_configuration_is_refused(active: str) -> None:
    """The check that guards each write takes the real file and refuses one with a mistake."""
    machine = host(active)
    assert machine.run("keepalived --config-test -f /etc/keepalived/keepalived.conf").rc == 0
    machine.check_output("sed s/nopreempt/nopreemt/ /etc/keepalived/keepalived.conf > /tmp/wrong")
    assert machine.run("keepalived --config-test -f /tmp/wrong").rc != 0


def test_a_reload_leaves_the_address(active: str) -> None:
    """A new configuration is no reason to move the address, and so to end all WebSockets."""
    for name in BALANCERS:
        host(name).check_output("systemctl reload keepalived && sleep 3")
    assert holders() == [active]


@pytest.mark.parametrize(
    "fault",
    [
        "systemctl stop haproxy",
        "systemctl stop keepalived",
        "systemctl kill -s KILL keepalived",  # it leaves the address behind
    ],
)
def test_a_service_fails(active: str, fault: str) -> None:
    """The other balancer alone has the address, answers, and keeps it when the first is back."""
    host(active).check_output(fault)
    until(lambda: holders() == [other(active)] and answers(), f"after '{fault}' the other serves")
    host(active).check_output("systemctl start haproxy keepalived && sleep 5")
    assert holders() == [other(active)]


def test_a_machine_dies(active: str) -> None:
    """The other balancer serves; the dead one comes back without the address."""
    alive = other(active)
    podman("kill", active)
    try:
        until(lambda: host(alive).run(SHOW).stdout != "" and answers(), "the other serves")
    finally:
        podman("start", active)
    until(lambda: host(active).run("systemctl is-active keepalived").rc == 0, "it is back")
    assert holders() == [alive]


async def test_nothing_acknowledged_is_lost_when_the_address_moves(active: str) -> None:
    """Unmodified SDKs publish and subscribe while the address moves there and back."""
    process = await asyncio.create_subprocess_exec(
        *(WSFLEET, "verify-delivery", URL, "--json", "--timeout", "120"),
        *("--publishers", "2", "--subscribers", "20", "--messages", "200", "--rate", "10"),
        stdout=subprocess.PIPE,
    )
    try:
        for name in (active, other(active)):
            await asyncio.sleep(3)
            machine = await asyncio.to_thread(host, name)
            await asyncio.to_thread(machine.check_output, "systemctl stop haproxy")
            moved = [other(name)]
            await asyncio.to_thread(until, lambda: holders() == moved and answers(), "it moved")  # noqa: B023
            await asyncio.to_thread(machine.check_output, "systemctl start haproxy && sleep 3")
        output, _ = await asyncio.wait_for(process.communicate(), 150)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    report = json.loads(output)
    assert process.returncode == 0, report
    faults = [report[key] for key in ("lost", "duplicated", "reordered", "recovered_wrongly")]
    assert faults == [0, 0, 0, 0]
    assert report["acknowledged"] == 400
    assert report["reconnects"] >= 40

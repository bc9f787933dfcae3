"""`wsfleet verify-delivery` on a real fleet, whole and under fault."""

import json
import random
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from tests.cli.rig import COMMAND, Rig, until, wsfleet

NO_FAULTS = {"lost": 0, "duplicated": 0, "reordered": 0, "recovered_wrongly": 0}


def counts(report: dict[str, Any]) -> dict[str, Any]:
    """The four that must be 0."""
    return {key: report[key] for key in NO_FAULTS}


@pytest.mark.parametrize("protocol", ["centrifuge", "plain"])
def test_a_quiet_fleet_loses_nothing(fleet: Rig, protocol: str) -> None:
    """Everything that was published is acknowledged, and everybody got it."""
    outcome = wsfleet(
        *("verify-delivery", fleet.base_url, "--protocol", protocol, "--json"),
        *("--publishers", 3, "--subscribers", 10, "--messages", 20, "--rate", 50),
    )
    assert outcome.code == 0, outcome.stdout + outcome.stderr
    report = outcome.document
    assert counts(report) == NO_FAULTS
    assert (report["acknowledged"], report["delivered"]) == (60, 600)


def test_a_fleet_that_is_not_there(unused_tcp_port: int) -> None:
    """One line says what to do, and the exit code is 2."""
    outcome = wsfleet("verify-delivery", f"http://127.0.0.1:{unused_tcp_port}", "--timeout", 2)
    assert outcome.code == 2
    assert outcome.stderr.count("\n") == 1
    assert "wsfleet status" in outcome.stderr


def test_plain_has_one_channel(fleet: Rig) -> None:
    """Another channel is a mistake, not an empty success."""
    outcome = wsfleet("verify-delivery", fleet.base_url, "--protocol", "plain", "--channel", "x")
    assert outcome.code == 2
    assert "--channel" in outcome.stderr


class Faults:
    """What can go wrong with a fleet, one thing at a time; each mends itself before it returns."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self._rig = rig
        self._random = random.Random(seed)  # noqa: S311 - a seed is wanted
        self.happened: list[str] = []

    def happen(self, fault: Callable[[], None]) -> None:
        """Let one happen, with a pause of its own around it."""
        time.sleep(self._random.uniform(0.3, 1.0))
        self.happened.append(fault.__name__)
        fault()

    def node_killed(self) -> None:
        """A node process dies by kill -9, and is started again."""
        name = self._random.choice(list(self._rig.nodes))
        self._rig.kill(name)
        time.sleep(self._random.uniform(0.1, 1.0))
        self._rig.start(name)
        time.sleep(2)

    def redis_restarted(self) -> None:
        """Redis stops and comes back with what it had."""
        self._rig.redis.stop()
        time.sleep(self._random.uniform(0.2, 2.0))
        self._rig.redis.start()

    def redis_frozen(self) -> None:
        """Redis stops to answer, without an error."""
        self._rig.redis.freeze()
        time.sleep(self._random.uniform(3.0, 8.0))
        self._rig.redis.thaw()

    def pubsub_killed(self) -> None:
        """The nodes lose their pub/sub connections."""
        with redis.Redis.from_url(self._rig.redis_url) as client:
            client.client_kill_filter(_type="pubsub")


@pytest.mark.parametrize("seed", [1])
def test_under_fault_nothing_acknowledged_is_lost(own_fleet: Rig, seed: int) -> None:
    """Nodes are killed, Redis is restarted and frozen, subscriptions cut: SDK clients recover."""
    faults = Faults(own_fleet, seed)
    command = [
        *(*COMMAND, "verify-delivery", own_fleet.base_url, "--json", "--timeout", "150"),
        *("--publishers", "4", "--subscribers", "50", "--messages", "300", "--rate", "10"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        for _ in range(2):
            faults.happen(faults.node_killed)
            faults.happen(faults.pubsub_killed)
            faults.happen(faults.redis_restarted)
            faults.happen(faults.node_killed)
            faults.happen(faults.redis_frozen)
        stdout, stderr = process.communicate(timeout=180)
    finally:
        process.kill()
        process.wait()
    report = json.loads(stdout)
    assert counts(report) == NO_FAULTS, (seed, faults.happened, report["examples"])
    assert report["unacknowledged"] == 0, report
    assert process.returncode == 0, stderr
    assert report["reconnects"] > 0
    until(lambda: wsfleet("check", "state", "--redis", own_fleet.redis_url).code == 0, "no orphans")

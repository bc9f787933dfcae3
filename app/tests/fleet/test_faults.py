"""The delivery contract under faults: no acknowledged message is lost or duplicated.

The short form always runs; `pytest tests/fleet/test_faults.py --full --seed 7` is the long form.
"""

import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from lab.processes import process
from lab.waiting import until
from tests.support.command import COMMAND, wsfleet
from tests.support.fleet import Rig, running_fleet

NO_FAULTS = {"lost": 0, "duplicated": 0, "reordered": 0, "recovered_wrongly": 0}
VERIFY_TIMEOUT = 400  # seconds, far above what any form takes


@dataclass(frozen=True)
class Form:
    """The size of a run; `hold` is the minimum of seconds that a node is without Redis."""

    steps: dict[str, int]
    hold: float
    publishers: int
    subscribers: int
    messages: int
    rate: int


SHORT = {
    "centrifuge": Form(
        steps={
            "node_killed": 2,
            "pubsub_killed": 1,
            "redis_restarted": 1,
            "redis_stalled": 1,
            "node_partitioned": 1,
        },
        hold=0,
        publishers=4,
        subscribers=50,
        messages=200,
        rate=10,
    ),
    "plain": Form(
        steps={"node_killed": 2, "pubsub_killed": 1},
        hold=0,
        publishers=4,
        subscribers=50,
        messages=120,
        rate=10,
    ),
}
FULL = Form(
    steps={
        "node_killed": 10,
        "pubsub_killed": 3,
        "redis_restarted": 1,
        "redis_stalled": 1,
        "node_partitioned": 1,
    },
    hold=20,
    publishers=4,
    subscribers=200,
    messages=500,
    rate=5,
)


class Faults:
    """The faults of a fleet; each method returns when all nodes are ready again.

    The seed sets the order of the steps, their targets and the pauses.
    """

    def __init__(self, rig: Rig, form: Form, seed: int) -> None:
        self._rig = rig
        self._form = form
        self._random = random.Random(seed)  # noqa: S311 - a seed is wanted
        self._victims = itertools.cycle(self._random.sample(list(rig.nodes), len(rig.nodes)))
        self.happened: list[str] = []

    def happen(self) -> None:
        """Run all steps one after the other."""
        steps = [step for step, times in self._form.steps.items() for _ in range(times)]
        self._random.shuffle(steps)
        for step in steps:
            self._pause(0.3, 1.0)
            self.happened.append(step)
            getattr(self, step)()

    def node_killed(self) -> None:
        """Kill a node process with SIGKILL, the next one each time, and start it again."""
        name = next(self._victims)
        self._rig.kill(name)
        self._pause(0.1, 1.0)
        self._rig.start(name)
        self._until_ready(200, name)

    def redis_restarted(self) -> None:
        """Stop Redis and start it with its data."""
        self._rig.redis.stop()
        self._until_ready(503, *self._rig.nodes)
        self._pause(0.1, 1.0)
        self._rig.redis.start()
        self._until_ready(200, *self._rig.nodes)

    def redis_stalled(self) -> None:
        """Freeze Redis, so that it neither answers nor fails."""
        self._rig.redis.freeze()
        try:
            self._hold(*self._rig.nodes)
        finally:
            self._rig.redis.thaw()
        self._until_ready(200, *self._rig.nodes)

    def node_partitioned(self) -> None:
        """Drop all packets between the busiest node and Redis; the other nodes stay ready."""
        name = max(self._rig.nodes, key=self._rig.connections)
        self._rig.links[name].silent = True
        self._hold(name)
        others = self._rig.nodes.keys() - {name}
        assert {self._rig.ready(other) for other in others} == {200}
        self._rig.links[name].silent = False
        self._until_ready(200, name)

    def pubsub_killed(self) -> None:
        """Kill the pub/sub connections of all nodes."""
        with redis.Redis.from_url(self._rig.redis_url) as client:
            killed = client.client_kill_filter(_type="pubsub")
        assert killed == len(self._rig.nodes)
        self._until_ready(200, *self._rig.nodes)

    def _pause(self, shortest: float, longest: float) -> None:
        time.sleep(self._random.uniform(shortest, longest))

    def _hold(self, *names: str) -> None:
        """Wait until the nodes are not ready, and check that they stay so for `hold` seconds."""
        began = time.monotonic()
        self._until_ready(503, *names)
        time.sleep(max(0.0, self._form.hold - (time.monotonic() - began)))
        assert {self._rig.ready(name) for name in names} == {503}

    def _until_ready(self, status: int, *names: str) -> None:
        until(
            lambda: all(self._rig.ready(name) == status for name in names),
            f"/ready of {' and '.join(names)} is {status}",
        )


@pytest.fixture
def three_nodes(processes: None, tmp_path: Path) -> Iterator[Rig]:
    """Return a fleet that keeps two nodes with clients while one is down."""
    with running_fleet(tmp_path, nodes=3) as rig:
        yield rig


@pytest.mark.parametrize("protocol", ["centrifuge", "plain"])
def test_under_fault_nothing_acknowledged_is_lost(
    three_nodes: Rig, protocol: str, request: pytest.FixtureRequest
) -> None:
    """Connected clients receive every message; with an SDK, disconnected ones recover."""
    form = FULL if request.config.getoption("--full") else SHORT[protocol]
    faults = Faults(three_nodes, form, request.config.getoption("--seed"))
    command = [
        *(*COMMAND, "verify-delivery", three_nodes.base_url, "--json"),
        *("--protocol", protocol, "--timeout", VERIFY_TIMEOUT),
        *("--publishers", form.publishers, "--subscribers", form.subscribers),
        *("--messages", form.messages, "--rate", form.rate),
    ]
    log = three_nodes.folder / "verify.log"
    with process([str(word) for word in command], log) as verify:
        faults.happen()
        assert verify.poll() is None, "the faults outlasted the messages"
        verify.wait(VERIFY_TIMEOUT)
    report = json.loads(log.read_text().splitlines()[-1])
    examples = report.pop("examples", {})
    print(json.dumps(report))  # --full is run for its figures: -rP shows them
    found = {kind: report[kind] for kind in NO_FAULTS}
    assert found == NO_FAULTS, (faults.happened, examples)
    assert report["ok"], (faults.happened, report)
    assert report["acknowledged"] == form.publishers * form.messages
    assert report["reconnects"] > 0
    if protocol == "centrifuge":
        assert report["recovered"] == report["reconnects"]
        assert report["missed_while_away"] == 0

    def no_orphans() -> bool:
        outcome = wsfleet("check", "state", "--redis", three_nodes.redis_url, "--json")
        print(outcome.stdout)  # shown if there are some to the end
        return outcome.code == 0

    until(no_orphans, "no state has lost its owner")

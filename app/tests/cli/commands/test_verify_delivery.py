"""`wsfleet verify-delivery` and fleets that are whole, closed, frozen and not there."""

import asyncio
import json
import re
import signal
import subprocess
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosedError

from lab.processes import process
from lab.waiting import TIMEOUT, settled, until
from tests.support.command import COMMAND, wsfleet
from tests.support.fleet import Rig
from tests.support.nodes import StartNode
from tests.support.websocket_server import Serve
from wsfleet.cli.access import websocket_client as client_module
from wsfleet.cli.access.endpoint import parse_url
from wsfleet.cli.commands.verify_delivery import report_of
from wsfleet.cli.errors import CannotRun
from wsfleet.cli.measure.delivery_account import account_for
from wsfleet.cli.measure.delivery_events import (
    FAULTS,
    Acknowledged,
    DeliveryPosition,
    Disconnected,
    Event,
    Received,
    Sent,
    Subscribed,
    Terms,
)
from wsfleet.cli.measure.report import emit
from wsfleet.cli.traffic.delivery_clients import PlainPublisher
from wsfleet.cli.traffic.delivery_run import DeliveryPlan, DeliveryRun
from wsfleet.redis import key_names

KINDS: dict[str, Any] = {
    kind.__name__.lower(): kind for kind in (Acknowledged, Disconnected, Received, Sent, Subscribed)
}


@pytest.mark.parametrize("protocol", ["centrifuge", "plain"])
def test_a_quiet_fleet_loses_nothing(fleet: Rig, protocol: str) -> None:
    """Everything that was published is acknowledged, and everybody got it."""
    outcome = wsfleet(
        *("verify-delivery", fleet.base_url, "--protocol", protocol, "--json"),
        *("--publishers", 3, "--subscribers", 10, "--messages", 20, "--rate", 50),
    )
    assert outcome.code == 0, outcome.stdout + outcome.stderr
    document = outcome.document
    assert {kind: document[kind] for kind in FAULTS} == dict.fromkeys(FAULTS, 0)
    assert (document["acknowledged"], document["delivered"]) == (60, 600)
    assert document["examples"] == {}


def test_an_applications_path_is_an_error(guests: Rig) -> None:
    """Its one line names the protocol and the URL that has it, and that URL works."""
    outcome = wsfleet("verify-delivery", f"{guests.base_url}/room/1?name=x")
    assert outcome.code == 2
    assert outcome.stderr.count("\n") == 1
    url = f"{guests.base_url}/connection/websocket"
    assert "/room/1 is an application's path" in outcome.stderr
    assert f"write {url}." in outcome.stderr
    size = ("--publishers", 1, "--subscribers", 2, "--messages", 5, "--rate", 50)
    outcome = wsfleet("verify-delivery", url, *size, "--json")
    assert outcome.code == 0, outcome
    assert outcome.document["delivered"] == 10


def test_the_file_of_events_reproduces_the_account(fleet: Rig, tmp_path: Path) -> None:
    """It has all that the account is drawn up from, line by line, and each connection's id."""
    events = tmp_path / "events.jsonl"
    outcome = wsfleet(
        *("verify-delivery", fleet.base_url, "--json", "--events", events),
        *("--publishers", 1, "--subscribers", 2, "--messages", 5, "--rate", 50),
    )
    assert outcome.code == 0, outcome.stdout + outcome.stderr
    first, *others = [json.loads(line) for line in events.read_text().splitlines()]
    assert first["event"] == "began"
    assert abs(first["time"] - time.time()) < 600
    kinds = Counter(event["event"] for event in others)
    counts = {"connected": 3, "subscribed": 2, "sent": 5, "acknowledged": 5, "received": 10}
    assert kinds == counts
    assert [event["at"] for event in others] == sorted(event["at"] for event in others)
    assert len({event["client"] for event in others if event["event"] == "connected"}) == 3
    log: list[Event] = []
    for event in others:
        if event["event"] == "connected":
            continue
        kind = KINDS[event.pop("event")]
        if event.get("position"):
            event["position"] = DeliveryPosition(*event["position"])
        log.append(kind(**event))
    findings = account_for(Terms(1, 2, 5), log)
    assert findings.clean
    assert findings.delivered == outcome.document["delivered"]


@pytest.mark.parametrize("keyed", [True, False])
def test_keyed_is_what_the_caller_says(fleet: Rig, tmp_path: Path, keyed: bool) -> None:
    """Only the caller knows whether a handler publishes with the key: then no copy is allowed."""
    events = tmp_path / "events.jsonl"
    outcome = wsfleet(
        *("verify-delivery", fleet.base_url, "--events", events, *(["--keyed"] if keyed else [])),
        *("--publishers", 1, "--subscribers", 1, "--messages", 2),
    )
    assert outcome.code == 0, outcome.stdout + outcome.stderr
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert [line["keyed"] for line in lines if line["event"] == "sent"] == [keyed, keyed]


@pytest.mark.usefixtures("processes")
def test_events_that_cannot_be_written(tmp_path: Path) -> None:
    """One line says so before anything is published."""
    missing = tmp_path / "missing" / "events"
    outcome = wsfleet("verify-delivery", "http://127.0.0.1:9", "--events", missing)
    assert outcome.code == 2
    assert str(missing) in outcome.stderr


def test_ctrl_c_ends_the_publishing(fleet: Rig) -> None:
    """The messages published until then are accounted for: exit code 0."""
    command = [*COMMAND, "verify-delivery", fleet.base_url, "--json", "--messages", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        try:
            with redis.Redis.from_url(fleet.redis_url) as client:
                before = client.hget(key_names.meta("broadcast"), "offset")
                until(
                    lambda: client.hget(key_names.meta("broadcast"), "offset") != before,
                    "they publish",
                )
            child.send_signal(signal.SIGINT)
            stdout, _ = child.communicate(timeout=TIMEOUT)
        finally:
            child.kill()
    report = json.loads(stdout)
    assert child.returncode == 0, report
    assert report["acknowledged"] > 0
    assert report["unacknowledged"] == report["lost"] == 0
    assert report["delivered"] == 20 * report["acknowledged"]


@pytest.mark.usefixtures("processes")
def test_a_fleet_that_is_not_there(unused_tcp_port: int) -> None:
    """One line says why and what to do, and the exit code is 2."""
    outcome = wsfleet("verify-delivery", f"http://127.0.0.1:{unused_tcp_port}", "--timeout", 2)
    assert outcome.code == 2
    assert outcome.stderr.count("\n") == 1
    assert "20 of 20 subscribers could not subscribe" in outcome.stderr
    assert "refused" in outcome.stderr
    assert "wsfleet status" in outcome.stderr


def test_plain_has_one_channel(fleet: Rig) -> None:
    """Another channel is a mistake, not an empty success."""
    outcome = wsfleet("verify-delivery", fleet.base_url, "--protocol", "plain", "--channel", "x")
    assert outcome.code == 2
    assert "--channel" in outcome.stderr


SUBSCRIBE_ONLY = """
channel:
  without_namespace:
    allow_subscribe_for_client: true
    allow_subscribe_for_anonymous: true
client:
  allow_anonymous_connect_without_token: true
"""


@pytest.mark.parametrize(
    ("config", "channel", "refused"),
    [
        ("{}", "broadcast", r"(publisher|subscriber) \d+ was refused for good: 3501 bad request"),
        (SUBSCRIBE_ONLY, "no:channel", r"subscriber \d+ was refused for good: 102 unknown channel"),
        (SUBSCRIBE_ONLY, "x", r"publisher \d+ was refused for good: 103 permission denied"),
    ],
)
async def test_a_final_refusal_ends_the_check(
    start_node: StartNode, tmp_path: Path, config: str, channel: str, refused: str
) -> None:
    """There is no retry: one line has the code and the reason, and the exit code is 2."""
    path = tmp_path / "config.yaml"
    path.write_text(config)
    node = await start_node(config=path)
    outcome = await asyncio.to_thread(
        wsfleet, "verify-delivery", node.url, "--channel", channel, "--timeout", 300
    )
    assert outcome.code == 2
    assert outcome.stderr.count("\n") == 1
    assert re.search(refused, outcome.stderr), outcome.stderr


async def test_a_plain_error_that_does_not_pass_ends_the_check(serve_websocket: Serve) -> None:
    """Only `unavailable` is worth another try."""

    async def refuse(connection: ServerConnection) -> None:
        for code in ("unavailable", "unsupported_data"):
            await connection.recv()
            await connection.send(orjson.dumps({"type": "error", "code": code, "message": code}))
        await connection.wait_closed()

    run = DeliveryRun(
        parse_url(await serve_websocket(refuse)), DeliveryPlan(publishers=1, messages=1)
    )
    run.entered.set()
    publisher = PlainPublisher(run, 0)
    with pytest.raises(CannotRun, match="publisher 0 was refused for good: unsupported_data"):
        await publisher.work()
    await publisher.stop()
    assert run.errors == {"unavailable: unavailable": 1}


async def test_a_publisher_without_an_answer_leaves_no_connection_open(
    serve_websocket: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends the message again over a new connection, and the old one is closed."""
    monkeypatch.setattr(client_module, "ANSWER_TIMEOUT", 0.2)
    messages: list[str | bytes] = []
    closed: list[ServerConnection] = []

    async def answer_the_second(connection: ServerConnection) -> None:
        with suppress(ConnectionClosedError):
            async for message in connection:
                messages.append(message)
                if len(messages) > 1:
                    await connection.send('{"type": "ack"}')
        closed.append(connection)

    run = DeliveryRun(
        parse_url(await serve_websocket(answer_the_second)), DeliveryPlan(publishers=1, messages=1)
    )
    run.entered.set()
    publisher = PlainPublisher(run, 0)
    await publisher.work()
    await settled(lambda: len(closed) == 1, "the first connection is closed")
    await publisher.stop()
    assert messages[0] == messages[1]
    assert run.errors == {"no answer in time": 1}


def runs_in(store: "redis.Redis") -> set[str]:
    """The runs that have published."""
    return set(re.findall(r'"run": ?"(\w+)"', str(store.xrange(key_names.stream("broadcast")))))


@pytest.mark.parametrize("frozen", ["nodes", "redis"])
def test_a_fleet_that_freezes_does_not_hold_the_check(own_fleet: Rig, frozen: str) -> None:
    """When its time is over it ends by itself, and says what was not acknowledged."""
    protocols = ("centrifuge", "plain")
    logs = [own_fleet.folder / f"{protocol}.log" for protocol in protocols]
    options = ["--json", "--timeout", "5", "--messages", "1000", "--subscribers", "4"]
    with ExitStack() as stack:
        checks = [
            stack.enter_context(
                process(
                    [*COMMAND, "verify-delivery", own_fleet.base_url, "--protocol", name, *options],
                    log,
                )
            )
            for name, log in zip(protocols, logs, strict=True)
        ]
        with redis.Redis.from_url(own_fleet.redis_url) as store:
            until(lambda: len(runs_in(store)) == 2, "messages of both flow")
        victim = own_fleet.redis if frozen == "redis" else own_fleet
        victim.freeze()
        try:
            codes = [check.wait(60) for check in checks]
        finally:
            victim.thaw()
    assert codes == [1, 1]
    for log in logs:
        document = json.loads(log.read_text().splitlines()[-1])
        assert 0 < document["acknowledged"] < 4000
        assert document["acknowledged"] + document["unacknowledged"] == 4000


def run_of(*events: Event) -> DeliveryRun:
    """A run of one publisher and one subscriber, in which this happened."""
    run = DeliveryRun(parse_url("http://lb"), DeliveryPlan(publishers=1, subscribers=1, messages=3))
    for event in events:
        run.enter(event)
    return run


def published(sequence: int, at: float) -> list[Event]:
    """One message, acknowledged."""
    return [Sent(at, 0, sequence), Acknowledged(at, 0, sequence)]


AWAY = (
    Subscribed(0.0, 0),
    *published(0, 1.0),
    Received(1.0, 0, 0, 0),
    Disconnected(2.0, 0),
    *published(1, 3.0),
    Subscribed(4.0, 0),
    *published(2, 5.0),
    Received(5.0, 0, 0, 2),
)


def test_missed_messages_are_listed() -> None:
    """They are not a fault, because the client knows of them, but the report lists them."""
    report = report_of(run_of(*AWAY))
    assert report.ok
    assert report.data["missed_while_away"] == 1
    assert report.data["examples"] == {
        "missed_while_away": [{"subscriber": 0, "publisher": 0, "sequence": 1}]
    }


def test_the_report_names_the_faults(capsys: pytest.CaptureFixture[str]) -> None:
    """Figures, examples, what was tried again, and a verdict in words."""
    run = run_of(*AWAY[:-1])
    run.failed(TimeoutError())
    emit(report_of(run), as_json=False)
    text = capsys.readouterr().out
    assert "✗ 1 lost: published, but never delivered" in text
    rows = [" ".join(line.strip("│ \n").replace("│", " ").split()) for line in text.splitlines()]
    assert "published 3 by 1 publishers" in rows
    assert "lost 0 0 2" in rows
    assert "missed while away 0 0 1" in rows
    assert "no answer in time 1" in rows

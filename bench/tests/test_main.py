"""The measurements of a run, their order, and failures."""

from __future__ import annotations

import argparse
import dataclasses
from contextlib import ExitStack
from typing import Any

import pytest

from bench import __main__ as command
from bench.catalog import PEERS, Peer
from bench.modes import MODES
from bench.rig import BenchError


class FakeRig:
    """A rig that starts nothing; with the peer `nats` it fails."""

    def __init__(self, peer: Peer, stack: ExitStack, nodes: int = 1) -> None:
        if peer.name == "nats":
            raise BenchError("no such program\nsecond line")


def found(monkeypatch: pytest.MonkeyPatch, turn: int, only: list[str]) -> list[dict[str, Any]]:
    """Return all measurements of a round with only the mode `one`."""
    monkeypatch.setattr(command, "Rig", FakeRig)
    mode = MODES["one"].__class__(
        "one", "each", lambda rig, size, seconds: {"value": size * seconds}, (500, 2000)
    )
    monkeypatch.setitem(MODES, "one", mode)
    arguments = argparse.Namespace(only=only, modes=["one"], seconds=2)
    return list(command.peers_round(turn, arguments))


def test_another_peer_is_first_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round measures all peers that have the mode."""
    names = [name for name, peer in PEERS.items() if not peer.only]
    orders = [
        [one["peer"] for one in found(monkeypatch, turn, names) if one["size"] == 500]
        for turn in range(3)
    ]
    assert len({order[0] for order in orders}) == 3
    assert all(sorted(order) == sorted(names) for order in orders)


def test_a_peer_that_fails_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The failed peer has an error instead of a value; the others have values."""
    measurements = found(monkeypatch, 0, ["nats", "ws"])
    assert [one.get("error") for one in measurements] == ["no such program"] * 2 + [None] * 2
    assert [one.get("value") for one in measurements] == [None, None, 1000, 4000]


def test_rooms_and_publishes_only_of_peers_that_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain protocol has no rooms, and `ws` acknowledges nothing."""
    monkeypatch.setattr(command, "Rig", FakeRig)
    for name in ("rooms", "publish"):
        mode = MODES[name]
        fake = mode.__class__(
            "", "", lambda rig, size, seconds: {"value": 1}, (1,), rooms=mode.rooms, acks=mode.acks
        )
        monkeypatch.setitem(MODES, name, fake)
    arguments = argparse.Namespace(
        only=["wsfleet", "ws", "guide"], modes=["rooms", "publish"], seconds=1
    )
    measurements = command.peers_round(0, arguments)
    assert [(one["peer"], one["mode"]) for one in measurements] == [
        ("ws", "rooms"),
        ("guide", "rooms"),
        ("guide", "publish"),
    ]


def test_calls_only_of_peers_with_such_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Socket.IO has no handlers in threads; a node for handlers is measured in nothing else."""
    monkeypatch.setattr(command, "Rig", FakeRig)
    for name, mode in MODES.items():
        fake = dataclasses.replace(mode, measure=lambda rig, size, seconds: {"value": 1})
        monkeypatch.setitem(MODES, name, fake)
    peers = ["handlers", "handlers-http", "python-socketio", "socket.io", "ws"]
    arguments = argparse.Namespace(only=peers, modes=list(MODES), seconds=1)
    measurements = list(command.peers_round(0, arguments))
    modes = {peer: {one["mode"] for one in measurements if one["peer"] == peer} for peer in peers}
    assert modes["handlers"] == modes["handlers-http"] == {"publish", "rpc", "rpc-thread"}
    assert modes["python-socketio"] == modes["socket.io"]
    assert modes["socket.io"] - modes["ws"] == {"publish", "rpc"}


def test_repeated_modes_replace_those_of_the_full_run() -> None:
    """The other modes stay, and the time of the repetition is stored."""
    old = {"mode": "one", "value": 1}, {"mode": "haproxy", "value": 2}
    full = {"began": "then", "measurements": list(old)}
    later = {"began": "now", "rounds": 3, "seconds": 1.0}
    later |= {"measurements": [{"mode": "haproxy", "value": 3}]}
    document = command.merge(full, later)
    assert document["measurements"] == [old[0], {"mode": "haproxy", "value": 3}]
    assert document["began"] == "then"
    assert document["again"] == {"haproxy": {"began": "now", "rounds": 3, "seconds": 1.0}}

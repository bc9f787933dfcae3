"""The example `room-game`, sticky by path: a room moves, and loses no step."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from lab.room_players import Player, check_nothing_was_lost, go_on, reached

if TYPE_CHECKING:
    from molecule.conftest import Cluster

GAME = Path(__file__).parents[3] / "examples" / "room-game"
NAMES = ("Ann", "Bob", "Cem", "Dee")
Deployment = Callable[[str], tuple[str, ...]]


@pytest.fixture(scope="module")
def deployment(with_node3: str, example: Callable[..., tuple[str, str]]) -> Deployment:
    """Return a function that gives the arguments of a playbook; another version restarts nodes."""
    config = yaml.safe_load((GAME / "wsfleet.yml").read_text())
    config["channel"]["namespaces"][0]["durability"] = "replicated"

    def arguments(version: str) -> tuple[str, ...]:
        return with_node3, *example(
            config,
            haproxy_stickiness="path",
            wsnode_app="room_game.app:realtime",
            wsnode_app_source=str(GAME),
            wsnode_app_check="/",
            wsnode_app_environment={"VERSION": version},
        )

    return arguments


@pytest.fixture(scope="module")
def _game(cluster: Cluster, deployment: Deployment) -> None:
    """Deploy the game; the balancers lead all players of a path to one process."""
    cluster.play("site.yml", *deployment("first"))


@pytest.fixture
async def players(cluster: Cluster, _game: None) -> AsyncIterator[list[Player]]:
    """Return players of a new room; all of them meet in one process."""
    room = secrets.token_hex(8)  # another test's room still has its board
    players = [Player(cluster.url, room, name) for name in NAMES]
    await reached(players, lambda: all(player.node for player in players), "all are in")
    await go_on(players)
    assert len({player.node for player in players}) == 1
    yield players
    for player in players:
        await player.leave()


async def test_a_drain_moves_a_room(cluster: Cluster, players: list[Player]) -> None:
    """All its players meet in another process, with the board as it was."""
    (home,) = {player.node for player in players}
    await asyncio.to_thread(cluster.output, "drain", home)
    try:
        await reached(players, lambda: all(p.node != home for p in players), "all have moved")
        await go_on(players)
        assert len({player.node for player in players}) == 1
        check_nothing_was_lost(players)
    finally:
        await asyncio.to_thread(cluster.output, "undrain", home)
        await asyncio.to_thread(cluster.well)


async def test_an_update_moves_a_room(
    cluster: Cluster, players: list[Player], deployment: Deployment
) -> None:
    """The game goes on while each node is restarted."""
    update = ("playbooks/rolling_update.yml", *deployment("next"))
    await asyncio.to_thread(cluster.play, *update)
    await go_on(players)
    assert all(len({visit.node for visit in player.visits}) > 1 for player in players)
    assert len({player.node for player in players}) == 1
    check_nothing_was_lost(players)
    await asyncio.to_thread(cluster.well)

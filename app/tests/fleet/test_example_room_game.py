"""The example `room-game` on node processes behind HAProxy: a room moves, and survives."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from lab.paths import ROOT
from lab.room_players import Player, check_nothing_was_lost, go_on, reached
from lab.waiting import settled
from tests.support.command import Outcome, wsfleet
from tests.support.fleet import Rig, running_fleet, servers_up

EXAMPLE = ROOT / "examples" / "room-game"
TURNS_BETWEEN_SAVES = 10
NAMES = ("Ann", "Bob", "Cem", "Dee")

Join = Callable[[str], Awaitable[Player]]


@pytest.fixture
def rig(processes: None, tmp_path: Path) -> Iterator[Rig]:
    """Return a fleet of three nodes with the game, sticky by path."""
    with running_fleet(
        tmp_path,
        nodes=3,
        haproxy={"haproxy_stickiness": "path"},
        WSFLEET_APP="room_game.app:realtime",
        WSFLEET_APP_DIR=str(EXAMPLE),
        WSFLEET_CONFIG=str(EXAMPLE / "wsfleet.yml"),
        WSFLEET_DRAIN_TIMEOUT="600",  # rooms move because they are told, not because time is over
    ) as running:
        yield running


@pytest.fixture
async def join(rig: Rig) -> AsyncIterator[Join]:
    """Return a function that lets a player into room 42, and waits for their first board."""
    players: list[Player] = []

    async def join(name: str) -> Player:
        players.append(player := Player(rig.base_url, "42", name))
        await reached([player], lambda: player.node != "", "the player is in")
        return player

    yield join
    for player in players:
        await player.leave()


async def operator(rig: Rig, command: str, node: str) -> Outcome:
    """Run an operator's command, while the players play."""
    return await asyncio.to_thread(wsfleet, command, node, "--fleet", rig.fleet_file)


async def test_a_drain_moves_a_room_and_loses_no_step(rig: Rig, join: Join) -> None:
    """All its players meet on the same other node, and on the first one when it is back."""
    players = [await join(name) for name in NAMES]
    await go_on(players)
    (home,) = {player.node for player in players}
    outcome = await operator(rig, "drain", home)
    assert outcome.code == 0, outcome
    await reached(players, lambda: all(p.node != home for p in players), "all have moved")
    await go_on(players)
    assert len({player.node for player in players}) == 1
    check_nothing_was_lost(players)

    outcome = await operator(rig, "undrain", home)
    assert outcome.code == 0, outcome

    async def all_up() -> bool:
        return await asyncio.to_thread(servers_up, rig) == 3

    await settled(all_up, "the node is back")
    await go_on(players)
    assert home not in {player.node for player in players}  # nobody moves without a reason
    players.append(await join("Eve"))
    await reached(players, lambda: {p.node for p in players} == {home}, "all have moved back")
    await go_on(players)
    check_nothing_was_lost(players)
    assert len({player.visits[-1].token for player in players}) == 1


async def test_a_stop_of_the_process_saves_the_room(rig: Rig, join: Join) -> None:
    """SIGTERM, as in a deploy, drains."""
    players = [await join(name) for name in NAMES]
    await go_on(players)
    (home,) = {player.node for player in players}
    rig.processes[home].terminate()
    await reached(players, lambda: all(p.node != home for p in players), "all have moved")
    await go_on(players)
    check_nothing_was_lost(players)


async def test_a_process_that_is_killed_loses_only_what_was_not_saved(rig: Rig, join: Join) -> None:
    """The room goes on elsewhere, with the board as it was last saved."""
    players = [await join(name) for name in NAMES]
    start = max(max(player.turns) for player in players)
    await reached(
        players,
        lambda: all(max(p.turns) > start + 2 * TURNS_BETWEEN_SAVES for p in players),
        "the board was saved",
    )
    (home,) = {player.node for player in players}
    rig.kill(home)
    known = [dict(player.turns) for player in players]
    await reached(players, lambda: all(p.node not in ("", home) for p in players), "all are back")
    await go_on(players)
    assert len({player.node for player in players}) == 1
    for player, turns in zip(players, known, strict=True):
        before, after = player.visits[-2:]
        assert after.token > before.token
        # The board of a later turn is sent after this one is saved.
        saved = (max(turns) - 1) // TURNS_BETWEEN_SAVES * TURNS_BETWEEN_SAVES
        assert after.turn > saved
        assert after.number >= turns[saved]

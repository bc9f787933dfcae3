"""Players of the example `room-game`, over real sockets; they reconnect as its page does."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from lab.waiting import settled

AGAIN = 0.1
"""Seconds until a player that was sent away or refused comes again."""
CENTRE = 12
"""Where a player begins, as `x`."""


@dataclass(frozen=True)
class Visit:
    """The first board of a connection, and the player's last board before it."""

    node: str
    token: int
    turn: int
    number: int
    acknowledged: int
    sent: int


class Player:
    """A player of a room that steps right and left again; a step follows the last one's answer.

    So the place of a player tells whether a step was lost or made twice.
    """

    def __init__(self, base_url: str, room: str, name: str) -> None:
        self.visits: list[Visit] = []
        self.acknowledged = self.sent = 0
        self.turns: dict[int, int] = {}
        """Number of the last step by turn, as boards had it."""
        self._url = f"{base_url.replace('http', 'ws')}/rooms/{room}"
        self._hello = json.dumps({"name": name, "key": f"the secret key of {name}"})
        self._task = asyncio.create_task(self._play())

    @property
    def node(self) -> str:
        """The node of the last visit; "" before the first one."""
        return self.visits[-1].node if self.visits else ""

    def check(self) -> None:
        """Raise the player's error."""
        if self._task.done():
            self._task.result()

    async def leave(self) -> None:
        """Stop playing."""
        self.check()
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _play(self) -> None:
        while True:
            try:
                async with connect(self._url, proxy=None, open_timeout=5) as socket:
                    await self._visit(socket)
            except (ConnectionClosed, InvalidHandshake, OSError, TimeoutError):
                await asyncio.sleep(AGAIN)

    async def _visit(self, socket: ClientConnection) -> None:
        await socket.send(self._hello)
        me = json.loads(await socket.recv())["you"]
        first = True
        async for text in socket:
            state = json.loads(text)
            mine, turn = state["board"]["players"][me], state["board"]["turn"]
            number = mine["number"]
            assert mine["x"] == CENTRE + number % 2, (mine, self.sent)
            if first:
                self._arrived(state, number)
            self.turns[turn] = number
            if first or number == self.sent:
                self.acknowledged = number
                self.sent = number + 1
                go = "right" if number % 2 == 0 else "left"
                await socket.send(json.dumps({"number": self.sent, "go": go}))
            first = False

    def _arrived(self, state: dict[str, Any], number: int) -> None:
        turn = state["board"]["turn"]
        known = self.acknowledged, self.sent
        self.visits.append(Visit(state["node"], state["token"], turn, number, *known))


async def reached(players: list[Player], condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; raise a player's error."""

    def checked() -> bool:
        for player in players:
            player.check()
        return condition()

    await settled(checked, what)


async def go_on(players: list[Player], steps: int = 3) -> None:
    """Wait until each player has made some more steps."""
    goals = [player.acknowledged + steps for player in players]
    await reached(
        players,
        lambda: all(p.acknowledged >= goal for p, goal in zip(players, goals, strict=True)),
        "the game goes on",
    )


def check_nothing_was_lost(players: list[Player]) -> None:
    """Each board that a player came back to has all that was acknowledged, and nothing else.

    Later holders of the lease have higher tokens, and turns that go on.
    """
    for player in players:
        for visit in player.visits:
            assert visit.acknowledged <= visit.number <= visit.sent, player.visits
        boards = [(visit.token, visit.turn) for visit in player.visits]
        assert boards == sorted(boards), boards
    holders = {(visit.token, visit.node) for player in players for visit in player.visits}
    assert len(holders) == len({token for token, _ in holders}), holders

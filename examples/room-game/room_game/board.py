"""The game: players walk over a board and collect dots. Rules alone: no network, no clock."""

import random
from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import BaseModel, Field

WIDTH, HEIGHT, DOTS, PLAYERS = 24, 14, 12, 30
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


class Move(BaseModel):
    """A step of a player; `number` ascends, so that a step that is sent twice is made once."""

    number: int = Field(ge=1, le=2**53)
    go: Literal["left", "right", "up", "down"]


class Player(BaseModel):
    """A player; `number` is that of the last step."""

    name: str
    x: int = WIDTH // 2
    y: int = HEIGHT // 2
    score: int = 0
    number: int = 0
    here: bool = True


class Board(BaseModel):
    """The state of a room; players have ids."""

    turn: int = 0
    players: dict[str, Player] = {}
    dots: list[tuple[int, int]] = []

    def play(self, here: Mapping[str, str], moves: Iterable[tuple[str, Move]]) -> None:
        """Play a turn; `here` has ids and names of the players that are in the room."""
        self.turn += 1
        for who, name in here.items():
            self.players.setdefault(who, Player(name=name))
        for who, player in self.players.items():
            player.here = who in here
        for who, move in moves:
            self._step(self.players[who], move)
        while len(self.dots) < DOTS:
            dot = random.randrange(WIDTH), random.randrange(HEIGHT)
            if dot not in self.dots:
                self.dots.append(dot)
        gone = sorted((p.score, who) for who, p in self.players.items() if not p.here)
        for _, who in gone[: max(0, len(self.players) - PLAYERS)]:
            del self.players[who]

    def _step(self, player: Player, move: Move) -> None:
        if move.number > player.number:
            player.number = move.number
            right, down = STEPS[move.go]
            player.x = min(max(player.x + right, 0), WIDTH - 1)
            player.y = min(max(player.y + down, 0), HEIGHT - 1)
            left = [dot for dot in self.dots if dot != (player.x, player.y)]
            player.score += len(self.dots) - len(left)
            self.dots = left

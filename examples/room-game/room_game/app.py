"""The rooms: one process of the cluster has a room's lease, its board, and all of its players."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field, StringConstraints

from room_game.board import PLAYERS, Board, Move
from wsfleet import CallError, Lease, Realtime

TURN = 0.1  # seconds
TURNS_BETWEEN_SAVES = 10
WAITING_MOVES = 50
NODE = os.environ.get("WSFLEET_NODE_NAME", "this machine")
PAGES = Path(__file__).parent / "pages"
ROOM = re.compile(rb"/rooms/[a-z0-9-]{1,30}")  # one spelling: HAProxy hashes the path as it comes

app = FastAPI(title="Dots")
realtime = Realtime(app)
rooms: dict[str, "Room"] = {}


class Hello(BaseModel):
    """The first message of a client; the key is the player's secret."""

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=20)]
    key: str = Field(min_length=16, max_length=64)


@dataclass
class Seat:
    """A player in a room of this process."""

    id: str
    name: str
    moves: deque[Move] = field(default_factory=deque)


class Room:
    """A room of this process, from its first player until it ends, or moves to another process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.board = Board()
        self.seats: dict[WebSocket, Seat] = {}
        self.saves = 0
        self.moves_out = False
        self.task = asyncio.create_task(self.run())
        rooms[name] = self

    async def run(self) -> None:
        """Play as long as this process holds the room's lease; then send the players away."""
        try:
            async with realtime.lease(f"room:{self.name}", ttl=5) as lease:
                self.board = await self.load()
                await self.play(lease)
                await self.save(lease)
        finally:  # the lease is free: the process that the players go to gets it at once
            del rooms[self.name]
            for websocket in list(self.seats):
                with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it has just left
                    await websocket.close(1012, "the room moves")

    async def play(self, lease: Lease) -> None:
        """Play until nobody is here, or the room moves: another process waits for its lease."""
        while self.seats and lease.held and not (self.moves_out or lease.wanted.is_set()):
            here = {seat.id: seat.name for seat in self.seats.values()}
            moves = [(seat.id, seat.moves.popleft()) for seat in self.seats.values() if seat.moves]
            self.board.play(here, moves)
            board = self.board.model_dump()
            text = json.dumps({"node": NODE, "token": lease.token, "board": board})
            for websocket in list(self.seats):
                with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                    await websocket.send_text(text)
            if self.board.turn % TURNS_BETWEEN_SAVES == 0:
                await self.save(lease)
            await asyncio.sleep(TURN)

    async def load(self) -> Board:
        """Return the board as the last holder of the lease has saved it."""
        found = await realtime.history(f"board:{self.name}", limit=1, reverse=True)
        boards = [Board.model_validate(each.data) for each in found.publications]
        return boards[0] if boards else Board()

    async def save(self, lease: Lease) -> None:
        """Save the board; the game stands still until that succeeds.

        The version is a fence: if a later holder has saved, what this one saves is not published.
        """
        while lease.held:
            self.saves += 1
            version = lease.token + self.saves
            with contextlib.suppress(CallError):  # Redis is unavailable
                await realtime.publish(f"board:{self.name}", self.board, version=version)
                return
            await asyncio.sleep(TURN)

    async def serve(self, websocket: WebSocket, seat: Seat) -> None:
        """Take the moves of a player until they leave, or the room sends them away."""
        self.seats[websocket] = seat
        try:
            await websocket.send_json({"you": seat.id})
            async for text in websocket.iter_text():
                seat.moves.append(Move.model_validate_json(text))
                if len(seat.moves) > WAITING_MOVES:
                    raise ValueError("too many moves")
        finally:
            del self.seats[websocket]


@app.websocket("/rooms/{name}")
async def join(websocket: WebSocket, name: str) -> None:
    """Let a player into a room; HAProxy sends all players of a path to one process."""
    if not ROOM.fullmatch(websocket.scope["raw_path"]):
        await websocket.close()
        return
    await websocket.accept()
    try:
        hello = Hello.model_validate_json(await websocket.receive_text())
        seat = Seat(hashlib.sha256(hello.key.encode()).hexdigest()[:12], hello.name)
        room = rooms.get(name) or Room(name)
        if len(room.seats) >= PLAYERS:
            await websocket.close(4000, "the room is full")
            return
        async with realtime.hold(websocket):  # players do not leave one by one in a drain
            await room.serve(websocket, seat)
    except (KeyError, ValueError):  # no text, or no valid message
        await websocket.close(1008, "invalid message")


@realtime.on_drain
async def move_all() -> None:
    """End all rooms of this process: save each one, and send its players away together."""
    for room in rooms.values():
        room.moves_out = True
    if rooms:
        await asyncio.wait([room.task for room in rooms.values()])


@app.get("/")
@app.get("/rooms/{name}")
def page() -> FileResponse:
    """Return the page: it asks for a name and a room, or plays in the room of its path."""
    return FileResponse(PAGES / "index.html")


app.mount("/pages", StaticFiles(directory=PAGES))

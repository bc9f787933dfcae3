"""The rooms: players meet in one process, and a deploy loses nothing."""

import json
from typing import Any

import pytest
from room_game.app import WAITING_MOVES
from room_game.board import PLAYERS

from wsfleet import Disconnect
from wsfleet.testing import HandshakeRefused, Testbed, TestbedWebSocket


class Guest:
    """A player: a socket, the player's id, and the last state that came."""

    def __init__(self, socket: TestbedWebSocket, player: str) -> None:
        self.socket = socket
        self.id = player
        self.state: dict[str, Any] = {}

    async def next(self) -> dict[str, Any]:
        """Return the player after the next turn."""
        self.state = json.loads(await self.socket.receive())
        player: dict[str, Any] = self.state["board"]["players"][self.id]
        return player

    async def step(self, number: int, go: str) -> dict[str, Any]:
        """Make a step; return the player when the board has it."""
        self.socket.send(json.dumps({"number": number, "go": go}))
        while (player := await self.next())["number"] < number:
            pass
        return player


async def join(bed: Testbed, name: str, room: str = "42") -> Guest:
    """Join a room; the same name is the same player."""
    socket = await bed.websocket(f"/rooms/{room}")
    socket.send(json.dumps({"name": name, "key": f"the secret key of {name}"}))
    player = Guest(socket, json.loads(await socket.receive())["you"])
    await player.next()
    return player


async def test_players_of_a_room_see_each_other(bed: Testbed) -> None:
    """And nobody of another room."""
    ann, bob, eve = await join(bed, "Ann"), await join(bed, "Bob"), await join(bed, "Eve", "43")
    before = await ann.next()
    after = await ann.step(1, "left")
    assert (after["x"], after["y"]) == (before["x"] - 1, before["y"])
    await bob.next()
    assert bob.state["board"]["players"][ann.id]["x"] == after["x"]
    assert {each["name"] for each in bob.state["board"]["players"].values()} == {"Ann", "Bob"}
    assert list(eve.state["board"]["players"]) == [eve.id]
    assert "secret" not in json.dumps(bob.state)


async def test_a_step_that_is_sent_twice_is_made_once(bed: Testbed) -> None:
    """A page sends steps again that it does not find on the board."""
    ann = await join(bed, "Ann")
    first = await ann.step(1, "left")
    ann.socket.send('{"number": 1, "go": "left"}')
    assert (await ann.step(2, "right"))["x"] == first["x"] + 1


async def test_a_drain_moves_the_room(bed: Testbed) -> None:
    """The players go together, and find the board as it was, under a higher fencing token."""
    ann, bob = await join(bed, "Ann"), await join(bed, "Bob")
    left = [await ann.step(1, "up"), await bob.step(1, "down")]
    tokens, turn = [ann.state["token"]], ann.state["board"]["turn"]
    await bed.drain(ann.socket.node)
    for player in (ann, bob):
        assert str(await player.socket.disconnected()) == "1012: the room moves"
    await bed.start_node()
    again = [await join(bed, "Ann"), await join(bed, "Bob")]
    assert {player.socket.node for player in again} == {"node2"}
    assert [await player.next() for player in again] == left
    assert again[0].state["token"] > tokens[0]
    assert again[0].state["board"]["turn"] > turn


async def test_a_room_outlives_its_players(bed: Testbed) -> None:
    """The last one to leave ends it in this process; the board is saved."""
    ann = await join(bed, "Ann")
    left = await ann.step(1, "up")
    await ann.socket.close()
    bob = await join(bed, "Bob")
    assert bob.state["board"]["players"][ann.id] == left | {"here": False}
    ann = await join(bed, "Ann")
    assert await ann.next() == left


@pytest.mark.parametrize("path", ["/rooms/%34%32", "/rooms/UP", f"/rooms/{'x' * 31}"])
async def test_a_room_has_one_path(bed: Testbed, path: str) -> None:
    """HAProxy would take another spelling for another room, on another node."""
    with pytest.raises(HandshakeRefused, match="403"):
        await bed.websocket(path)


@pytest.mark.parametrize("message", ['{"number": 0, "go": "up"}', '{"number": 1}', "up", b"up"])
async def test_messages_are_checked(bed: Testbed, message: str | bytes) -> None:
    """A client that sends anything else is not a player."""
    ann = await join(bed, "Ann")
    ann.socket.send(message)
    assert (await ann.socket.disconnected()).code == 1008


async def test_a_client_that_sends_too_much_is_closed(bed: Testbed) -> None:
    """Steps wait for their turn, but not without limit."""
    ann = await join(bed, "Ann")
    for number in range(1, WAITING_MOVES + 20):
        ann.socket.send(json.dumps({"number": number, "go": "up"}))
    assert (await ann.socket.disconnected()).code == 1008


async def test_a_room_can_be_full(bed: Testbed) -> None:
    """The page says so, and does not come back."""
    for number in range(PLAYERS):
        await join(bed, f"player {number}")
    late = await bed.websocket("/rooms/42")
    late.send(json.dumps({"name": "Eve", "key": "the secret key of Eve"}))
    with pytest.raises(Disconnect, match="4000: the room is full"):
        await late.receive()

"""The chat: sign-in, checked messages, and that nothing is lost."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from wsfleet import Disconnect, Error
from wsfleet.testing import Testbed, TestbedClient

SignIn = Callable[[str], Awaitable[TestbedClient]]


def draft(text: str, key: str = "") -> dict[str, Any]:
    """Return a message as the page sends it."""
    return {"text": text, "key": key or f"key of {text}"}


async def test_messages_reach_everybody_and_are_kept(bed: Testbed, sign_in: SignIn) -> None:
    """With author and time; the page loads them later."""
    ann, bob = await sign_in("Ann"), await sign_in("Bob")
    lobby = await ann.subscribe("room:lobby")
    await (await bob.subscribe("room:lobby")).publish(draft("hello"))
    message = (await lobby.next()).data
    assert (message["author"], message["text"]) == ("Bob", "hello")
    kept = await bed.http.get("/api/rooms/lobby/messages")
    assert kept.json() == [message]


async def test_one_must_sign_in(bed: Testbed) -> None:
    """The connection ends for good: the page shows the form."""
    with pytest.raises(Disconnect, match="4501: sign in first"):
        await bed.connect()
    assert (await bed.http.get("/api/me")).status_code == 401


async def test_rooms_must_exist(sign_in: SignIn) -> None:
    """The page shows why it cannot be opened."""
    ann = await sign_in("Ann")
    with pytest.raises(Error, match="404: no such room"):
        await ann.subscribe("room:cellar")
    with pytest.raises(Error, match="404: no such room"):
        await ann.publish("room:cellar", draft("is anybody here?"))


@pytest.mark.parametrize("text", ["", "x" * 2001, None, 7])
async def test_messages_are_checked(sign_in: SignIn, text: object) -> None:
    """They are published by nobody."""
    lobby = await (await sign_in("Ann")).subscribe("room:lobby")
    with pytest.raises(Error, match="422"):
        await lobby.publish({"text": text, "key": "long enough"})


async def test_a_message_sent_twice_is_said_once(sign_in: SignIn) -> None:
    """A page that lost the acknowledgement sends it again."""
    lobby = await (await sign_in("Ann")).subscribe("room:lobby")
    for text in ("hello", "hello", "bye"):
        await lobby.publish(draft(text))
    assert [(await lobby.next()).data["text"] for _ in range(2)] == ["hello", "bye"]


async def test_who_is_here(sign_in: SignIn) -> None:
    """With names, for the page's list."""
    ann, bob = await sign_in("Ann"), await sign_in("Bob")
    lobby = await ann.subscribe("room:lobby")
    await bob.subscribe("room:lobby")
    assert {each.info["name"] for each in (await lobby.presence()).values()} == {"Ann", "Bob"}


async def test_a_room_is_renamed_for_all(sign_in: SignIn) -> None:
    """By a call; everybody in the room is told."""
    ann, bob = await sign_in("Ann"), await sign_in("Bob")
    kitchen = await bob.subscribe("room:kitchen")
    room = await ann.rpc("room.rename", {"room": "kitchen", "title": "Tea"})
    assert room == {"name": "kitchen", "title": "Tea"}
    assert (await kitchen.next()).data == {"renamed": room}


async def test_a_deploy_loses_nothing(bed: Testbed, sign_in: SignIn) -> None:
    """A client that is sent to another node gets what it missed."""
    ann, bob = await sign_in("Ann"), await sign_in("Bob")
    lobby = await ann.subscribe("room:lobby")
    await bed.drain(ann.node)
    assert (await ann.disconnected()).code == 3001
    await bob.connect()
    await bob.publish("room:lobby", draft("are you there?"))
    await ann.connect()
    assert (await lobby.next()).data["text"] == "are you there?"
    assert lobby.recovered

"""An application of `Realtime`, for type checkers alone."""

import asyncio

from fastapi import FastAPI, WebSocket
from pydantic import BaseModel, Field

from wsfleet import (
    Accept,
    Allow,
    CallError,
    Connect,
    Disconnect,
    Disconnected,
    Error,
    GapError,
    Position,
    Publish,
    Published,
    Realtime,
    Refresh,
    Renew,
    Rpc,
    Session,
    SubRefresh,
    Subscribe,
)

app = FastAPI()
realtime = Realtime(app, timeout=3.0)


class Login(BaseModel):
    """The data of a connect command."""

    token: str


class Message(BaseModel):
    """A message."""

    text: str = Field(min_length=1)


class Room(BaseModel):
    """A room."""

    name: str
    title: str


@realtime.on_connect
async def enter(event: Connect[Login | None]) -> Accept | None:
    """Identify a client."""
    if event.data is None:
        return None
    token: str = event.data.token
    if token == "expired":  # noqa: S105 - no token
        raise Disconnect(4501, "sign in first")
    allow = Allow(presence=False)
    return Accept(token, info={"name": token}, channels={"news": allow}, session=token)


@realtime.on_refresh
async def refresh(event: Refresh) -> Renew | None:
    """Extend a connection."""
    return Renew(2**31) if event.client.user else None


@realtime.on_subscribe("room")
def join(event: Subscribe) -> None:
    """Let a client in."""
    name: str = event.name
    if name == "secret":
        raise Error(403, "not your room", temporary=False)


@realtime.on_sub_refresh("room")
async def stay(event: SubRefresh) -> Renew:
    """Extend a subscription."""
    return Renew(0, info=event.channel)


@realtime.on_publish("room")
async def say(event: Publish[Message]) -> Message:
    """Publish a message."""
    return Message(text=event.data.text.strip())


@realtime.on_publish("tagged")
def say_tagged(event: Publish[Message]) -> Published[Message]:
    """Publish a message with a tag."""
    return Published(event.data, tags={"user": event.client.user})


@realtime.on_rpc("room.rename")
def rename(event: Rpc[Room]) -> Room:
    """Rename a room."""
    realtime.from_thread(realtime.publish("room:1", {"renamed": event.data}))
    return event.data


@realtime.on_rpc("draft")
async def draft(event: Rpc[str]) -> int:
    """Keep a draft in the session."""
    session: Session = event.client.session
    session["drafts"] = [*session.get("drafts", []), event.data]
    await session.save()
    return len(session["drafts"])


@realtime.on_rpc("drafts.forget")
def forget_drafts(event: Rpc[None]) -> None:
    """Remove a key of the session, in a thread."""
    event.client.session.pop("drafts", None)
    realtime.from_thread(event.client.session.save())


@realtime.on_disconnect
async def left(event: Disconnected) -> None:
    """Note who has left."""
    code: int = event.code
    assert code >= 0


@realtime.on_drain
async def drain() -> None:
    """Save what is not saved."""


@app.post("/rooms/{room}/pin")
async def pin(room: str, message: Message) -> int:
    """Publish from a route."""
    try:
        position: Position = await realtime.publish(f"room:{room}", message, tags={"a": "b"})
    except CallError as error:
        return error.code
    return position.offset


@app.websocket("/ticker/{symbol}")
async def ticker(websocket: WebSocket, symbol: str) -> None:
    """Feed a WebSocket."""
    await websocket.accept()
    async with realtime.hold(websocket), realtime.feed(websocket, f"ticker:{symbol}", "news"):
        async for _ in websocket.iter_text():
            pass


async def archive(since: Position) -> None:
    """Listen as the only one in the cluster."""
    async with realtime.lease("archive") as lease:
        try:
            async for publication in realtime.listen("room:1", since=since):
                if not lease.held:
                    return
                since = publication.position
        except GapError:
            history = await realtime.history("room:1", limit=-1)
            since = history.position
        await asyncio.wait_for(lease.lost.wait(), 1)
    for name, clients in (await realtime.channels("room:*")).items():
        assert name
        assert clients > 0
    users = {info.user for info in (await realtime.presence("room:1")).values()}
    assert len(users) <= (await realtime.presence_stats("room:1")).num_users

"""The chat: sign-in by the site's session, rooms from the database, stored messages."""

from pathlib import Path
from typing import Annotated

from fastapi import Cookie, Depends, FastAPI, HTTPException, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field, StringConstraints

from chat.database import Database, Message, Room, User
from wsfleet import Accept, Connect, Disconnect, Error, Publish, Published, Realtime, Rpc, Subscribe

app = FastAPI(title="Chat")
realtime = Realtime(app)
db = Database()


class Login(BaseModel):
    """The form of the page."""

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=30)]


class Notice(BaseModel):
    """A text of an operator."""

    text: str


class Draft(BaseModel):
    """A message as a client sends it; a message with the same key is published once."""

    text: str = Field(min_length=1, max_length=2000)
    key: str = Field(min_length=8, max_length=64)


class Rename(BaseModel):
    """A new title for a room."""

    room: str
    title: str = Field(min_length=1, max_length=40)


# The events of the clients. Each handler is a plain function, because it reads a database: it
# runs in a thread, and blocks nobody.


@realtime.on_connect
def enter(event: Connect) -> Accept:
    """Let in whoever has signed in."""
    user = db.user_of(event.cookies.get("session", ""))
    if user is None:
        raise Disconnect(4501, "sign in first")
    return Accept(str(user.id), info={"name": user.name})


@realtime.on_subscribe("room")
def join(event: Subscribe) -> None:
    """Let users into rooms that exist."""
    if db.room(event.name) is None:
        raise Error(404, "no such room")


@realtime.on_publish("room")
def say(event: Publish[Draft]) -> Published:
    """Keep a message, and publish what was kept: with its number, author and time."""
    if db.room(event.name) is None:
        raise Error(404, "no such room")
    user = int(event.client.user)
    message = db.keep(event.name, user, event.data.text, event.data.key)
    return Published(message, idempotency_key=f"{user}-{event.data.key}")


@realtime.on_rpc("room.rename")
async def rename(event: Rpc[Rename]) -> Room:
    """Rename a room, and tell everybody in it."""
    room = db.rename(event.data.room, event.data.title)
    if room is None:
        raise Error(404, "no such room")
    await realtime.publish(f"room:{room.name}", {"renamed": room})
    return room


# The page and its routes.


def signed_in(session: Annotated[str, Cookie()] = "") -> User:
    """Return the user of a request."""
    user = db.user_of(session)
    if user is None:
        raise HTTPException(401, "sign in first")
    return user


Me = Annotated[User, Depends(signed_in)]


@app.post("/api/login")
def login(who: Login, response: Response) -> User:
    """Sign in by a name; a real application asks for more."""
    user, session = db.sign_in(who.name)
    response.set_cookie("session", session, httponly=True, samesite="lax")
    return user


@app.get("/api/me")
def me(user: Me) -> User:
    """Return the user."""
    return user


@app.get("/api/rooms")
def rooms(user: Me) -> list[Room]:
    """Return all rooms."""
    return db.rooms()


@app.get("/api/rooms/{room}/messages")
def messages(room: str, user: Me, before: int = 2**62) -> list[Message]:
    """Return the last 50 messages of a room before one of them, oldest first."""
    return db.messages(room, before, 50)


@app.post("/api/rooms/{room}/notice")
async def notice(room: str, notice: Notice, user: Me) -> dict[str, int]:
    """Publish from an ordinary route."""
    position = await realtime.publish(f"room:{room}", {"notice": notice.text})
    return {"offset": position.offset}


app.mount("/", StaticFiles(directory=Path(__file__).parent / "pages", html=True))

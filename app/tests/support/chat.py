"""A chat whose handlers a test runs in the node's process, or in a process of their own."""

import os
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from wsfleet import (
    Accept,
    Allow,
    Connect,
    Disconnect,
    Disconnected,
    Error,
    Publish,
    Realtime,
    Rpc,
    Subscribe,
)

realtime = Realtime(timeout=30.0)  # also on a busy machine


class Message(BaseModel):
    """A message of a client."""

    text: str = Field(min_length=1, max_length=20)


@realtime.on_connect
async def enter(event: Connect) -> Accept | None:
    """Let in clients with the site's cookie, or with a name in the connect command."""
    user = event.cookies.get("session") or event.emulated_headers.get("x-name", "")
    if user == "banned":
        raise Disconnect(4501, "sign in first")
    if not user:
        return None
    return Accept(
        user=user,
        info={"name": user.title()},
        meta={"plan": "free"},
        data={"hello": user, "asked": event.data, "channels": sorted(event.channels)},
        channels={"news": Allow(data={"today": 1})},
    )


@realtime.on_subscribe("room")
def join(event: Subscribe) -> Allow:
    """Let everybody into every room but one."""
    if event.name == "closed":
        raise Error(403, "not your room")
    return Allow(info={"seat": event.data}, presence=True)


@realtime.on_publish("room")
async def say(event: Publish[Message]) -> dict[str, str]:
    """Publish a valid message with its author and room."""
    return {"text": event.data.text, "author": event.client.user, "room": event.name}


@realtime.on_rpc("add")
def add(event: Rpc[list[int]]) -> int:
    """Return a sum, from a thread."""
    return sum(event.data)


@realtime.on_rpc("announce")
async def announce(event: Rpc[str]) -> None:
    """Publish as the server."""
    await realtime.publish("news", {"announced": event.data})


@realtime.on_rpc("who")
async def who(event: Rpc) -> dict[str, Any]:
    """Return what the handler knows of the client."""
    return {
        "address": event.address,
        "cookies": dict(event.cookies),
        "agent": event.headers.get("user-agent"),
        "emulated": dict(event.emulated_headers),
        "info": event.client.info.decode(),
        "meta": event.client.meta.decode(),
    }


@realtime.on_rpc("process")
async def process(event: Rpc) -> int:
    """Return the process that runs the handlers."""
    return os.getpid()


@realtime.on_rpc("block")
async def block(event: Rpc[float]) -> None:
    """Block the event loop, as nobody should; a file shows that it has begun."""
    Path(os.environ["CHAT_BLOCKED"]).touch()  # noqa: ASYNC240
    time.sleep(event.data)  # noqa: ASYNC251


@realtime.on_rpc("fail")
async def fail(event: Rpc) -> None:
    """Have a defect."""
    raise ZeroDivisionError


@realtime.on_disconnect
async def leave(event: Disconnected) -> None:
    """Announce the end of a connection."""
    await realtime.publish("news", {"left": event.client.user})

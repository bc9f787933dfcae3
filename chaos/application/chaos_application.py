"""Handlers that sleep, block the event loop and raise, each at a rate: for `scripts/chaos`.

The rates, from 0 to 1, are in the environment: CHAOS_SLEEP, CHAOS_BLOCK, CHAOS_RAISE. The file
CHAOS_DISCONNECTS gets a line with the client's id and the close code for each disconnect that was
handled. It is a file, because a handler must be able to write when Redis is unavailable.
"""

import asyncio
import json
import os
import random
import time
from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel
from wsfleet import Accept, Connect, Disconnected, Publish, Published, Realtime, Subscribe

SLEEP, BLOCK, RAISE = (float(os.environ[f"CHAOS_{name}"]) for name in ("SLEEP", "BLOCK", "RAISE"))
DISCONNECTS = Path(os.environ["CHAOS_DISCONNECTS"])
TIMEOUT, LONGEST_SLEEP, LONGEST_BLOCK = 2.0, 3.0, 0.3
"""Seconds. Some handlers sleep longer than the timeout."""

app = FastAPI()
realtime = Realtime(app, timeout=TIMEOUT)


class DefectError(Exception):
    """A defect of a handler."""


class Message(BaseModel):
    """A message of `wsfleet verify-delivery`; one that is sent again has the same key."""

    run: str
    publisher: int
    sequence: int
    idempotency_key: str


def happens(rate: float) -> bool:
    """Return True at a rate."""
    return random.random() < rate  # noqa: S311 - no secret


async def misbehave() -> None:
    """Sleep, block the event loop, or raise, each at its rate."""
    if happens(SLEEP):
        await asyncio.sleep(random.uniform(0, LONGEST_SLEEP))  # noqa: S311 - no secret
    if happens(BLOCK):
        time.sleep(random.uniform(0, LONGEST_BLOCK))  # noqa: ASYNC251, S311 - that is the fault
    if happens(RAISE):
        raise DefectError


@app.get("/health")
async def health() -> None:
    """Answer the check of an update, and that of `scripts/chaos`."""


@realtime.on_connect
async def enter(event: Connect) -> Accept:
    """Let everybody in."""
    await misbehave()
    return Accept("chaos")


@realtime.on_subscribe("handled")
def join(event: Subscribe) -> None:
    """Let everybody subscribe, from a thread of its own."""
    if happens(SLEEP):
        time.sleep(random.uniform(0, LONGEST_SLEEP))  # noqa: S311 - no secret
    if happens(RAISE):
        raise DefectError


@realtime.on_publish("handled")
async def say(event: Publish[Message]) -> Published[Message]:
    """Publish a message once, however often it is sent."""
    await misbehave()
    return Published(event.data, idempotency_key=event.data.idempotency_key)


@realtime.on_disconnect
async def leave(event: Disconnected) -> None:
    """Record the end of a connection; a call that raises before is repeated."""
    await misbehave()
    line = json.dumps({"client": event.client.id, "code": event.code})
    with DISCONNECTS.open("a") as file:  # noqa: ASYNC230 - one write of one line
        file.write(line + "\n")

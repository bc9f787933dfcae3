"""The lifespan of an application in a test."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.types import ASGIApp, Message, Scope


@contextlib.asynccontextmanager
async def running(app: ASGIApp) -> AsyncIterator[None]:
    """Run an application's lifespan around a block.

    An application that raises before it answers has no lifespan.
    Source: https://asgi.readthedocs.io/en/latest/specs/lifespan.html

    Raises:
        RuntimeError: its start-up or shutdown failed.
    """
    events: asyncio.Queue[Message] = asyncio.Queue()
    answers: asyncio.Queue[Message | None] = asyncio.Queue()
    scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
    scope["state"] = {}

    async def live() -> None:
        try:
            await app(scope, events.get, answers.put)
        finally:
            answers.put_nowait(None)

    async def step(name: str) -> bool:
        events.put_nowait({"type": f"lifespan.{name}"})
        answer = await answers.get()
        if answer is not None and answer["type"] == f"lifespan.{name}.failed":
            await asyncio.wait([task])
            raise RuntimeError(f"the {name} failed: {answer.get('message', '')}") from (
                task.exception()
            )
        return answer is not None

    task = asyncio.create_task(live())
    supported = await step("startup")
    try:
        yield
    finally:
        if supported:
            await step("shutdown")
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()

"""Handlers of a `Realtime`, for clients of a node: they decide, and do no work of their own."""

from wsfleet import Publish, Realtime, Rpc, Subscribe

realtime = Realtime()


@realtime.on_subscribe("")
async def join(event: Subscribe) -> None:
    """Let all clients into all channels."""


@realtime.on_publish("")
async def publish(event: Publish[str]) -> str:
    """Publish the text."""
    return event.data


@realtime.on_rpc("echo")
async def echo(event: Rpc[str]) -> str:
    """Answer with the text."""
    return event.data


@realtime.on_rpc("echo.thread")
def echo_in_a_thread(event: Rpc[str]) -> str:
    """Answer with the text, from a thread."""
    return event.data

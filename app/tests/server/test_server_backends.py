"""The backend of a node's events: the `Realtime` that it serves, or a router."""

from pathlib import Path

import pytest
from centrifuge import CentrifugeError  # type: ignore[import-untyped]

from lab.waiting import settled
from tests.support import realtime_guest
from tests.support.backend import FakeBackend
from tests.support.metrics import value
from tests.support.nodes import StartNode
from tests.support.peer import Peer
from tests.support.sdk import sdk, subscribed
from tests.support.tokens import token
from wsfleet.application.application import Application
from wsfleet.application.port import Subscribed
from wsfleet.channels.permissions import Channels
from wsfleet.config.schema import ChannelConfig
from wsfleet.protocol.centrifuge.messages import RPCRequest, RPCResult
from wsfleet.server.server import handlers, merged

GUEST = "tests.support.realtime_guest:realtime"


@pytest.fixture
def guest_config(tmp_path: Path) -> Path:
    """Return the configuration of the application."""
    realtime_guest.disconnected.clear()
    realtime_guest.may_drain.set()
    path = tmp_path / "config.yml"
    path.write_text(realtime_guest.CONFIG)
    return path


@pytest.mark.backends("redis", "memory")
async def test_the_handlers_of_a_realtime_decide(start_node: StartNode, guest_config: Path) -> None:
    """On connect, subscribe, publish, a call and the end of a real SDK's client."""
    node = await start_node(app=GUEST, config=guest_config)
    async with sdk(node, data={"name": "ann"}) as client:
        assert (await client.rpc("greeting", None)).data == "hello ann"
        subscription, events = await subscribed(client, "room:1")
        assert events.subscribed[0].data == {"topic": "1"}
        await subscription.publish({"text": "hello"})
        await settled(lambda: events.data == [{"text": "HELLO"}], "the publication arrives")
        (publication,) = (ctx.pub for ctx in events.publications)
        assert (publication.tags, publication.info.conn_info) == ({"by": "ann"}, {"name": "ann"})
        with pytest.raises(CentrifugeError, match="at least 1 character"):
            await subscription.publish({"text": ""})
        with pytest.raises(CentrifugeError, match="internal server error"):
            await client.rpc("broken", None)
    await settled(lambda: len(realtime_guest.disconnected) == 1, "told of the end")
    (event,) = realtime_guest.disconnected
    assert (event.client.user, event.client.state) == ("ann", {"greeting": "hello ann"})
    labels = {"event": "rpc", "namespace": "broken", "reason": "exception"}
    assert value(node, "handler_errors_total", **labels) == 1


@pytest.mark.parametrize("backend", ["memory"], indirect=True)
async def test_a_router_decides_beside_the_handlers(
    start_node: StartNode, guest_config: Path
) -> None:
    """On what they do not claim: each event goes to its own."""
    other = FakeBackend({"rpc other": b"1", "subscribe live": Subscribed()})
    node = await start_node(app=GUEST, config=guest_config, router=other.router)
    async with Peer(node, token=token("ann")) as peer:
        assert await peer.result(RPCRequest(method="other")) == RPCResult(b"1")
        assert await peer.subscribe("live:1") is not None
        assert await peer.subscribe("room:1") is not None


def test_a_handler_and_a_router_for_one_event_are_an_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The process ends before it serves anybody, with a line for each event."""
    application = Application(GUEST, ".")
    application.load()
    other = FakeBackend({"connect": None, "rpc greeting": b"1", "rpc other": b"1"})
    with pytest.raises(SystemExit, match="3"):
        merged([other.router, *handlers(application, "")], Channels(ChannelConfig()))
    assert capsys.readouterr().err.splitlines() == [
        "connect has two backends: remove its handler, or its proxy in the configuration",
        "rpc 'greeting' has two backends: remove its handler, or its proxy in the configuration",
    ]

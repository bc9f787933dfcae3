"""People chat by the SDK while a node is killed; afterwards it serves again."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import centrifuge
import pytest
import yaml

from lab.waiting import settled, tasks_ended, until

if TYPE_CHECKING:
    from molecule.conftest import Cluster

CHAT = Path(__file__).parents[3] / "examples" / "chat"
NODES = ("node1", "node2", "node3")
PEOPLE = [f"person{number}" for number in range(9)]
DATABASE = "/var/lib/tutorial/people.db"
LEFT = "/var/lib/tutorial/left"
HANDLER = f'''

from wsfleet import Disconnected


@realtime.on_disconnect
async def left(event: Disconnected) -> None:
    """Record the end of a connection."""
    with open("{LEFT}", "a") as file:
        file.write(f"{{event.client.id}} {{event.code}}\\n")
'''
SIGN_IN = """
import sqlite3, sys
path, *people = sys.argv[1:]
with sqlite3.connect(path) as db:
    for number, name in enumerate(people, 1):
        db.execute("INSERT INTO users VALUES (?, ?)", (number, name))
        db.execute("INSERT INTO sessions VALUES (?, ?)", ("session-of-" + name, number))
"""


@pytest.fixture
def people(
    cluster: Cluster, with_node3: str, example: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    """Deploy the chat, and sign the same people in on each host, whose database is its own."""
    source = Path(shutil.copytree(CHAT, tmp_path / "chat"))
    with (source / "chat" / "app.py").open("a") as file:
        file.write(HANDLER)
    variables = example(
        yaml.safe_load((CHAT / "wsfleet.yml").read_text()),
        wsnode_app="chat.app:realtime",
        wsnode_app_source=str(source),
        wsnode_app_check="/",
        wsnode_app_environment={"CHAT_DATABASE": DATABASE},
    )
    cluster.play("playbooks/rolling_update.yml", with_node3, *variables)
    for name in NODES:
        command = f"runuser -u wsfleet -- python3 -c %s {DATABASE} {' '.join(PEOPLE)}"
        cluster.host(name).check_output(command, SIGN_IN)


@pytest.fixture
def node1_killed(cluster: Cluster) -> Iterator[Callable[[], None]]:
    """Return a function that kills the node of node1, and keeps it dead until the test ends."""
    unit = "wsnode@8001"

    def kill() -> None:
        cluster.on("node1", f"systemctl kill --signal KILL {unit}; systemctl stop {unit}")

    yield kill
    cluster.on("node1", f"systemctl start {unit}")
    cluster.well()


class Lobby(centrifuge.SubscriptionEventHandler):  # type: ignore[misc]  # the SDK has no types
    """The lobby as one person hears it."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.recovered: list[bool] = []

    async def on_subscribed(self, ctx: centrifuge.SubscribedContext) -> None:
        """Note whether a subscription was recovered."""
        if ctx.was_recovering:
            self.recovered.append(ctx.recovered)

    async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
        """Note a message."""
        self.heard.append(ctx.pub.data["text"])


class Person(centrifuge.ClientEventHandler):  # type: ignore[misc]  # the SDK has no types
    """A person in the lobby who talks until the end; the SDK reconnects and recovers."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self.ids: list[str] = []
        self.said: list[str] = []
        self.lobby = Lobby()
        self.client = centrifuge.Client(
            f"{url.replace('http', 'ws', 1)}/connection/websocket",
            events=self,
            headers={"Cookie": f"session=session-of-{name}"},
            min_reconnect_delay=0.1,
            max_reconnect_delay=1.0,
        )

    async def on_connected(self, ctx: centrifuge.ConnectedContext) -> None:
        """Note the id of a connection."""
        self.ids.append(ctx.client)

    async def enter(self) -> None:
        """Connect, and subscribe to the lobby."""
        await self.client.connect()
        lobby = self.client.new_subscription("room:lobby", events=self.lobby)
        await lobby.subscribe()
        await lobby.ready()

    async def talk(self, end: asyncio.Event) -> None:
        """Say one message after the other; each again, with its key, until it is acknowledged."""
        for number in itertools.count():
            if end.is_set():
                return
            text = f"{self.name}: {number}"
            while not await self._say({"text": text, "key": f"key of {text}"}):
                await asyncio.sleep(0.2)
            self.said.append(text)
            await asyncio.sleep(0.1)

    async def _say(self, message: dict[str, Any]) -> bool:
        try:
            await self.client.publish("room:lobby", message)
        except centrifuge.ReplyError as error:
            if not error.temporary:
                raise
        except centrifuge.CentrifugeError:
            pass
        else:
            return True
        return False


async def talked(people: list[Person], more: int = 5) -> None:
    """Wait until everybody has said some more."""
    goals = [len(person.said) + more for person in people]
    await settled(
        lambda: all(len(p.said) >= goal for p, goal in zip(people, goals, strict=True)),
        "everybody talks",
    )


def ends(cluster: Cluster) -> list[list[str]]:
    """Return client id and close code of each disconnect that was told, on all hosts."""
    lines = [cluster.on(name, f"cat {LEFT} 2>/dev/null || true").splitlines() for name in NODES]
    return [line.split() for line in itertools.chain(*lines)]


@pytest.mark.usefixtures("people")
async def test_a_node_is_killed_while_people_chat(
    cluster: Cluster, node1_killed: Callable[[], None]
) -> None:
    """Everybody hears every message once, and each connection's end is told once."""
    people = [Person(cluster.url, name) for name in PEOPLE]
    await asyncio.gather(*(person.enter() for person in people))
    there = (await asyncio.to_thread(cluster.connections))["node1-8001"]
    assert there
    end = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for person in people:
            group.create_task(person.talk(end))
        await talked(people)
        await asyncio.to_thread(node1_killed)
        await settled(
            lambda: sum(len(person.ids) > 1 for person in people) == there, "its clients are back"
        )
        await talked(people)
        end.set()
    moved = [person for person in people if len(person.ids) > 1]
    said = sorted(itertools.chain(*(person.said for person in people)))
    for person in people:
        lobby = person.lobby
        await settled(lambda: len(lobby.heard) >= len(said), "everybody hears all")  # noqa: B023
        assert sorted(lobby.heard) == said
        assert lobby.heard == people[0].lobby.heard
        assert lobby.recovered == [True] * (len(person.ids) - 1)
        await person.client.disconnect()
    await tasks_ended()

    ids = set(itertools.chain(*(person.ids for person in people)))
    until(lambda: {client for client, _ in ends(cluster)} >= ids, "every end is told")
    told = Counter(client for client, _ in ends(cluster) if client in ids)
    assert set(told.values()) == {1}
    of_the_dead = {client for client, code in ends(cluster) if code == "0"}
    assert of_the_dead == {person.ids[0] for person in moved}

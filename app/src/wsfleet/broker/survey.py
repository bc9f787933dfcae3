"""Surveys: counts of clients, users and subscribers, asked of every node."""

import asyncio
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import structlog

from wsfleet.broker import control
from wsfleet.broker.broker import Broker
from wsfleet.broker.control import Count, Survey
from wsfleet.broker.events import BrokerEventHandler, Dispatcher, NodeCount
from wsfleet.channels.glob import compile_glob
from wsfleet.redis.background import Background
from wsfleet.redis.store import UnavailableError

log = structlog.get_logger(__name__)

TIMEOUT = 3.0
"""Seconds for the nodes to answer."""


@dataclass
class _Asked:
    """A survey in progress: nodes whose answer is missing, and the answers so far."""

    missing: set[str]
    counts: dict[str, Count] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)


class Surveys(BrokerEventHandler):
    """The surveys of this node, and its answers to those of others."""

    def __init__(
        self,
        broker: Broker,
        node: str,
        dispatcher: Dispatcher,
        on_failed: Callable[[str], None] = lambda event: None,
    ) -> None:
        self._broker = broker
        self._node = node
        self._dispatcher = dispatcher
        self._asked: dict[str, _Asked] = {}
        self._background = Background(on_failed)
        dispatcher.add(self)

    async def ask(self, nodes: Iterable[str], pattern: str = "") -> dict[str, Count]:
        """Return the counts of each of the nodes, by name.

        Only channels that match `pattern`, see `compile_glob`, are listed.

        Raises:
            UnavailableError: a node did not answer, so that the sum would be wrong.
        """
        survey = Survey(uuid.uuid4().hex, self._node, pattern)
        asked = self._asked[survey.id] = _Asked(set(nodes))
        try:
            await self._broker.publish_control(control.encode(survey))
            try:
                async with self._broker.patience(TIMEOUT, "no answer in time"):
                    await asked.complete.wait()
            except UnavailableError as error:
                silent = ", ".join(sorted(asked.missing))
                raise UnavailableError(f"{error} from {silent}") from None
        finally:
            del self._asked[survey.id]
        return asked.counts

    def commanded(self, command: control.ControlMessage) -> None:
        """Answer a survey, or take an answer to one of this node's."""
        match command:
            case Survey():
                try:
                    answer = control.encode(self._count(command))
                except ValueError as error:  # of an older node, which has other patterns
                    log.warning("survey_invalid", error=str(error))
                    return
                self._background.start(self._broker.publish_control(answer, command.asker))
            case Count():
                asked = self._asked.get(command.survey)
                if asked is not None and command.node in asked.missing:
                    asked.counts[command.node] = command
                    asked.missing.remove(command.node)
                    if not asked.missing:
                        asked.complete.set()

    def _count(self, survey: Survey) -> Count:
        count = NodeCount()
        self._dispatcher.count(count)
        matches = compile_glob(survey.pattern).fullmatch
        return Count(
            survey=survey.id,
            node=self._node,
            clients=count.clients,
            users=len(count.users),
            subscriptions=count.subscribers.total(),
            channels=len(count.subscribers),
            subscribers={
                channel: subscribers
                for channel, subscribers in count.subscribers.items()
                if matches(channel)
            },
        )

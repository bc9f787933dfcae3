"""Broker events: publications, joins and leaves, losses, control messages; and their handlers."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from msgspec import DecodeError

from wsfleet.broker import control
from wsfleet.broker.control import ControlMessage
from wsfleet.channels import publication
from wsfleet.channels.publication import Member, Record
from wsfleet.channels.stream import Entry

log = structlog.get_logger(__name__)


@dataclass
class NodeCount:
    """The counts of one node: clients, users ("" stands for none), and subscribers by channel."""

    clients: int = 0
    users: set[str] = field(default_factory=set)
    subscribers: Counter[str] = field(default_factory=Counter)


class BrokerEventHandler:
    """A handler of broker events; a subclass overrides the events that it handles."""

    def published(self, channel: str, entry: Entry, record: Record) -> None:
        """Handle a channel's next publication."""

    def member_changed(self, channel: str, joined: bool, member: Member) -> None:
        """Handle a join or a leave in a channel."""

    def lost(self, channel: str) -> None:
        """Handle the loss of publications in a channel."""

    def commanded(self, command: ControlMessage) -> None:
        """Handle a control message."""

    def count(self, census: NodeCount) -> None:
        """Add the handler's clients to the node's count."""


class Dispatcher:
    """A dispatcher of broker events to every handler of this node; it decodes each message once.

    Handlers are called in the order in which they were added. An exception ends only its own
    handler's work: it is logged with its traceback and counted by `on_failed`.
    """

    def __init__(self, on_failed: Callable[[str], None] = lambda event: None) -> None:
        self._listeners: list[BrokerEventHandler] = []
        self._on_failed = on_failed

    def add(self, listener: BrokerEventHandler) -> None:
        """Add a handler."""
        self._listeners.append(listener)

    def published(self, channel: str, entry: Entry) -> None:
        """Dispatch a publication; an invalid one, such as a newer node's, is logged and dropped."""
        record = publication.understood(channel, entry)
        if record is None:
            return
        for listener in self._listeners:
            try:
                listener.published(channel, entry, record)
            except Exception:
                self._failed("published", channel=channel, offset=entry.offset)

    def member_changed(self, channel: str, joined: bool, member: Member) -> None:
        """Dispatch a join or a leave."""
        for listener in self._listeners:
            try:
                listener.member_changed(channel, joined, member)
            except Exception:
                self._failed("member_changed", channel=channel, client_id=member.client)

    def lost(self, channel: str) -> None:
        """Dispatch a loss."""
        for listener in self._listeners:
            try:
                listener.lost(channel)
            except Exception:
                self._failed("lost", channel=channel)

    def commanded(self, command: bytes) -> None:
        """Dispatch a control message; an unknown one, of a newer node, is logged and dropped."""
        try:
            wanted = control.decode(command)
        except DecodeError as error:
            log.warning("control_message_unknown", error=str(error))
            return
        for listener in self._listeners:
            try:
                listener.commanded(wanted)
            except Exception:
                self._failed("commanded", command=type(wanted).__name__)

    def count(self, census: NodeCount) -> None:
        """Let every handler count; an exception is raised, since the sum would be wrong."""
        for listener in self._listeners:
            listener.count(census)

    def _failed(self, event: str, **details: object) -> None:
        log.exception("handler_failed", handler=event, **details)
        self._on_failed(event)

"""What the protocols on a node hear of its channels."""

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
    """A node's clients, their users ("" is nobody in particular), and how many hear a channel."""

    clients: int = 0
    users: set[str] = field(default_factory=set)
    subscribers: Counter[str] = field(default_factory=Counter)


class BrokerEventHandler:
    """Hears everything, and does nothing: a protocol overrides what it has a word for."""

    def published(self, channel: str, entry: Entry, record: Record) -> None:
        """Deliver the channel's next publication to those of its clients who are in it."""

    def member_changed(self, channel: str, joined: bool, member: Member) -> None:
        """Tell those of its clients who want to know that somebody joined or left."""

    def lost(self, channel: str) -> None:
        """Tell its clients that they missed something in the channel for good."""

    def commanded(self, command: ControlMessage) -> None:
        """Carry out what is wanted of every node."""

    def count(self, census: NodeCount) -> None:
        """Add its clients to a census."""


class Dispatcher:
    """All listeners of a node, in the order in which they were added.

    A listener that raises ends nothing but its own handling: the exception is logged with its
    traceback and counted by `on_failed`, and the other listeners hear the event all the same.
    """

    def __init__(self, on_failed: Callable[[str], None] = lambda event: None) -> None:
        self._listeners: list[BrokerEventHandler] = []
        self._on_failed = on_failed

    def add(self, listener: BrokerEventHandler) -> None:
        """Tell one more."""
        self._listeners.append(listener)

    def published(self, channel: str, entry: Entry) -> None:
        """Tell of a publication; one of a newer node, or not of a node, is passed over."""
        record = publication.understood(channel, entry)
        if record is None:
            return
        for listener in self._listeners:
            try:
                listener.published(channel, entry, record)
            except Exception:
                self._failed("published", channel=channel, offset=entry.offset)

    def member_changed(self, channel: str, joined: bool, member: Member) -> None:
        """Tell of one who joined or left."""
        for listener in self._listeners:
            try:
                listener.member_changed(channel, joined, member)
            except Exception:
                self._failed("member_changed", channel=channel, client_id=member.client)

    def lost(self, channel: str) -> None:
        """Tell of a loss."""
        for listener in self._listeners:
            try:
                listener.lost(channel)
            except Exception:
                self._failed("lost", channel=channel)

    def commanded(self, command: bytes) -> None:
        """Tell of a command; one of a newer node is passed over."""
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
        """Take a census; a listener that raises makes it fail, since the sum would be wrong."""
        for listener in self._listeners:
            listener.count(census)

    def _failed(self, event: str, **details: object) -> None:
        log.exception("handler_failed", handler=event, **details)
        self._on_failed(event)

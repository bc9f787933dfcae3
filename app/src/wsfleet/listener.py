"""What the protocols on a node hear of its channels."""

from collections import Counter
from dataclasses import dataclass, field

import structlog
from msgspec import DecodeError

from wsfleet import commands, records
from wsfleet.commands import Message
from wsfleet.records import Member, Record
from wsfleet.stream import Entry

log = structlog.get_logger(__name__)


@dataclass
class Census:
    """A node's clients, their users ("" is nobody in particular), and how many hear a channel."""

    clients: int = 0
    users: set[str] = field(default_factory=set)
    subscribers: Counter[str] = field(default_factory=Counter)


class Listener:
    """Hears everything, and does nothing: a protocol overrides what it has a word for."""

    def published(self, channel: str, entry: Entry, record: Record) -> None:
        """Deliver the channel's next publication to those of its clients who are in it."""

    def member_changed(self, channel: str, joined: bool, member: Member) -> None:
        """Tell those of its clients who want to know that somebody joined or left."""

    def lost(self, channel: str) -> None:
        """Tell its clients that they missed something in the channel for good."""

    def commanded(self, command: Message) -> None:
        """Carry out what is wanted of every node."""

    def count(self, census: Census) -> None:
        """Add its clients to a census."""


class Listeners:
    """All of a node's; told in the bytes of Redis, which it reads once for all of them."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def add(self, listener: Listener) -> None:
        """Tell one more."""
        self._listeners.append(listener)

    def published(self, channel: str, entry: Entry) -> None:
        """Tell of a publication; one of a newer node, or not of a node, is passed over."""
        try:
            record = records.decode_record(entry.record)
        except DecodeError as error:
            log.warning("record not understood", channel=channel, error=str(error))
            return
        for listener in self._listeners:
            listener.published(channel, entry, record)

    def member_changed(self, channel: str, joined: bool, member: Member) -> None:
        """Tell of one who joined or left."""
        for listener in self._listeners:
            listener.member_changed(channel, joined, member)

    def lost(self, channel: str) -> None:
        """Tell of a loss."""
        for listener in self._listeners:
            listener.lost(channel)

    def commanded(self, command: bytes) -> None:
        """Tell of a command; one of a newer node is passed over."""
        try:
            wanted = commands.decode(command)
        except DecodeError as error:
            log.warning("command not understood", error=str(error))
            return
        for listener in self._listeners:
            listener.commanded(wanted)

    def count(self, census: Census) -> None:
        """Take a census."""
        for listener in self._listeners:
            listener.count(census)

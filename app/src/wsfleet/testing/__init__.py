"""Nodes in a test: real ones, in one event loop, without sockets and without Redis.

May import `server` and below.
"""

from wsfleet.testing.client import TestbedClient
from wsfleet.testing.replies import HandshakeRefused, ReplyDisconnect, ReplyError
from wsfleet.testing.subscription import ChannelMember, ClientSubscription, ReceivedPublication
from wsfleet.testing.testbed import Testbed
from wsfleet.testing.websocket import TestbedWebSocket

__all__ = [
    "ChannelMember",
    "ClientSubscription",
    "HandshakeRefused",
    "ReceivedPublication",
    "ReplyDisconnect",
    "ReplyError",
    "Testbed",
    "TestbedClient",
    "TestbedWebSocket",
]

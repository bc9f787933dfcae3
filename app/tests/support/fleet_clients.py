"""Clients of the plain protocol that come through HAProxy."""

import json

from websockets.sync.client import ClientConnection, connect

from tests.support.fleet import Rig


def node_of(client: ClientConnection) -> str:
    """The node that answers a client."""
    client.send("where am I?")
    while True:
        answer = json.loads(client.recv(10))
        if answer["type"] == "ack":
            name: str = answer["hostname"]
            return name


def through_haproxy(rig: Rig) -> ClientConnection:
    """A new client without a cookie."""
    return connect(rig.base_url.replace("http", "ws") + "/ws", proxy=None)

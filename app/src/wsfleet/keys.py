"""The names of everything that the cluster keeps in Redis."""

NODES = "wsfleet:nodes"
"""Sorted set: node name -> last heartbeat, unix seconds on Redis's clock."""


def state(client_id: str) -> str:
    """String: the client's last message."""
    return f"state:{client_id}"


def connection(client_id: str) -> str:
    """String: the name of the node that holds the client's connection."""
    return f"connection:{client_id}"


def node(name: str) -> str:
    """Hash: what a node says of itself."""
    return f"wsfleet:node:{name}"


def node_clients(name: str) -> str:
    """Set: the clients whose `connection:*` key is (or was last) this node's."""
    return f"wsfleet:node:{name}:clients"


def channel(name: str) -> str:
    """Pub/sub channel that carries the publications of one of our channels."""
    return f"wsfleet:channel:{name}"


def control(name: str) -> str:
    """Pub/sub channel that one node listens on; without a listener the node is gone."""
    return f"wsfleet:control:{name}"

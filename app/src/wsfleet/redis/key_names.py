"""The names of everything that the cluster keeps in Redis.

The keys of one channel share a hash tag, `{...}`, so that in a Redis Cluster one function may use
them all. Pub/sub is the sharded one: a channel is where its keys are.
"""

NODES = "wsfleet:nodes"
"""Sorted set: node name -> last heartbeat, unix seconds on Redis's clock."""

CONTROL = "wsfleet:control"
"""Pub/sub channel that every node listens on: what an operator wants done wherever it applies."""

DESIRED = "wsfleet:desired"
"""Hash: node name -> its desired state, of `cluster.node_state`; it outlives the node."""


# The autoscaler's keys have the tag of `DESIRED`, so that one script may use them together with it.
AUTOSCALE_LOG = f"wsfleet:autoscale:{{{DESIRED}}}"
"""Stream: the autoscaler's decisions; an entry's id is when, on Redis's clock."""

AUTOSCALE_LEADER = f"{AUTOSCALE_LOG}:leader"
"""String: the token of the autoscaler that decides; it expires with its leadership."""

AUTOSCALE_DRAINED = f"{AUTOSCALE_LOG}:drained"
"""Set: the nodes that the autoscaler wants drained; the others in `DESIRED` are an operator's."""


def state(client_id: str) -> str:
    """String: the client's last message."""
    return f"state:{client_id}"


def connection(client_id: str) -> str:
    """String: the name of the node that holds the client's connection."""
    return f"connection:{client_id}"


def blocked(user: str) -> str:
    """String: exists while the user is blocked."""
    return f"wsfleet:blocked:{user}"


def revoked(token: str) -> str:
    """String: exists while the token with this `jti` is revoked."""
    return f"wsfleet:revoked:{token}"


def node(name: str) -> str:
    """Hash: what a node says of itself."""
    return f"wsfleet:node:{name}"


def node_clients(name: str) -> str:
    """Set: the clients whose `connection:*` key is (or was last) this node's."""
    return f"wsfleet:node:{name}:clients"


def samples(name: str) -> str:
    """Stream: what a node did in the last minutes; it expires some minutes after the node."""
    return f"wsfleet:node:{name}:samples"


def control(name: str) -> str:
    """Pub/sub channel that one node listens on; without a listener the node is gone."""
    return f"wsfleet:control:{name}"


def probe(name: str, tag: int) -> str:
    """Pub/sub channel on which a node hears itself; the tag chooses the primary."""
    return f"wsfleet:probe:{{{tag}}}:{name}"


_CHANNEL = "wsfleet:channel:{"


def channel(name: str) -> str:
    """Pub/sub channel that carries what happens in one of our channels."""
    return f"{_CHANNEL}{name}}}"


def channel_name(redis_channel: str) -> str:
    """The channel that a pub/sub channel carries; empty for one that is not `channel`'s."""
    if not redis_channel.startswith(_CHANNEL):
        return ""
    return redis_channel.removeprefix(_CHANNEL).removesuffix("}")


def stream(name: str) -> str:
    """Stream: the channel's history; the offset is the entry's id."""
    return f"wsfleet:stream:{{{name}}}"


def meta(name: str) -> str:
    """Hash: the stream's `epoch`, and the `offset` of its last publication."""
    return f"wsfleet:meta:{{{name}}}"


def once(name: str, idempotency_key: str) -> str:
    """String: the position that a publication with this idempotency key got."""
    return f"wsfleet:once:{{{name}}}:{idempotency_key}"


def presence(name: str) -> str:
    """Hash: client -> who that is, for those in the channel."""
    return f"wsfleet:presence:{{{name}}}"


def presence_expiry(name: str) -> str:
    """Sorted set: client -> when it is taken to be gone, unix seconds on Redis's clock."""
    return f"wsfleet:expiry:{{{name}}}"

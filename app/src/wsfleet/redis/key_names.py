"""The names of all keys and pub/sub channels in Redis.

The keys of one channel share a hash tag, `{...}`, so that one function can use all of them in a
Redis Cluster. Pub/sub is sharded: a pub/sub channel is served where its tag's keys are.
"""

NODES = "wsfleet:nodes"
"""Sorted set: node name -> time of its last heartbeat, Unix seconds on Redis's clock."""

HANDLERS = "wsfleet:handlers"
"""Sorted set, as `NODES`: name of a process of `wsfleet app` -> time of its last heartbeat."""

CONTROL = "wsfleet:control"
"""Pub/sub channel of control messages to every node."""

DESIRED = "wsfleet:desired"
"""Hash: node name -> its desired state, of `cluster.node_state`; it outlives the node."""


# The autoscaler's keys have the tag of `DESIRED`, so that one script may use them together with it.
AUTOSCALE_LOG = f"wsfleet:autoscale:{{{DESIRED}}}"
"""Stream: the autoscaler's decisions; an entry's id is when, on Redis's clock."""

AUTOSCALE_LEADER = f"{AUTOSCALE_LOG}:leader"
"""String: the token of the leading autoscaler; it expires with the leadership."""

AUTOSCALE_DRAINED = f"{AUTOSCALE_LOG}:drained"
"""Set: the drained nodes that may be brought in; the others in `DESIRED` are an operator's."""

REBALANCE_LOG = f"wsfleet:rebalance:{{{DESIRED}}}"
"""Stream: the rounds of rebalancing; an entry's id is when, on Redis's clock."""

REBALANCE_LEADER = f"{REBALANCE_LOG}:leader"
"""String: the token of the leading rebalancer; it expires with the leadership."""

REBALANCE_HELD = f"{REBALANCE_LOG}:held"
"""String: why there is no rebalancing for now; it expires with the hold."""


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
    """Hash: a node's own report: address, load, version."""
    return f"wsfleet:node:{name}"


def node_clients(name: str) -> str:
    """Set: the clients whose `connection:*` key belongs, or last belonged, to this node."""
    return f"wsfleet:node:{name}:clients"


def node_disconnects(name: str) -> str:
    """Hash: client -> its record for the application's `on_disconnect`, for the node's clients."""
    return f"wsfleet:node:{name}:disconnects"


UNTOLD_DISCONNECTS = "wsfleet:disconnects"
"""Hash: as `node_disconnects`, of no node: of dead ones that nodes without a handler have found."""


def samples(name: str) -> str:
    """Stream: a node's load samples of the last minutes; it expires minutes after the node."""
    return f"wsfleet:node:{name}:samples"


def control(name: str) -> str:
    """Pub/sub channel of control messages to one node; without a subscriber the node is gone."""
    return f"wsfleet:control:{name}"


def probe(name: str, tag: int) -> str:
    """Pub/sub channel of a node's probes to itself; the tag chooses the primary."""
    return f"wsfleet:probe:{{{tag}}}:{name}"


_CHANNEL = "wsfleet:channel:{"


def channel(name: str) -> str:
    """Pub/sub channel of publications, joins and leaves in a channel."""
    return f"{_CHANNEL}{name}}}"


def channel_name(redis_channel: str) -> str:
    """Return the channel of a pub/sub channel; "" if the name is not from `channel`."""
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
    """Hash: client -> member, of the channel's presence."""
    return f"wsfleet:presence:{{{name}}}"


def presence_expiry(name: str) -> str:
    """Sorted set: client -> time when its presence expires, Unix seconds on Redis's clock."""
    return f"wsfleet:expiry:{{{name}}}"


def session(name: str) -> str:
    """Hash: a session's keys, each with its value as JSON; it expires after its last client."""
    return f"wsfleet:session:{name}"


def lease(name: str) -> str:
    """Hash: the `holder` of a lease, its fencing `token`, and `until` when it holds."""
    return f"wsfleet:lease:{name}"

"""The states of a node, and the states that an operator may want of it."""

import enum

DRAIN, SERVE = "drain", "serve"
"""The desired states: values of the hash `key_names.DESIRED`."""
READY = "ready"
"""The registry's value for a ready node; other values are a `NodeState`, or a reason."""
FULL = "full"
"""The beginning of the registry's value for a node that has as many clients as it may have."""
NOT_RUNNING = "not running"
"""The command line's and the autoscaler's value for a node without heartbeats."""


class NodeState(enum.Enum):
    """The state of a node, as its clients see it."""

    STARTING = "starting"
    """It accepts clients, but is not ready: it has not read its desired state yet."""
    SERVING = "serving"
    DRAINING = "draining"
    DRAINED = "drained"


DRAIN_STATES = (NodeState.DRAINING.value, NodeState.DRAINED.value)
"""The states that a drain leads to."""

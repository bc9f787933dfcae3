"""The states of a node, and the states that an operator may want of it."""

import enum

DRAIN, SERVE = "drain", "serve"
"""The desired states: values of the hash `key_names.DESIRED`."""
READY = "ready"
"""What the registry has for a node that takes clients; else a `NodeState`, or why it does not."""
NOT_RUNNING = "not running"
"""What the command line and the autoscaler say of a node that shows no sign of life."""


class NodeState(enum.Enum):
    """The state of a node towards its clients."""

    STARTING = "starting"
    """It accepts clients, but is not ready: it has not read its desired state yet."""
    SERVING = "serving"
    DRAINING = "draining"
    DRAINED = "drained"


DRAIN_STATES = (NodeState.DRAINING.value, NodeState.DRAINED.value)
"""The states that a drain leads to: an operator or the autoscaler wants them."""

"""The states of a node, and the states that an operator may want of it."""

import enum

DRAIN, SERVE = "drain", "serve"
"""The desired states: values of the hash `key_names.DESIRED`."""
NOT_RUNNING = "not running"
"""What the command line and the autoscaler say of a node that shows no sign of life."""


class NodeState(enum.Enum):
    """The state of a node towards its clients."""

    STARTING = "starting"
    """It accepts clients, but is not ready: it has not read its desired state yet."""
    SERVING = "serving"
    DRAINING = "draining"
    DRAINED = "drained"

"""The parts of a node's name, HOST-PORT."""


def host_of(node: str) -> str:
    """Return the host of a node's name; "" where the name has no port."""
    return node.rpartition("-")[0]

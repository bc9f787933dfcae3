"""Applications in the node's process."""

"""`wsfleet dev`: one node for development, which restarts when its application changes.

The parent process keeps the listening sockets and the state in memory; each child is a node.

May import `server` and below.
"""

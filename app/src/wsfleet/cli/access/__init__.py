"""The ways to a cluster: fleet file, HTTP, WebSocket, Redis.

May import `cli.errors`, and `cluster` and below.
"""

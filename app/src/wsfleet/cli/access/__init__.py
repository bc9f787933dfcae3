"""Ways into a cluster: the fleet file, Redis, WebSockets.

May import `cli.errors`.
"""

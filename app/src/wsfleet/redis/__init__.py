"""A client for Redis: connections, batches of commands, functions, topology, names of keys.

May import `config`, `telemetry` and below; knows no channel.
"""

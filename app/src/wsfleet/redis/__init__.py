"""A client for Redis: connections, batches of commands, functions, topology, names of keys.

`memory` is a primary without Redis. A function of `functions.lua` is there as well.

May import `config`, `telemetry` and below; knows no channel.
"""

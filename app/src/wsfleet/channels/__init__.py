"""Channels: their names and permissions, the positions of a stream, stored publications; no I/O.

May import `config`, `telemetry` and below.
"""

"""Metrics, logs, and the load of the host.

May import `protocol`, `hub` and `transports`.
"""

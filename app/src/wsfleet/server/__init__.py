"""The node's process: uvicorn, routes, systemd.

May import everything but `cli`.
"""

"""The endpoints that clients connect to, one for each client protocol.

May import `node` and below, but not `api`.
"""

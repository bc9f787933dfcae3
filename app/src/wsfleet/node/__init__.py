"""One node process: its parts, readiness, users, admission of clients, drain.

May import `auth`, `broker`, `cluster` and below; knows no endpoint.
"""

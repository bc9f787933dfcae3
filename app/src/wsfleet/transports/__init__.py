"""Bytes on a socket: HTTP requests and WebSocket frames (RFC 9112, RFC 6455).

Knows nothing of protocols, channels or Redis. May import `tasks` alone.
"""

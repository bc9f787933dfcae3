"""The client protocols: bytes to commands, and replies to bytes; no I/O, no state of a client.

May import `transports`.
"""

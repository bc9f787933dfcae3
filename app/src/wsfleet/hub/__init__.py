"""The connections of this process and the fan-out of publications to them.

May import `transports`.
"""

"""A WebSocket node for clusters with sticky sessions, and the operator's command line."""

__version__ = "0.1.0"

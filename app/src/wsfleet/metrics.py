"""What a node counts, in Prometheus's names and units."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

CLOSE_CODES = frozenset(range(1000, 1016))
"""The codes of RFC 6455, section 7.4.1, and of the IANA registry that it opened."""


class Metrics:
    """The metrics of one node process, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.connections = Gauge("wsfleet_connections", "Open WebSockets.", registry=registry)
        self.connections_opened = Counter(
            "wsfleet_connections_opened", "WebSockets accepted.", registry=registry
        )
        self.connections_refused = Counter(
            "wsfleet_connections_refused", "Handshakes refused.", ["reason"], registry=registry
        )
        self.disconnects = Counter(
            "wsfleet_disconnects", "WebSockets closed, by close code.", ["code"], registry=registry
        )
        self.messages_received = Counter(
            "wsfleet_messages_received", "Messages from clients.", registry=registry
        )
        self.messages_failed = Counter(
            "wsfleet_messages_failed",
            "Messages answered with an error.",
            ["code"],
            registry=registry,
        )
        self.deliveries = Counter(
            "wsfleet_deliveries", "Publications sent to a client.", registry=registry
        )
        self.publish_seconds = Histogram(
            "wsfleet_publish_seconds",
            "From a client's message to its ack.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
            registry=registry,
        )
        self._ready = Gauge("wsfleet_ready", "1 if new clients should come.", registry=registry)
        self._redis = Gauge("wsfleet_redis_connected", "1 if Redis answers.", registry=registry)

    def disconnected(self, code: int) -> None:
        """Count a close; a client may send any code, so the rare ones share a label."""
        self.disconnects.labels(str(code) if code in CLOSE_CODES else "other").inc()

    def watch(
        self,
        *,
        connections: Callable[[], float],
        ready: Callable[[], float],
        redis: Callable[[], float],
    ) -> None:
        """Read these gauges when they are asked for."""
        self.connections.set_function(connections)
        self._ready.set_function(ready)
        self._redis.set_function(redis)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

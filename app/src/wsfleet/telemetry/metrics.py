"""The metrics of a node, in Prometheus's names and units.

The values of labels come from short lists in this module. A value that changes with every delivery
is read at a scrape, since counting it would slow the delivery down.
"""

from collections.abc import Callable, Collection
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from wsfleet.protocol.centrifuge.codes import DisconnectCode

EVENTS = (
    "published",
    "member_changed",
    "lost",
    "commanded",
    "pubsub",
    "check",
    "presence",
    "background",
    "drain",
    "http",
    "websocket",
)
"""Events of handlers: those of `Listener`, of the broker's tasks around it, and the requests and
WebSockets of an application."""
PROTOCOLS = ("plain", "centrifuge", "application")
CLOSE_CODES = frozenset(range(1000, 1016)) | {code.code for code in DisconnectCode}
"""Close codes of RFC 6455, section 7.4.1, of its IANA registry, and of Centrifuge."""
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
APPLICATION_CODES = 400
"""From here on, an error's code is one of the application's own."""


class Metrics:
    """The metrics of one node process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._define_connections()
        self._define_messages()
        self._define_internals()

    def _define_connections(self) -> None:
        self.connections = self._gauge("connections", "Open WebSockets, by protocol.", "protocol")
        for protocol in PROTOCOLS:
            self.connections.labels(protocol)
        self.connections_opened = self._counter("connections_opened", "WebSockets accepted.")
        self.connections_refused = self._counter(
            "connections_refused", "Handshakes refused.", "reason"
        )
        self.connections_shed = self._counter(
            "connections_shed", "Clients that rebalancing asked to reconnect to another node."
        )
        self.requests_refused = self._counter(
            "requests_refused", "Requests refused before routing, by status.", "status"
        )
        self.pongs_withheld = self._counter(
            "pongs_withheld",
            "Pings without an answer, because too many pongs waited for the client.",
        )
        self.disconnects = self._counter("disconnects", "WebSockets closed, by close code.", "code")

    def _define_messages(self) -> None:
        self.messages_received = self._counter("messages_received", "Messages from clients.")
        self.messages_failed = self._counter(
            "messages_failed", "Messages of the plain protocol answered with an error.", "code"
        )
        self.reply_errors = self._counter(
            "reply_errors", "Commands of the Centrifuge protocol answered with an error.", "code"
        )
        self.deliveries = self._counter("deliveries", "Publications sent to a client.")
        self.publish_seconds = self._histogram(
            "publish_seconds", "From a client's message until Redis has stored it."
        )
        self.delivery_seconds = self._histogram(
            "delivery_seconds",
            "From a publication's time, on its node's clock, until this node sends it to its "
            "clients; one value for each publication.",
        )
        self.recoveries = self._counter(
            "recoveries", "Recoveries of clients, by their success.", "recovered"
        )
        for recovered in ("true", "false"):
            self.recoveries.labels(recovered)

    def _define_internals(self) -> None:
        self.handler_errors = self._counter(
            "handler_errors",
            "Failures of handlers, by event; each is in the log. An application's handlers also "
            "have a namespace, or a method.",
            "event",
            "namespace",
            "reason",
        )
        for event in EVENTS:
            self.handler_errors.labels(event, "", "exception")
        self.handler_seconds = self._histogram(
            "handler_seconds",
            "Time of a call of the application, by event and namespace, or method.",
            "event",
            "namespace",
            buckets=(*SECONDS, 5.0),
        )
        self.handlers_running = self._gauge(
            "handlers_running",
            "Calls of the application that have not ended, by event and namespace, or method.",
            "event",
            "namespace",
        )

        self.pubsub_probe_seconds = self._histogram(
            "pubsub_probe_seconds", "Time until the node received its own probe over pub/sub."
        )
        self.pubsub_probes_failed = self._counter(
            "pubsub_probes_failed", "Probes that had not arrived when the next one was due."
        )
        self.redis_seconds = self._histogram(
            "redis_seconds", "Round trip of a command to Redis, measured every few seconds."
        )
        self.event_loop_lag_seconds = self._histogram(
            "event_loop_lag_seconds", "Delay of a timer of the event loop."
        )
        self.event_loop_blocked_seconds = self._counter(
            "event_loop_blocked_seconds",
            "Time that callbacks of over 100 ms have blocked the event loop.",
        )

    def handler_failed(self, event: str) -> None:
        """Count an exception in a handler."""
        self.handler_errors.labels(event, "", "exception").inc()

    def reply_error(self, code: int) -> None:
        """Count a command that is answered with an error; the application's codes share a label."""
        label = str(code) if code < APPLICATION_CODES else "application"
        self.reply_errors.labels(label).inc()

    def refused(self, status: int) -> None:
        """Count a request that was refused before routing.

        Its header timed out, was too large or malformed, or was not a valid handshake.
        """
        self.requests_refused.labels(str(int(status))).inc()

    def disconnected(self, code: int) -> None:
        """Count a close; codes outside `CLOSE_CODES`, which a client may send, share a label."""
        self.disconnects.labels(str(code) if code in CLOSE_CODES else "other").inc()

    def recovered(self, recovered: bool) -> None:
        """Count a client's recovery, and whether it received all publications that it missed."""
        self.recoveries.labels(str(recovered).lower()).inc()

    def watch(
        self,
        *,
        max_connections: int,
        handshakes: Callable[[], float],
        weight: int,
        outbox_bytes: Callable[[], float],
        ready: Callable[[], bool],
        states: Collection[str],
        state: Callable[[], str],
        drain_wanted: Callable[[], bool],
        redis: Callable[[], bool],
        pubsub: Callable[[], bool],
    ) -> None:
        """Add gauges that are read at each scrape."""
        self._gauge("max_connections", "Limit of connections and handshakes together.").set(
            max_connections
        )
        self._gauge("weight", "The node's share of the clients, beside other weights.").set(weight)
        for name, documentation, read in (
            ("handshakes", "Handshakes that are not accepted yet.", handshakes),
            ("outbox_bytes", "Bytes that wait for all clients together.", outbox_bytes),
            ("ready", "1 if the balancer should send new clients.", ready),
            ("drain_wanted", "1 if the node should have no clients.", drain_wanted),
            ("redis_connected", "1 if Redis answers.", redis),
            ("pubsub_subscribed", "1 if the node is subscribed to the pub/sub channels.", pubsub),
        ):
            self._gauge(name, documentation).set_function(read)

        def does(what: str) -> bool:
            return state() == what

        gauge = self._gauge("state", "1 for the current state of the node.", "state")
        for each in states:
            gauge.labels(each).set_function(partial(does, each))

    def render(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"wsfleet_{name}", documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        return Gauge(f"wsfleet_{name}", documentation, labels, registry=self.registry)

    def _histogram(
        self,
        name: str,
        documentation: str,
        *labels: str,
        buckets: tuple[float, ...] = SECONDS,
    ) -> Histogram:
        return Histogram(
            f"wsfleet_{name}", documentation, labels, buckets=buckets, registry=self.registry
        )

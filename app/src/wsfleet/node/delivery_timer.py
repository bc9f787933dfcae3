"""The age of publications when they reach this node."""

import time

from wsfleet.broker.events import BrokerEventHandler
from wsfleet.channels.publication import Record
from wsfleet.channels.stream import Entry
from wsfleet.telemetry.metrics import Metrics


class DeliveryTimer(BrokerEventHandler):
    """A timer of publications: their age on arrival, which includes differences of clocks."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def published(self, channel: str, entry: Entry, record: Record) -> None:
        """Observe once for all clients of the node: all are written to in this tick."""
        self._metrics.delivery_seconds.observe(max(0.0, time.time() - record.time / 1000))

"""The age of publications when they reach this node."""

import time

from wsfleet.broker.events import BrokerEventHandler
from wsfleet.channels.publication import Record
from wsfleet.channels.stream import Entry
from wsfleet.telemetry.metrics import Metrics


class DeliveryTimer(BrokerEventHandler):
    """Measures how old publications are when they come; clocks that differ count as well."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def published(self, channel: str, entry: Entry, record: Record) -> None:
        """Once for all of the node's clients: they are written to in this tick."""
        self._metrics.delivery_seconds.observe(max(0.0, time.time() - record.time / 1000))

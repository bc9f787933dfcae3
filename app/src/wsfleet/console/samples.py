"""Samples of each node's last minutes in Redis, from which any node draws the cluster's charts."""

import asyncio
import math
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec
import structlog
from prometheus_client import Counter, Histogram
from redis.exceptions import RedisError

from wsfleet.node.node import Node
from wsfleet.redis import key_names
from wsfleet.redis.store import Store, UnavailableError
from wsfleet.telemetry.metrics import SECONDS

log = structlog.get_logger(__name__)

STEP = 5
"""Seconds of a sample; all nodes take samples when the clock is at a multiple of it."""
KEPT = 120
"""Samples of a node that are kept."""


class Sample(msgspec.Struct, frozen=True):
    """One sample of a node; latencies are counts in the buckets of `SECONDS` and a slower one."""

    seconds: float
    connections: int
    limit: int
    received: int
    delivered: int
    publish: list[int]
    delivery: list[int]


Samples = dict[int, Sample]
"""Samples by their end, in steps since 1970."""

_decoder = msgspec.json.Decoder(Sample)


class Recorder:
    """A background task that writes this node's samples."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._before = self._read()

    async def run(self) -> None:
        """Write a sample in each step; after a failed write the next one covers both steps."""
        while True:
            now = time.time()
            await asyncio.sleep(STEP - now % STEP)
            try:
                await self._write(round(time.time() / STEP))
            except (UnavailableError, RedisError) as error:
                log.debug("sample_not_written", error=str(error))

    async def _write(self, step: int) -> None:
        now, before = self._read(), self._before
        sample = Sample(
            seconds=now.at - before.at,
            connections=len(self._node.hub),
            limit=self._node.settings.max_connections,
            received=now.received - before.received,
            delivered=now.delivered - before.delivered,
            publish=[new - old for new, old in zip(now.publish, before.publish, strict=True)],
            delivery=[new - old for new, old in zip(now.delivery, before.delivery, strict=True)],
        )
        key, call = key_names.samples(self._node.settings.name), self._node.store.call
        # The id is the time, so a clock that was put back writes nothing until it has caught up.
        await call("XADD", key, "MAXLEN", KEPT, f"{step}-1", "sample", msgspec.json.encode(sample))
        self._before = now
        await call("EXPIRE", key, KEPT * STEP)

    def _read(self) -> "_Totals":
        metrics = self._node.metrics
        return _Totals(
            at=time.monotonic(),
            received=_total(metrics.messages_received),
            delivered=_total(metrics.deliveries),
            publish=_buckets(metrics.publish_seconds),
            delivery=_buckets(metrics.delivery_seconds),
        )


class _Totals(msgspec.Struct, frozen=True):
    """Totals since the process started."""

    at: float
    received: int
    delivered: int
    publish: list[int]
    delivery: list[int]


def _total(counter: Counter) -> int:
    return int(_values(counter, "_total")[0])


def _buckets(histogram: Histogram) -> list[int]:
    """Return the count of each bucket alone; Prometheus's buckets are cumulative."""
    return [int(high - low) for low, high in pairwise([0.0, *_values(histogram, "_bucket")])]


def _values(metric: Counter | Histogram, suffix: str) -> list[float]:
    return [
        sample.value
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith(suffix)
    ]


async def read(store: Store, names: Iterable[str]) -> dict[str, Samples]:
    """Return the samples of nodes by name, without those in another release's format.

    Raises:
        UnavailableError: Redis is unavailable.
    """
    names = list(names)
    oldest = round(time.time() / STEP) - KEPT
    streams = await asyncio.gather(
        *(store.call("XRANGE", key_names.samples(name), oldest, "+") for name in names)
    )
    return {name: _decoded(stream) for name, stream in zip(names, streams, strict=True)}


def _decoded(stream: list[tuple[bytes, list[bytes]]]) -> Samples:
    samples: Samples = {}
    for step, (_, text) in stream:
        try:
            sample = _decoder.decode(text)
        except msgspec.DecodeError:
            continue
        if len(sample.publish) == len(sample.delivery) == len(SECONDS) + 1:
            samples[int(step.split(b"-")[0])] = sample
    return samples


def quantile(fraction: float, buckets: Sequence[int]) -> float | None:
    """Return a quantile in seconds, None without values, as Prometheus's `histogram_quantile`."""
    rank = fraction * sum(buckets)
    if not rank:
        return None
    low = 0.0
    for high, count in zip((*SECONDS, math.inf), buckets, strict=True):
        if rank <= count:
            return low + (high - low) * rank / count if high < math.inf else low
        rank -= count
        low = high
    return low


def series(samples: dict[str, Samples]) -> dict[str, object]:
    """Return the charts' series: a number for each step, None where no node has a sample."""
    # A step is shown one second after its end, so that all nodes have written it.
    last = math.floor((time.time() - 1) / STEP)
    first = min((min(each) for each in samples.values() if each), default=last)
    steps = range(max(first, last - KEPT + 1), last + 1)
    columns = [[each[step] for each in samples.values() if step in each] for step in steps]
    return {
        "time": [step * STEP for step in steps],
        "connections": {
            name: [each[step].connections if step in each else None for step in steps]
            for name, each in samples.items()
        },
        "received": [_rate(s.received / s.seconds for s in column) for column in columns],
        "delivered": [_rate(s.delivered / s.seconds for s in column) for column in columns],
        "publish_p99": [_p99([s.publish for s in column]) for column in columns],
        "delivery_p99": [_p99([s.delivery for s in column]) for column in columns],
    }


def _rate(rates: Iterable[float]) -> float | None:
    each = list(rates)
    return round(sum(each), 1) if each else None


def _p99(histograms: list[list[int]]) -> float | None:
    """Return the 99th percentile over all nodes, in milliseconds."""
    seconds = quantile(0.99, [sum(bucket) for bucket in zip(*histograms, strict=True)])
    return None if seconds is None else round(1000 * seconds, 2)

"""Samples of a node's metrics."""

from lab.waiting import settled
from tests.support.nodes import RunningNode


def value(node: RunningNode, name: str, **labels: str) -> float:
    """One sample, as Prometheus would read it."""
    found = node.node.metrics.registry.get_sample_value(f"wsfleet_{name}", labels)
    assert found is not None, name
    return found


def failures(node: RunningNode, event: str) -> float:
    """How often handlers of an event of the node's own have failed."""
    return value(node, "handler_errors_total", event=event, namespace="", reason="exception")


async def reaches(node: RunningNode, name: str, **labels: str) -> None:
    """Wait until a sample is 1 or more."""
    await settled(lambda: value(node, name, **labels) >= 1, f"{name} {labels} reaches 1")

"""Publications of given sizes."""

import json

from tests.support.nodes import RunningNode
from wsfleet.channels.publication import Record
from wsfleet.config.schema import ChannelOptions

OPTIONS = ChannelOptions.model_validate(
    {"history_size": 1000, "history_ttl": "300s", "history_meta_ttl": "1h"}
)


async def published(node: RunningNode, channel: str, *sizes: int) -> None:
    """Publish strings of these sizes."""
    for size in sizes:
        record = Record(data=json.dumps("x" * size).encode(), time=1)
        await node.node.broker.publish(channel, OPTIONS, record)

"""The autoscaler's part of Redis: the desired states that it sets, and its decisions.

The functions take a client of Redis. Their scripts check that the caller still leads at the time of
the change: an autoscaler that was paused must not act on an old decision.
"""

from collections.abc import Sequence
from typing import Any

import orjson

from wsfleet.cli.access.redis import registry
from wsfleet.cluster.autoscale_policy import Host, ObservedNode
from wsfleet.cluster.node_state import DRAIN, NOT_RUNNING
from wsfleet.config.fleet_file import Fleet
from wsfleet.redis import key_names

#: Decisions that the log keeps, at least.
LOG_LENGTH = 10_000

# apply(LEADER, DESIRED, DRAINED, LOG; TOKEN, LENGTH, STATE, MARK, ENTRY, {NODE, SEEN}...): set the
# desired state of each NODE to STATE, add it to DRAINED or remove it (MARK is SADD or SREM), and
# append ENTRY to the log. Returns 1; or 0, without a change, if TOKEN does not lead, or if the
# desired state of a node is not SEEN: an operator has changed it.
_APPLY = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
for i = 6, #ARGV, 2 do
  if (redis.call('HGET', KEYS[2], ARGV[i]) or '') ~= ARGV[i + 1] then
    return 0
  end
end
for i = 6, #ARGV, 2 do
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[3])
  redis.call(ARGV[4], KEYS[3], ARGV[i])
end
redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[2], '*', 'decision', ARGV[5])
return 1
"""


def apply(
    client: Any, token: str, desired: str, hosts: Sequence[Host], entry: dict[str, Any]
) -> bool:
    """Set the desired state of all nodes of some hosts, and append `entry` to the log.

    Returns False, without a change, if `token` does not lead or if an operator has changed a
    desired state since the hosts were read.
    """
    keys = (
        key_names.AUTOSCALE_LEADER,
        key_names.DESIRED,
        key_names.AUTOSCALE_DRAINED,
        key_names.AUTOSCALE_LOG,
    )
    nodes = [node for host in hosts for node in host.nodes]
    seen = [word for node in nodes for word in (node.name, node.wanted or "")]
    mark = "SADD" if desired == DRAIN else "SREM"
    arguments = (token, LOG_LENGTH, desired, mark, orjson.dumps(entry), *seen)
    return bool(client.eval(_APPLY, len(keys), *keys, *arguments))


def nodes(client: Any, fleet: Fleet) -> list[ObservedNode]:
    """Return all nodes, running or not, with their desired state."""
    desired = client.hgetall(key_names.DESIRED)
    drained_by_us = client.smembers(key_names.AUTOSCALE_DRAINED)
    live = {name: said for name, said in registry(client).items() if said["live"]}
    return [
        ObservedNode(
            name=name,
            state=said.get("state", NOT_RUNNING),
            connections=int(said.get("connections", 0)),
            cpu=float(said.get("cpu", 0.0)),
            wanted=desired.get(name),
            drained_by_us=name in drained_by_us,
            started=said.get("started", ""),
            weight=int(said.get("weight", 1)),
            shedding=int(said.get("shedding", 0)),
        )
        for name in sorted({*fleet.nodes, *live})
        for said in [live.get(name, {})]
    ]


def decisions(client: Any, count: int) -> list[tuple[float, dict[str, Any]]]:
    """Return the last decisions, the newest at the end, with their unix time on Redis's clock."""
    entries = client.xrevrange(key_names.AUTOSCALE_LOG, count=count)[::-1]
    return [(_seconds(name), orjson.loads(fields["decision"])) for name, fields in entries]


def last_decision(client: Any) -> float | None:
    """Return the unix time of the last decision on Redis's clock, or None."""
    newest = client.xrevrange(key_names.AUTOSCALE_LOG, count=1)
    return _seconds(newest[0][0]) if newest else None


def _seconds(entry_id: str) -> float:
    return int(entry_id.partition("-")[0]) / 1000

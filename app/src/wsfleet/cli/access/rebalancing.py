"""The rebalancer's part of Redis: the rounds, and the hold that forbids them for a while."""

from dataclasses import dataclass
from typing import Any

import orjson

from wsfleet.broker import control
from wsfleet.broker.control import Shed
from wsfleet.cli.errors import CannotRun
from wsfleet.cluster.rebalance_policy import Round
from wsfleet.config.fleet_file import Fleet
from wsfleet.redis import key_names

#: Rounds that the log keeps, at least.
LOG_LENGTH = 10_000

# begin(LEADER, LOG; TOKEN, LENGTH, ENTRY): append ENTRY to the log. Returns 1; or 0, without a
# change, if there is a TOKEN and it does not lead.
_BEGIN = """
if ARGV[1] ~= '' and redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'round', ARGV[3])
return 1
"""


@dataclass(frozen=True, slots=True)
class LoggedRound:
    """A round of the log; `seconds` is its unix time on Redis's clock."""

    seconds: float
    entry: dict[str, Any]


def check_stickiness(fleet: Fleet) -> None:
    """Check that a client can move to another node.

    Raises:
        CannotRun: the balancers send a client to the node of its address, or of a key.

    """
    if fleet.stickiness.split()[0] != "cookie":
        raise CannotRun(
            f"the balancers find a client's node by haproxy_stickiness: {fleet.stickiness}. A "
            "client that is moved would come back to its node: rebalancing needs "
            "haproxy_stickiness: cookie."
        )


def begin(client: Any, wanted: Round, rate: float, token: str = "") -> bool:
    """Log a round, and tell the nodes to shed; together they shed `rate` clients a second.

    Returns False, without a change, if there is a `token` and it does not lead.
    """
    entry = orjson.dumps({"shed": dict(wanted.shed), "reason": wanted.reason})
    keys = (key_names.REBALANCE_LEADER, key_names.REBALANCE_LOG)
    if not client.eval(_BEGIN, len(keys), *keys, token, LOG_LENGTH, entry):
        return False
    # A message that comes late does no harm: a node keeps its share in any case.
    for node, count in wanted.shed.items():
        shed = Shed(count, wanted.shares[node], rate * count / wanted.clients)
        client.spublish(key_names.control(node), control.encode(shed))
    return True


def rounds(client: Any, count: int) -> list[LoggedRound]:
    """Return the last rounds, the newest at the end."""
    entries = client.xrevrange(key_names.REBALANCE_LOG, count=count)[::-1]
    return [
        LoggedRound(int(name.partition("-")[0]) / 1000, orjson.loads(fields["round"]))
        for name, fields in entries
    ]


def hold(client: Any, seconds: int, reason: str) -> None:
    """Forbid rounds of the service for some seconds; 0 allows them again."""
    if seconds:
        client.set(key_names.REBALANCE_HELD, reason, ex=seconds)
    else:
        client.delete(key_names.REBALANCE_HELD)


def held(client: Any) -> str | None:
    """Return why rounds of the service are forbidden; None if they are not."""
    reason: str | None = client.get(key_names.REBALANCE_HELD)
    return reason

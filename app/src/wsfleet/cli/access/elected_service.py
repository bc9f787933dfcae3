"""A service that looks at the fleet every few seconds; of several processes, one acts."""

import math
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from wsfleet.cli.access.fleet_file import Fleet
from wsfleet.cli.access.redis import connected, server_infos
from wsfleet.cli.errors import CannotRun
from wsfleet.config.settings import NODE_DEAD_AFTER

LEASES = 3
"""Intervals without a sign of the leader until another process leads."""

# lead(LEADER; TOKEN, MILLISECONDS): take or renew the lead, unless another token leads. Returns the
# token that leads.
_LEAD = """
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then
  return leader
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""

# resign(LEADER; TOKEN): give up the lead.
_RESIGN = """
return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1])
"""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The rounds of a service: every `interval` seconds, or `once`; a `dry_run` changes nothing."""

    interval: float = 5.0
    once: bool = False
    dry_run: bool = False
    as_json: bool = False


class ElectedService:
    """One of the processes of a service; the key `leader` of Redis has the token of the leader.

    `token` fences: a script that checks it in Redis does nothing for a process that was paused and
    no longer leads.
    """

    def __init__(self, leader: str, find: Callable[[], Fleet], schedule: Schedule) -> None:
        # The host's name is for people; the random part makes it unique.
        self.token = f"{socket.gethostname()}:{secrets.token_hex(8)}"
        self._leader = leader
        self._find = find
        self._schedule = schedule
        self._leads = False
        self._redis: list[str] | None = None
        self._settled_at = -math.inf
        self._said: object = None

    def round(self, client: Any, fleet: Fleet) -> None:
        """Look at the fleet, and act if this process leads."""
        raise NotImplementedError

    def on_redis(self, answers: bool) -> None:
        """Note whether Redis has answered in this round."""

    def on_lead(self, leads: bool) -> None:
        """Note whether this process leads."""

    def run(self) -> None:
        """Run rounds until SIGTERM or SIGINT; each reads the fleet again, as it changes.

        Raises:
            CannotRun: as :meth:`look`.

        """
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        try:
            while True:
                self.look()
                if self._schedule.once or stop.wait(self._schedule.interval):
                    return
        finally:
            self.leave()

    def look(self) -> None:
        """Run one round.

        Raises:
            CannotRun: with `once`, if Redis or the fleet file cannot be read.

        """
        try:
            fleet = self._find()
            with connected(fleet.redis_url) as client:
                self.round(client, fleet)
        except CannotRun as error:
            if self._schedule.once:
                raise
            self.on_redis(False)
            if self._said != error.message:
                print(f"wsfleet: {error.message}", file=sys.stderr, flush=True)
            self._said = error.message
            self._redis = []  # the Redis that answers next counts as another one
        else:
            self.on_redis(True)

    def leave(self) -> None:
        """Give up the lead; without Redis the lead expires."""
        if self._leads:
            try:
                with connected(self._find().redis_url) as client:
                    client.eval(_RESIGN, 1, self._leader, self.token)
            except CannotRun as error:
                print(f"wsfleet: {error.message}", file=sys.stderr)

    def settled(self, client: Any) -> bool:
        """Return whether nodes have had the time to find this Redis.

        If so, a node without a heartbeat is gone. A follower asks as well: it may lead next.
        """
        found = [info["run_id"] for info in server_infos(client)]
        if found != self._redis:
            if self._redis is not None:
                self._settled_at = time.monotonic() + NODE_DEAD_AFTER
            self._redis = found
        return time.monotonic() >= self._settled_at

    def leads(self, client: Any) -> bool:
        """Take or renew the lead unless another process has it; a dry run always leads."""
        if self._schedule.dry_run:
            return True
        lease = int(self._schedule.interval * LEASES * 1000)
        leader = str(client.eval(_LEAD, 1, self._leader, self.token, lease))
        self._leads = leader == self.token
        self.on_lead(self._leads)
        if not self._leads:
            self.say(leader, {"action": "follow", "leader": leader}, f"{leader} leads")
        return self._leads

    def say(self, what: object, document: Any, line: str, *, always: bool = False) -> None:
        """Print a line, or the document as JSON, if `what` differs from the last time."""
        if always or what != self._said:
            text = orjson.dumps(document).decode() if self._schedule.as_json else line
            print(text, flush=True)
        self._said = what

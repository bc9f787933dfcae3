"""Find the Redis primary from the answers of the servers and their Sentinels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible.errors import AnsibleFilterError


@dataclass(frozen=True)
class _Answer:
    """The answers of one host: the fields of INFO, and its Sentinel's view of the primary."""

    info: Mapping[str, str]
    sentinel: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> _Answer:
        lines = text.splitlines()
        info = dict(line.split(":", 1) for line in lines if re.match(r"\w+:", line))
        sentinel: dict[str, str] = {}
        for line in lines:
            if line.startswith("{"):
                sentinel = json.loads(line)
        return cls(info, sentinel)

    @property
    def has_data(self) -> bool:
        return any(re.fullmatch(r"db\d+", field) for field in self.info)

    @property
    def is_primary(self) -> bool:
        return self.info.get("role") == "master"

    @property
    def is_used(self) -> bool:
        """Whether it is a primary with data or replicas."""
        followers = int(self.info.get("connected_slaves", 0))
        return self.is_primary and (self.has_data or followers > 0)

    @property
    def follows(self) -> str | None:
        if self.info.get("role") != "slave":
            return None
        return f"{self.info['master_host']}:{self.info['master_port']}"

    @property
    def version(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.info["redis_version"].split(".")[:2])


def redis_primary(said: Mapping[str, str], members: Iterable[Mapping[str, Any]]) -> str:
    """Name the host that is the primary.

    The newest answer of a Sentinel counts, else those of the servers. Without data anywhere, as on
    a first run, it is the first host. `said` is by host, in the order of the inventory: the output
    of INFO, and one line of JSON with the answer to SENTINEL MASTER.

    Raises:
        AnsibleFilterError: it is not in the inventory, two could be it, or a replica is too old.
    """
    names = {f"{m['address']}:{m['port']}": m["name"] for m in members if m["name"] in said}
    answers = {host: _Answer.parse(text) for host, text in said.items()}
    primary = _primary(answers, names)
    if "redis_version" in answers[primary].info:
        _check_versions(answers, primary)
    return primary


def _primary(answers: Mapping[str, _Answer], names: Mapping[str, str]) -> str:
    used = [host for host, answer in answers.items() if answer.is_used]
    views = {host: answer.sentinel for host, answer in answers.items() if answer.sentinel}
    if views:
        newest = max(views.values(), key=lambda view: int(view["config-epoch"]))
        address = f"{newest['ip']}:{newest['port']}"
        if address not in names and len(used) == 1:
            raise AnsibleFilterError(_renumbered(address, list(views), used[0]))
        return _named(address, names)
    if len(used) > 1:
        raise AnsibleFilterError(
            f"{_and(used)} have data of their own, and a replica loses its own: back up "
            "and empty (redis-cli-auth FLUSHALL) all but the one whose data is to stay."
        )
    followed = [answer.follows for answer in answers.values() if answer.follows]
    if not used and followed:
        if followed[0] not in names and not any(answer.has_data for answer in answers.values()):
            masters = [host for host, answer in answers.items() if answer.is_primary]
            return (masters or list(answers))[0]
        return _named(followed[0], names)
    return (used or list(answers))[0]


def _named(address: str, names: Mapping[str, str]) -> str:
    if address not in names:
        raise AnsibleFilterError(
            f"the primary is {address}, which is no host of the inventory's group 'redis': put it "
            "back, or make another one primary first (SENTINEL FAILOVER, see docs/operations.md)."
        )
    return names[address]


def _renumbered(address: str, hosts: Iterable[str], primary: str) -> str:
    return (
        f"the Sentinels know the primary as {address}, which no host of the inventory's group "
        f"'redis' has, and {primary} is a primary with data. If the hosts have new addresses, let "
        f"the Sentinels of {_and(hosts)} forget the old ones, on each: systemctl stop "
        "redis-sentinel redis-server && rm /var/lib/redis/sentinel.conf. Then run site.yml again: "
        f"{primary} stays the primary, and the others follow it. If a host {address} still runs, "
        "put it back into the inventory instead."
    )


def _and(hosts: Iterable[str]) -> str:
    *first, last = hosts
    return f"{', '.join(first)} and {last}" if first else last


def _check_versions(answers: Mapping[str, _Answer], primary: str) -> None:
    newest = answers[primary].version
    for host, answer in answers.items():
        if "redis_version" in answer.info and answer.version < newest:
            raise AnsibleFilterError(
                f"{host} has Redis {answer.info['redis_version']} and the primary, {primary}, "
                f"{answers[primary].info['redis_version']}: an older Redis cannot read the newer "
                f"one's data. Put the same Debian on all; upgrade replicas first, the primary last."
            )


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Filters by name."""
        return {"redis_primary": redis_primary}

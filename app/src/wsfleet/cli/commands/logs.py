"""``wsfleet logs``: the journals of all machines, read where they are collected, over ssh."""

import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import orjson
from rich.console import Console
from rich.text import Text

from wsfleet.cli import CannotRun

#: Where the role `journal` collects them.
DIRECTORY = "/var/log/journal/remote"
UNITS = (
    "wsnode@*",
    "haproxy",
    "keepalived",
    "wsfleet-autoscale",
    "redis-server",
    "redis-sentinel",
    "prometheus*",
)
_UNITS = r"(s|sec|m|min|h|hr|hours?|minutes?|seconds?|d|days?|w|weeks?)"
_AGO = re.compile(rf"-?((?:\d+ ?{_UNITS} ?)+?)( ago)?")
_DAYS = {"today": 0, "yesterday": -1}
#: What the journal has besides, or what would say nothing on every line.
_DULL = ("event", "level", "logger", "node", "timestamp")
_LEVELS = ("critical", "critical", "critical", "error", "warning", "info", "info", "debug")


@dataclass(frozen=True, slots=True)
class Plan:
    """Which entries to read, and how.

    `shell` is the command that runs a shell command where the journals are; `names` are nodes or
    hosts, empty for all; `hostnames` are those of the inventory's hosts.
    """

    shell: list[str]
    names: list[str]
    since: str = "10m"
    follow: bool = False
    as_json: bool = False
    hostnames: Mapping[str, str] = field(default_factory=dict)

    @property
    def hosts(self) -> dict[str, str]:
        """The inventory's hosts by hostname; a hostname of several hosts names none of them."""
        count = Counter(self.hostnames.values())
        return {name: host for host, name in self.hostnames.items() if count[name] == 1}

    @property
    def command(self) -> list[str]:
        """The command that reads the journals.

        Raises:
            CannotRun: `since` is no time.

        """
        journalctl = [
            *("sudo", "-n", "journalctl", f"--directory={DIRECTORY}", "--output=json", "--merge"),
            *("--no-pager", f"--since={_since(self.since)}", *(f"--unit={unit}" for unit in UNITS)),
            *(("--follow", "--no-tail") if self.follow else ()),
        ]
        return [*self.shell, shlex.join(journalctl)]


def ssh(arguments: str) -> list[str]:
    """Return the command that runs a shell command on another machine, with arguments of ssh.

    Raises:
        CannotRun: a quotation mark is not closed.

    """
    try:
        return ["ssh", "-o", "BatchMode=yes", *shlex.split(arguments)]
    except ValueError as error:
        raise CannotRun(f"--ssh cannot be read: {error}") from error


def _since(text: str) -> str:
    """Return a time as journalctl takes it, the same in every time zone.

    A duration is subtracted from the time of the machine with the journals; a date is a time of
    this machine's zone if it names no other.

    Raises:
        CannotRun: it is neither.

    """
    text = " ".join(text.split())
    if ago := _AGO.fullmatch(text):
        return f"-{ago[1].strip()}"
    try:
        return f"@{_moment(text).timestamp():.6f}"
    except (ValueError, OverflowError, LookupError, OSError) as error:
        raise CannotRun(
            f"--since {text!r} is no time: take a duration (10m, 2h, 1d), or a date and time, "
            "'2026-11-26 14:00', 14:00 or yesterday, in this machine's time zone; "
            "'2026-11-26T14:00:00Z' and '2026-11-26 14:00 Europe/Berlin' name another"
        ) from error


def _moment(text: str) -> datetime:
    """Read an absolute time, with the forms of systemd.time(7) that people type."""
    if text.startswith("@"):
        return datetime.fromtimestamp(float(text[1:]), UTC)
    first, _, last = text.rpartition(" ")
    zone: tzinfo | None = None
    if last[:1].isalpha() and first:
        zone, text = UTC if last in ("UTC", "GMT") else ZoneInfo(last), first
    now = datetime.now(zone)
    day, _, clock = text.partition(" ")
    if day in _DAYS:
        text = f"{now.date() + timedelta(_DAYS[day])} {clock or '00:00'}"
    elif re.match(r"\d?\d:", text):
        text = f"{now.date()} {text.zfill(5)}"
    moment = now if text == "now" else datetime.fromisoformat(text)
    if zone is not None:
        if moment.tzinfo is not None and text != "now":
            raise ValueError("two time zones")
        moment = moment.replace(tzinfo=zone)
    return moment


@dataclass(frozen=True, slots=True)
class Line:
    """An entry of a journal: `node` is empty where no node wrote it, `fields` is a node's own."""

    time: datetime
    host: str
    unit: str
    node: str
    level: str
    event: str
    fields: dict[str, Any]

    def is_of(self, names: Iterable[str]) -> bool:
        """Whether one of these nodes or hosts wrote it."""
        return not {self.host, self.node, self.node.rpartition("-")[0]}.isdisjoint(names)

    def shown(self) -> Text:
        """The line for people."""
        style = {"critical": "red", "error": "red", "warning": "yellow"}.get(self.level, "")
        who = self.node or f"{self.host} {self.unit.removesuffix('.service')}"
        text = Text(f"{self.time.strftime('%H:%M:%S.%f')[:-3]} ")
        text.append(f"{who} ", "bold").append(self.event, style)
        for name, value in self.fields.items():
            text.append(f" {name}=", "dim").append(str(value), style)
        return text

    def document(self) -> dict[str, Any]:
        """The same for programs."""
        named = ("time", "host", "unit", "node", "level", "event")
        return {name: getattr(self, name) for name in named} | {"fields": self.fields}


def parse(text: bytes) -> Line:
    """Read one of the lines that ``journalctl --output=json`` writes."""
    entry = orjson.loads(text)
    message = entry.get("MESSAGE") or ""
    if isinstance(message, list):  # bytes that are not all printable
        message = bytes(message).decode("utf-8", "replace")
    try:
        said = orjson.loads(message)
    except orjson.JSONDecodeError:
        said = None
    if not isinstance(said, dict) or "event" not in said:
        said = {"event": message, "level": _LEVELS[int(entry.get("PRIORITY", 6))]}
    return Line(
        time=datetime.fromtimestamp(int(entry["__REALTIME_TIMESTAMP"]) / 1e6).astimezone(),
        host=str(entry.get("_HOSTNAME", "")),
        # systemd itself speaks of a unit by UNIT.
        unit=str(entry.get("UNIT") or entry.get("_SYSTEMD_UNIT", "")),
        node=str(said.get("node", "")),
        level=str(said.get("level", "info")),
        event=str(said["event"]),
        fields={name: value for name, value in said.items() if name not in _DULL},
    )


def run(plan: Plan) -> None:
    """Print line by line what the journals have; with `follow`, until Ctrl-C.

    Raises:
        CannotRun: they cannot be read.

    """
    console = Console(highlight=False, soft_wrap=True)
    hosts = plan.hosts
    for entry in _read(plan.command):
        line = replace(entry, host=hosts.get(entry.host, entry.host))
        if plan.names and not line.is_of(plan.names):
            continue
        if plan.as_json:
            sys.stdout.write(orjson.dumps(line.document()).decode() + "\n")
            sys.stdout.flush()
        else:
            console.print(line.shown())


def _read(command: list[str]) -> Iterator[Line]:
    try:
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise CannotRun(
            f"there is no program {command[0]}: install it (ssh is in openssh-client), or run "
            "site.yml again, which writes the fleet file, if that file is an older version's"
        ) from error
    with process:
        try:
            assert process.stdout is not None  # noqa: S101 - asked for above
            assert process.stderr is not None  # noqa: S101
            yield from map(parse, process.stdout)
            if process.wait():
                text = process.stderr.read().decode("utf-8", "replace").strip()
                said = (text or f"{command[0]} failed").splitlines()[-1]
                raise CannotRun(
                    f"cannot read the journals: {said}. Tried "
                    f"{shlex.join(command[:-1])}; --ssh names another way."
                )
        finally:
            process.kill()

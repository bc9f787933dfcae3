"""``wsfleet logs``: the journals of all machines, read over ssh where they are collected."""

import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import orjson
import typer
from rich.console import Console
from rich.text import Text

from wsfleet.cli.access.fleet_file import load_fleet
from wsfleet.cli.errors import CannotRun
from wsfleet.cli.options import FleetFile
from wsfleet.cluster.node_name import host_of

#: The folder in which the role `journal` collects them.
DIRECTORY = "/var/log/journal/remote"
UNITS = (
    "wsnode@*",
    "wsfleet-app@*",
    "haproxy",
    "keepalived",
    "wsfleet-autoscale",
    "wsfleet-rebalance",
    "redis-server",
    "redis-sentinel",
    "prometheus*",
)
_UNITS = r"(s|sec|m|min|h|hr|hours?|minutes?|seconds?|d|days?|w|weeks?)"
_AGO = re.compile(rf"-?((?:\d+ ?{_UNITS} ?)+?)( ago)?")
_DAYS = {"today": 0, "yesterday": -1}
#: Fields of a node's line that the journal or the line itself has already.
_KNOWN = ("event", "level", "logger", "node", "timestamp")
_LEVELS = ("critical", "critical", "critical", "error", "warning", "info", "info", "debug")


def command(
    node: Annotated[
        list[str] | None,
        typer.Option(
            "--node",
            metavar="NAME",
            help="Only this node, or this host of the inventory; repeat it for several.",
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        str,
        typer.Option(
            help="10m, 2h, 1d, '2026-11-26 14:00', 14:00 or yesterday, in your time zone."
        ),
    ] = "10m",
    follow: Annotated[
        bool, typer.Option("--follow", help="Print new entries as well, until Ctrl-C.")
    ] = False,
    ssh: Annotated[
        str | None,
        typer.Option(
            metavar="USER@HOST",
            help="The machine with the journals, as arguments of ssh. Default: the fleet file's.",
            show_default=False,
        ),
    ] = None,
    fleet: FleetFile = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each entry, one a line.")
    ] = False,
) -> None:
    """Show the journals of all machines, merged by time."""
    shell = ssh_command(ssh) if ssh else []
    hostnames: dict[str, str] = {}
    try:
        known = load_fleet(fleet)
        shell, hostnames = shell or known.logs, known.hosts
    except CannotRun:
        if fleet or not ssh:  # with --ssh the file has only the hosts' names
            raise
    if not shell:
        raise CannotRun(
            "the fleet file names no machine that collects the logs: put a host into the group "
            "`monitoring`, run site.yml, and read the logs on the machine where you run it; or "
            "name the machine with --ssh USER@HOST"
        )
    run(LogsPlan(shell, node or [], since, follow, as_json, hostnames))


@dataclass(frozen=True, slots=True)
class LogsPlan:
    """The entries to read, and how to read them.

    `shell` is the command that runs a shell command on the machine with the journals; `names` are
    nodes or hosts, empty for all; `hostnames` are those of the inventory's hosts.
    """

    shell: list[str]
    names: list[str]
    since: str = "10m"
    follow: bool = False
    as_json: bool = False
    hostnames: Mapping[str, str] = field(default_factory=dict)

    @property
    def hosts(self) -> dict[str, str]:
        """The inventory's hosts by hostname, without hostnames that several hosts have."""
        count = Counter(self.hostnames.values())
        return {name: host for host, name in self.hostnames.items() if count[name] == 1}

    @property
    def command(self) -> list[str]:
        """The command that reads the journals.

        Raises:
            CannotRun: `since` is not a time.

        """
        journalctl = [
            *("sudo", "-n", "journalctl", f"--directory={DIRECTORY}", "--output=json", "--merge"),
            *("--no-pager", f"--since={_since(self.since)}", *(f"--unit={unit}" for unit in UNITS)),
            *(("--follow", "--no-tail") if self.follow else ()),
        ]
        return [*self.shell, shlex.join(journalctl)]


def ssh_command(arguments: str) -> list[str]:
    """Return the command that runs a shell command on another machine, with arguments of ssh.

    Raises:
        CannotRun: a quotation mark is not closed.

    """
    try:
        return ["ssh", "-o", "BatchMode=yes", *shlex.split(arguments)]
    except ValueError as error:
        raise CannotRun(f"--ssh is invalid: {error}") from error


def _since(text: str) -> str:
    """Return a time as an argument of journalctl that is the same in every time zone.

    A duration is subtracted from the time of the machine with the journals; a date is in this
    machine's time zone unless it names another.

    Raises:
        CannotRun: the text is neither.

    """
    text = " ".join(text.split())
    if ago := _AGO.fullmatch(text):
        return f"-{ago[1].strip()}"
    try:
        return f"@{_moment(text).timestamp():.6f}"
    except (ValueError, OverflowError, LookupError, OSError) as error:
        raise CannotRun(
            f"--since {text!r} is not a time: write a duration (10m, 2h, 1d), or a date and time, "
            "'2026-11-26 14:00', 14:00 or yesterday, in this machine's time zone; "
            "'2026-11-26T14:00:00Z' and '2026-11-26 14:00 Europe/Berlin' name another"
        ) from error


def _moment(text: str) -> datetime:
    """Parse an absolute time in the forms of systemd.time(7) that people type."""
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
    """One entry of a journal; `node` and `fields` are empty unless a node wrote it."""

    time: datetime
    host: str
    unit: str
    node: str
    level: str
    event: str
    fields: dict[str, Any]

    def is_of(self, names: Iterable[str]) -> bool:
        """Return whether one of these nodes or hosts wrote it."""
        return not {self.host, self.node, host_of(self.node)}.isdisjoint(names)

    def shown(self) -> Text:
        """Return the line for people."""
        style = {"critical": "red", "error": "red", "warning": "yellow"}.get(self.level, "")
        who = self.node or f"{self.host} {self.unit.removesuffix('.service')}"
        text = Text(f"{self.time.strftime('%H:%M:%S.%f')[:-3]} ")
        text.append(f"{who} ", "bold").append(self.event, style)
        for name, value in self.fields.items():
            text.append(f" {name}=", "dim").append(str(value), style)
        return text

    def document(self) -> dict[str, Any]:
        """Return the object for programs."""
        named = ("time", "host", "unit", "node", "level", "event")
        return {name: getattr(self, name) for name in named} | {"fields": self.fields}


def parse(text: bytes) -> Line:
    """Parse one line of ``journalctl --output=json``."""
    entry = orjson.loads(text)
    message = entry.get("MESSAGE") or ""
    if isinstance(message, list):  # bytes, some of them not printable
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
        # systemd names a unit in its own messages by UNIT.
        unit=str(entry.get("UNIT") or entry.get("_SYSTEMD_UNIT", "")),
        node=str(said.get("node", "")),
        level=str(said.get("level", "info")),
        event=str(said["event"]),
        fields={name: value for name, value in said.items() if name not in _KNOWN},
    )


def run(plan: LogsPlan) -> None:
    """Print the journals line by line; with `follow`, until Ctrl-C.

    Raises:
        CannotRun: the journals cannot be read.

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


def _read(arguments: list[str]) -> Iterator[Line]:
    try:
        process = subprocess.Popen(  # noqa: S603
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise CannotRun(
            f"the program {arguments[0]} is missing: install it (ssh is in openssh-client), or, if "
            "an older version wrote the fleet file, run site.yml, which writes it again"
        ) from error
    with process:
        try:
            assert process.stdout is not None  # noqa: S101 - Popen opens it
            assert process.stderr is not None  # noqa: S101
            yield from map(parse, process.stdout)
            if process.wait():
                text = process.stderr.read().decode("utf-8", "replace").strip()
                said = (text or f"{arguments[0]} failed").splitlines()[-1]
                raise CannotRun(
                    f"cannot read the journals: {said}. Tried "
                    f"{shlex.join(arguments[:-1])}; --ssh names another machine."
                )
        finally:
            process.kill()

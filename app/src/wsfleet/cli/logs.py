"""``wsfleet logs``: the journals of all machines, read where they are collected, over ssh."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

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
_AGO = re.compile(r"(\d+(s|m|min|h|d))+")
#: What the journal has besides, or what would say nothing on every line.
_DULL = ("event", "level", "logger", "node", "timestamp")
_LEVELS = ("critical", "critical", "critical", "error", "warning", "info", "info", "debug")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to read: of `names` alone (nodes or hosts; none: all), and whether to wait for more."""

    ssh: list[str]
    names: list[str]
    since: str = "10m"
    follow: bool = False
    as_json: bool = False

    @property
    def command(self) -> list[str]:
        """The command that reads the journals."""
        since = f"-{self.since}" if _AGO.fullmatch(self.since) else self.since
        journalctl = [
            *("sudo", "-n", "journalctl", f"--directory={DIRECTORY}", "--output=json", "--merge"),
            *("--no-pager", f"--since={since}", *(f"--unit={unit}" for unit in UNITS)),
            *(("--follow", "--no-tail") if self.follow else ()),
        ]
        return ["ssh", "-o", "BatchMode=yes", *self.ssh, shlex.join(journalctl)]


@dataclass(frozen=True, slots=True)
class Line:
    """An entry: `node` is empty where none wrote it, `fields` is what a node said besides."""

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
    for line in _read(plan.command):
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
        raise CannotRun("there is no ssh: install openssh-client") from error
    with process:
        try:
            assert process.stdout is not None  # noqa: S101 - asked for above
            assert process.stderr is not None  # noqa: S101
            yield from map(parse, process.stdout)
            if process.wait():
                said = process.stderr.read().decode("utf-8", "replace").strip().splitlines()
                raise CannotRun(
                    f"cannot read the journals: {said[-1] if said else 'ssh failed'}. Tried "
                    f"{shlex.join(command[:-1])}; --ssh names another way."
                )
        finally:
            process.kill()

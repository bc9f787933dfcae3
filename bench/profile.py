"""Profile the node: py-spy samples its stack during a measurement."""

from __future__ import annotations

import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.catalog import HERE, PEERS
from bench.modes import DEFAULT_CLIENTS, IN_FLIGHT, MODES, per_cpu_second
from bench.rig import BenchError, Rig, Shape

PEER = PEERS["wsfleet-centrifuge"]
#: Samples a second; seconds that py-spy may take to write its file.
RATE, PY_SPY_TIMEOUT = 250, 30
#: The profiled modes: connections and measurement of client.c; with None, the mode itself.
PROFILED: dict[str, tuple[Shape, str, int] | None] = {
    "one": (Shape.of(PEER, DEFAULT_CLIENTS, 1), "window", 1),
    "sixteen": (Shape.of(PEER, DEFAULT_CLIENTS, IN_FLIGHT), "window", IN_FLIGHT),
    "rooms": (Shape.of(PEER, DEFAULT_CLIENTS, IN_FLIGHT, 200), "window", IN_FLIGHT),
    "publish": (Shape(0, 64, 64), "publish", 64),
    "setup": None,
}
_WRITES = "writing to clients (uvloop, kernel)"
_LOOP_FRAME = "Runner.run "
_LOOP = "event loop, reading, accepting (uvloop, kernel)"
_HTTP = "HTTP and RFC 6455"
_PROTOCOL = "client protocol, rights, limits"
_REDIS = "Redis: commands, replies, pub/sub"
_FAN_OUT = "hub and outboxes"
_LOG = "log"
_OTHER = "anything else"
GROUPS = (_WRITES, _LOOP, _HTTP, _PROTOCOL, _REDIS, _FAN_OUT, _LOG, _OTHER)
_OF_FOLDER = {
    **dict.fromkeys(("transports", "server"), _HTTP),
    **dict.fromkeys(("clients", "protocol", "api", "auth", "node", "config"), _PROTOCOL),
    **dict.fromkeys(("redis", "broker", "channels", "cluster"), _REDIS),
    "hub": _FAN_OUT,
    "telemetry": _LOG,
}


def group(stack: list[str]) -> str:
    """Return the group of a sample: that of its innermost frame of the node or the event loop."""
    leaf = stack[-1]
    if leaf.startswith("Connection.send "):
        return _WRITES  # nearly all of it is in the transport's write
    if leaf.startswith(_LOOP_FRAME):
        return _LOOP
    for frame in reversed(stack):
        place = frame.partition(" (")[2]
        folder = place.rpartition("wsfleet/")[2].partition("/")[0]
        if folder in _OF_FOLDER:
            return _OF_FOLDER[folder]
        if "uvicorn/protocols/" in place:
            return _HTTP
        if "structlog/" in place:
            return _LOG
    return _OTHER


def shares(raw: str) -> dict[str, float]:
    """Return the share of each group, from py-spy's raw lines `outer;...;inner COUNT`.

    Only the event loop's thread counts: the other one, `BlockedLoopWatch`, waits nearly always, and
    py-spy takes some of its waits for work.

    Raises:
        BenchError: there are no samples.

    """
    counts: Counter[str] = Counter()
    for line in raw.splitlines():
        line_stack, _, count = line.rpartition(" ")
        stack = line_stack.split(";")
        if any(frame.startswith(_LOOP_FRAME) for frame in stack):
            counts[group(stack)] += int(count)
    if not (total := counts.total()):
        raise BenchError("py-spy took no samples")
    return {name: counts[name] / total for name in GROUPS}


@contextmanager
def sampled(pid: int, seconds: float, file: Path) -> Iterator[None]:
    """Sample a process for `seconds`, and wait for the samples at the end.

    Raises:
        BenchError: py-spy failed; the message has its output.

    """
    command = [str(HERE / ".venv/bin/py-spy"), "record", "--pid", str(pid), "--format", "raw"]
    command += ["--rate", str(RATE), "--duration", f"{max(1, int(seconds))}", "--nonblocking"]
    command += ["--output", str(file)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield
            _, output = process.communicate(timeout=PY_SPY_TIMEOUT)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise BenchError(f"py-spy: {output.strip()}")


def take(mode: str, seconds: float) -> dict[str, Any]:
    """Return `shares`, the groups' shares of a mode's time, and the mode's own `value`."""
    with ExitStack() as stack:
        rig = Rig(PEER, stack)
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "raw"
        (pid, *_) = rig.pids
        if (how := PROFILED[mode]) is None:
            with sampled(pid, seconds, file):
                result = MODES[mode].measure(rig, DEFAULT_CLIENTS, seconds)
        else:
            shape, kind, in_flight = how
            with rig.clients(shape) as clients, sampled(pid, seconds, file):
                measured = clients.measure(kind, in_flight, seconds, rig.pids)
            result = per_cpu_second(measured, "acks" if kind == "publish" else "deliveries")
        return result | {"shares": shares(file.read_text())}

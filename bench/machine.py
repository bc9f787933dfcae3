"""The machine that is measured on: processes bound to a core, and what the kernel says of them."""

from __future__ import annotations

import contextlib
import os
import platform
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")


def _fields(stat: str) -> list[str]:
    """What /proc/PID/stat has from the state on, which is field 3 of proc(5)."""
    # The name before them is in brackets, and may hold any character.
    return stat.rpartition(")")[2].split()


def _stat(pid: int, proc: Path) -> list[str]:
    return _fields((proc / str(pid) / "stat").read_text())


def tree(root: int, proc: Path = PROC) -> list[int]:
    """A process and all that came from it."""
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                children.setdefault(int(_stat(int(entry.name), proc)[1]), []).append(
                    int(entry.name)
                )
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def used(stat: str) -> float:
    """User and system time so far, in seconds, of the process with this /proc/PID/stat."""
    fields = _fields(stat)
    return (int(fields[11]) + int(fields[12])) / TICKS


def cpu_seconds(pids: Sequence[int], proc: Path = PROC) -> float:
    """User and system time of these processes so far."""
    return sum(used((proc / str(pid) / "stat").read_text()) for pid in pids)


def memory(pids: Sequence[int], proc: Path = PROC) -> int:
    """Bytes of user memory: PSS, so what processes share counts once."""
    kilobytes = 0
    for pid in pids:
        for line in (proc / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                kilobytes += int(line.split()[1])
    return kilobytes * 1024


def description() -> dict[str, str]:
    """What one has to know of the machine to compare."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
    system = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "system": f"{system}, Linux {platform.release()}",
        "python": platform.python_version(),
    }


_ports_given: set[int] = set()


def free_port() -> int:
    """Return a TCP port that nobody listens on, on any address, and that was not returned before.

    It is below those that Linux gives to outgoing connections (ip_local_port_range): one of these
    could take it before its server does.
    """
    while True:
        port = random.randrange(10_000, 32_768)  # noqa: S311 - it protects nothing
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("", port))
            if port not in _ports_given:
                _ports_given.add(port)
                return port


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """The command on one core; it ends when this process does, however that ends."""
    return ["taskset", "--cpu-list", str(core), "setpriv", "--pdeathsig", "TERM", *command]


@contextlib.contextmanager
def running(
    command: Sequence[str], core: int, port: int, log: Path, environment: Mapping[str, str]
) -> Iterator[int]:
    """Run a server, and give its process's number once it listens.

    Raises:
        RuntimeError: it ended, or did not listen in time; the message has the last line of its log.

    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            pinned(core, command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | environment,
        )
    try:
        _wait_for(port, process, log)
        yield process.pid
    finally:
        _end(process)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    said = log.read_text().strip().rpartition("\n")[2]
    raise RuntimeError(f"it does not listen: {said}")


def _end(process: subprocess.Popen[bytes], seconds: float = 5) -> None:
    pids = tree(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + seconds
    while any(runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)


def runs(pid: int, proc: Path = PROC) -> bool:
    """Whether a process still does something: who is dead and only not yet waited for does not."""
    try:
        return _stat(pid, proc)[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False

"""Start server processes, wait until they listen, and end them with their children."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from lab.waiting import attempts

PROC = Path("/proc")
START_TIMEOUT = 60.0
"""Seconds until a server must listen."""


def start(
    command: Sequence[str | Path],
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    port: int = 0,
    restore_signals: bool = True,
    pass_fds: Collection[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a server; its output is appended to `log`. With `port`, return once it listens there.

    `environment` is added to that of this process. Without `restore_signals` the server ignores the
    signals that Python ignores, such as SIGXFSZ. `pass_fds` are file descriptors that it inherits.

    Raises:
        RuntimeError: it ended, or did not listen in time; the message has the last line of its log.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            restore_signals=restore_signals,
            pass_fds=pass_fds,
        )
    if port:
        try:
            _wait_for_port(port, process, log)
        except BaseException:
            stop(process)
            raise
    return process


def stop(process: subprocess.Popen[bytes], grace: float = 10) -> None:
    """End a server as systemd does: SIGTERM, and after `grace` seconds SIGKILL for the rest."""
    pids = tree(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    for _ in attempts(grace, 0.02):
        if not any(runs(pid) for pid in pids):
            return


@contextlib.contextmanager
def process(
    command: Sequence[str | Path],
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    port: int = 0,
    pass_fds: Collection[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends: see `start` and `stop`."""
    child = start(command, log, environment, port=port, pass_fds=pass_fds)
    try:
        yield child
    finally:
        stop(child)


def tree(root: int, proc: Path = PROC) -> list[int]:
    """Return the PIDs of a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                parent = int(_stat(int(entry.name), proc)[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def runs(pid: int, proc: Path = PROC) -> bool:
    """Return whether a process still runs; a zombie does not."""
    try:
        return _stat(pid, proc)[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def stat_fields(stat: str) -> list[str]:
    """Return the fields of /proc/PID/stat, from the state on (field 3 of proc(5))."""
    # The name before them is in brackets and may contain any character.
    return stat.rpartition(")")[2].split()


def _stat(pid: int, proc: Path) -> list[str]:
    return stat_fields((proc / str(pid) / "stat").read_text())


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in attempts(START_TIMEOUT):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
    last = log.read_text().strip().rpartition("\n")[2]
    raise RuntimeError(f"{process.args!r} does not listen on port {port}: {last}")

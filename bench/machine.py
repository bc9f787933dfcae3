"""Processes on one core, and their CPU time and memory according to the kernel."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from lab.processes import PROC, stat_fields

TICKS = os.sysconf("SC_CLK_TCK")


def used(stat: str) -> float:
    """Return the user and system time so far, in seconds, from a /proc/PID/stat."""
    fields = stat_fields(stat)
    return (int(fields[11]) + int(fields[12])) / TICKS


def cpu_seconds(pids: Sequence[int], proc: Path = PROC) -> float:
    """Return the user and system time of these processes so far, in seconds."""
    return sum(used((proc / str(pid) / "stat").read_text()) for pid in pids)


def memory(pids: Sequence[int], proc: Path = PROC) -> int:
    """Return the bytes of user memory: the PSS, so that shared memory counts once."""
    kilobytes = 0
    for pid in pids:
        for line in (proc / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                kilobytes += int(line.split()[1])
    return kilobytes * 1024


def description() -> dict[str, str]:
    """Return the facts that a comparison needs: CPU, operating system and Python version."""
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


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """Return the command bound to one core; the kernel ends it when this process ends."""
    return ["taskset", "--cpu-list", str(core), "setpriv", "--pdeathsig", "TERM", *command]

"""What the kernel says of processes, and how they are run and ended."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bench import machine


def process(
    proc: Path, pid: int, parent: int, user: int = 0, system: int = 0, pss: int = 0
) -> None:
    """Write what /proc has of a process with an awkward name."""
    folder = proc / str(pid)
    folder.mkdir()
    rest = f"S {parent} 1 1 0 -1 0 0 0 0 0 {user} {system} 900 900 20 0 1 0"
    (folder / "stat").write_text(f"{pid} (a) b (c)) {rest}\n")
    (folder / "smaps_rollup").write_text(
        f"00-ff ---p\nRss: 99 kB\nPss:  {pss} kB\nPss_Anon: 7 kB\n"
    )


def test_children_of_children_belong_to_a_tree(tmp_path: Path) -> None:
    """All descendants are found, whatever their order, and nobody else."""
    for pid, parent in ((40, 30), (20, 10), (30, 20), (10, 1), (50, 1)):
        process(tmp_path, pid, parent)
    assert machine.tree(10, tmp_path) == [10, 20, 30, 40]


def test_cpu_time_is_user_and_system_time_of_all(tmp_path: Path) -> None:
    """Ticks become seconds; a name with spaces and brackets does not shift the fields."""
    process(tmp_path, 10, 1, user=3 * machine.TICKS, system=machine.TICKS // 2)
    process(tmp_path, 20, 10, user=machine.TICKS)
    assert machine.cpu_seconds([10, 20], tmp_path) == 4.5


def test_memory_is_the_proportional_set_size_of_all(tmp_path: Path) -> None:
    """Only the line Pss counts."""
    process(tmp_path, 10, 1, pss=100)
    process(tmp_path, 20, 10, pss=50)
    assert machine.memory([10, 20], tmp_path) == 150 * 1024


def test_real_processes_have_cpu_time_and_memory() -> None:
    """The reader agrees with the kernel about this very process."""
    before = machine.cpu_seconds([os.getpid()])
    own = sum(os.times()[:2])
    assert before <= own + 0.02
    assert own <= machine.cpu_seconds([os.getpid()]) + 0.02
    assert machine.memory([os.getpid()]) > 1_000_000


SERVER = """
import os, socket, sys, time
if not os.fork():
    time.sleep(60)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
time.sleep(60)
"""


def test_a_server_is_ended_with_its_children_on_failure(tmp_path: Path) -> None:
    """Neither the process nor what it forked outlives the block."""
    port = machine.free_port()
    pids: list[int] = []

    def fail() -> None:
        command = [sys.executable, "-c", SERVER, str(port)]
        with machine.running(command, 0, port, tmp_path / "log", {}) as pid:
            pids.extend(machine.tree(pid))
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert len(pids) == 2
    assert not [pid for pid in pids if machine.runs(pid)]


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    """The end of its log is in the message."""
    port = machine.free_port()
    command = [sys.executable, "-c", "raise SystemExit('no such option')"]
    with (
        pytest.raises(RuntimeError, match="no such option"),
        machine.running(command, 0, port, tmp_path / "log", {}),
    ):
        pass

"""CPU time and memory of processes."""

from __future__ import annotations

import os
from pathlib import Path

from bench import machine


def process(
    proc: Path, pid: int, parent: int, user: int = 0, system: int = 0, pss: int = 0
) -> None:
    """Write the files of /proc for a process with an awkward name."""
    folder = proc / str(pid)
    folder.mkdir()
    rest = f"S {parent} 1 1 0 -1 0 0 0 0 0 {user} {system} 900 900 20 0 1 0"
    (folder / "stat").write_text(f"{pid} (a) b (c)) {rest}\n")
    (folder / "smaps_rollup").write_text(
        f"00-ff ---p\nRss: 99 kB\nPss:  {pss} kB\nPss_Anon: 7 kB\n"
    )


def test_cpu_time_is_user_and_system_time_of_all(tmp_path: Path) -> None:
    """Ticks are converted to seconds; a name with spaces and brackets shifts no field."""
    process(tmp_path, 10, 1, user=3 * machine.TICKS, system=machine.TICKS // 2)
    process(tmp_path, 20, 10, user=machine.TICKS)
    assert machine.cpu_seconds([10, 20], tmp_path) == 4.5


def test_memory_is_the_proportional_set_size_of_all(tmp_path: Path) -> None:
    """Only the line Pss counts."""
    process(tmp_path, 10, 1, pss=100)
    process(tmp_path, 20, 10, pss=50)
    assert machine.memory([10, 20], tmp_path) == 150 * 1024


def test_real_processes_have_cpu_time_and_memory() -> None:
    """The values of this process agree with those of the kernel."""
    before = machine.cpu_seconds([os.getpid()])
    own = sum(os.times()[:2])
    assert before <= own + 0.02
    assert own <= machine.cpu_seconds([os.getpid()]) + 0.02
    assert machine.memory([os.getpid()]) > 1_000_000

"""Servers are started, and ended with their children."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from lab.ports import free_port
from lab.processes import process, runs, start, stop, tree


def test_children_of_children_belong_to_a_tree(tmp_path: Path) -> None:
    """All descendants are found in any order, and no other process."""
    for pid, parent in ((40, 30), (20, 10), (30, 20), (10, 1), (50, 1)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) b (c)) S {parent} 1 1 0\n")
    assert tree(10, tmp_path) == [10, 20, 30, 40]


SERVER = """
import os, socket, sys, time
if not os.fork():
    time.sleep(60)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
time.sleep(60)
"""


def test_a_server_is_ended_with_its_children_on_failure(tmp_path: Path) -> None:
    """Neither the process nor its child outlives the block."""
    port = free_port()
    pids: list[int] = []

    def fail() -> None:
        command = [sys.executable, "-c", SERVER, str(port)]
        with process(command, tmp_path / "log", port=port) as server:
            pids.extend(tree(server.pid))
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert len(pids) == 2
    assert not [pid for pid in pids if runs(pid)]


def test_the_error_of_a_server_that_ends(tmp_path: Path) -> None:
    """The message has the end of the server's log."""
    port = free_port()
    command = [sys.executable, "-c", "raise SystemExit('no such option')"]
    with (
        pytest.raises(RuntimeError, match="no such option"),
        process(command, tmp_path / "log", port=port),
    ):
        pass


def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """After the grace period a process is killed; its exit status shows it."""
    port = free_port()
    program = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVER
    server = start([sys.executable, "-c", program, str(port)], tmp_path / "log", port=port)
    stop(server, grace=0.1)
    assert server.returncode == -signal.SIGKILL


def test_a_server_has_the_environment_it_is_given(tmp_path: Path) -> None:
    """The given environment is added to that of this process; the output goes to the log."""
    program = "import os; print(os.environ['PATH'], os.environ['OWN'])"
    server = start([sys.executable, "-c", program], tmp_path / "log", {"OWN": "here"})
    assert server.wait(60) == 0
    assert (tmp_path / "log").read_text().endswith(" here\n")

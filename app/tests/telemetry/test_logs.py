"""The lines of the log, and that a slow reader does not block the node."""

import ast
import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfleet.telemetry import log_output, logs
from wsfleet.telemetry.log_output import Output

pytestmark = pytest.mark.usefixtures("processes")

HEAD = """
import asyncio, logging, os, signal, sys, threading, uvloop, structlog
from wsfleet.telemetry import logs

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, which may have started the tests, ignores it
logs.configure("info", "node1")
log = structlog.get_logger("wsfleet.some")
"""
#: Of each line.
STANDARD = {"event", "node", "logger", "level", "timestamp"}


def start(code: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Start a program that logs; the descriptor `stdout` is its own from then on."""
    command = [sys.executable, "-c", HEAD + textwrap.dedent(code)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=stdout, stderr=pipe, text=True)
    if stdout != pipe:
        os.close(stdout)
    return process


def connected(kind: str) -> tuple[int, int]:
    """The two ends of a pipe or a socket: where to read, and where to write."""
    if kind == "pipe":
        return os.pipe()
    readable, writable = socket.socketpair()
    return readable.detach(), writable.detach()


def run(code: str, expected: int = 0) -> list[dict[str, Any]]:
    """The lines of a program that ends with that code, and says nothing on standard error."""
    with start(code) as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (expected, "")
    return [json.loads(line) for line in output.splitlines()]


def test_a_line_has_the_fields_that_are_documented() -> None:
    """Those of the call and five more; an exception is text of its own."""
    opened, failed = run("""
        log.info("opened", client_id="c", connections=1)
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("failed")
    """)
    assert set(opened) == STANDARD | {"client_id", "connections"}
    assert (opened["event"], opened["node"], opened["level"]) == ("opened", "node1", "info")
    assert opened["logger"] == "wsfleet.some"
    assert opened["timestamp"].endswith("Z")
    assert set(failed) == STANDARD | {"exception"}
    assert failed["level"] == "error"
    assert failed["exception"].endswith("ZeroDivisionError: division by zero")


def test_a_line_comes_out_whatever_is_in_it() -> None:
    """Values that JSON cannot express are written as Python prints them; the other fields stay."""
    (line,) = run(r"""
        class Bad:
            def __repr__(self):
                raise ValueError

        circle = []
        circle.append(circle)
        values = dict(data=b"bytes", number=7, half="a\ud83db", huge=2**64, keys={1: 2})
        log.info("heard \udc00", **values, circle=circle, bad=Bad(), nothing=float("nan"))
    """)
    assert (line["event"], line["data"], line["number"]) == ("heard \\udc00", "b'bytes'", 7)
    assert (line["half"], line["huge"], line["keys"]) == ("a\\ud83db", str(2**64), "{1: 2}")
    assert (line["circle"], line["bad"], line["nothing"]) == ("[[...]]", "<Bad>", None)


def test_the_standard_library_s_records_are_lines_as_well() -> None:
    """In order with ours and with the same fields, also where their arguments do not fit."""
    first, second, third, fourth, fifth = run("""
        async def main():
            log.info("ours")
            logging.getLogger("uvicorn.some").info("told %s", "uvicorn")
            log.info("ours again")
            logging.getLogger("uvicorn.error").info("not told: a line for each handshake")
            logging.getLogger("asyncio").warning("%d", "text")
            logging.getLogger("some").error("bad", exc_info=ValueError("x"))

        uvloop.run(main())
    """)
    assert set(first) == set(second) == set(third) == STANDARD
    assert [first["event"], third["event"]] == ["ours", "ours again"]
    told = (second["event"], second["logger"], second["level"], second["node"])
    assert told == ("told uvicorn", "uvicorn.some", "info", "node1")
    assert (fourth["event"], fourth["arguments"]) == ("%d", ["text"])
    assert (fifth["level"], fifth["exception"]) == ("error", "ValueError: x")


def test_no_event_has_a_field_that_the_log_sets() -> None:
    """It would be overwritten: the name of a node that died by the name of who says so."""
    for file in Path(logs.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("log."):
                fields = {keyword.arg for keyword in call.keywords}
                assert not fields & STANDARD, f"{file}:{call.lineno}"


def test_no_line_looks_for_its_caller() -> None:
    """Not a frame is asked for, neither by structlog nor by the standard library."""
    (line, another) = run("""
        def refuse(*_):
            raise AssertionError("frames were searched")

        logging.currentframe = sys._getframe = refuse
        log.info("ours")
        logging.getLogger("some").info("theirs")
    """)
    assert [line["event"], another["event"]] == ["ours", "theirs"]


def test_the_lines_of_a_turn_are_written_together() -> None:
    """One write for all that one turn of the loop logs; a warning is not kept waiting."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code = """
        async def main():
            for turn in range(3):
                for number in range(10):
                    log.info("quiet", turn=turn)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            log.info("before")
            log.warning("loud")
            log.info("after")

        log.info("no loop")
        log.info("still none")
        uvloop.run(main())
    """
    with ours, start(code, theirs.detach()) as process:
        writes = list(iter(lambda: ours.recv(1_000_000).decode(), ""))
    assert process.returncode == 0
    events = [[json.loads(line)["event"] for line in write.splitlines()] for write in writes]
    assert events == [
        ["no loop"],
        ["still none"],
        *([["quiet"] * 10] * 3),
        ["before", "loud"],
        ["after"],
    ]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("return", 0),
        ("sys.exit(7)", 7),
        ("asyncio.get_running_loop().call_soon(sys.exit, 7); await asyncio.sleep(9)", 7),
        ("asyncio.create_task(end()); await asyncio.sleep(9)", 7),
        ("asyncio.get_running_loop().stop(); await asyncio.sleep(9)", 1),
        ("raise ValueError", 1),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("signal.raise_signal(signal.SIGTERM)", -signal.SIGTERM),
        ("signal.raise_signal(signal.SIGHUP)", -signal.SIGHUP),
        ("os.kill(os.getpid(), signal.SIGTERM); await asyncio.sleep(9)", -signal.SIGTERM),
        ("threading.Thread(target=log.info, args=['more']).start()", 0),
    ],
)
def test_no_line_is_lost_when_the_process_ends(loop: str, end: str, code: int) -> None:
    """However it ends itself, and though the loop's turn was not over."""
    program = f"""
        async def end():
            log.info("in a task")
            sys.exit(7)

        async def main():
            for number in range(100):
                log.info("last", number=number)
            {end}

        {loop}.run(main())
    """
    with start(program) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == code
    lines = [json.loads(line) for line in output.splitlines()]
    numbers = [line["number"] for line in lines if line["event"] == "last"]
    assert numbers == list(range(100))
    assert ("in a task" in output) == ("end()" in end)
    assert ("more" in output) == ("more" in end)


def test_a_warning_is_out_before_the_process_can_crash() -> None:
    """With the lines before it, though nothing runs when a process is aborted."""
    lines = run(
        """
        async def main():
            log.info("before")
            log.critical("the end")
            os.kill(os.getpid(), signal.SIGKILL)

        uvloop.run(main())
        """,
        -signal.SIGKILL,
    )
    assert [line["event"] for line in lines] == ["before", "the end"]


def test_threads_and_the_loop_log_side_by_side() -> None:
    """Each line is whole, and each one's lines are in their order."""
    lines = run("""
        def work(name):
            for number in range(500):
                log.info("said", name=name, number=number)

        async def main():
            threads = [threading.Thread(target=work, args=[name]) for name in range(4)]
            for thread in threads:
                thread.start()
            for number in range(500):
                log.info("said", name="loop", number=number)
                await asyncio.sleep(0)
            for thread in threads:
                await asyncio.to_thread(thread.join)

        uvloop.run(main())
    """)
    numbers = defaultdict(list)
    for line in lines:
        numbers[line["name"]].append(line["number"])
    assert len(numbers) == 5
    assert all(said == list(range(500)) for said in numbers.values())


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_hanging_log_reader_blocks_nothing(kind: str) -> None:
    """Lines that do not fit are dropped and counted; kept lines come in order, before new ones."""
    code = """
        async def main():
            for number in range(30_000):
                log.info("said", number=number)
                if number % 100 == 0:
                    await asyncio.sleep(0)
            print("said all", file=sys.stderr, flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            log.info("said", number=30_000)

        uvloop.run(main())
    """
    readable, writable = connected(kind)
    with open(readable, "rb") as reader, start(code, writable) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stderr.readline() == "said all\n"
        lines = [json.loads(reader.readline())]
        while lines[-1]["event"] == "said":
            lines.append(json.loads(reader.readline()))
        process.stdin.write("\n")
        process.stdin.flush()
        last = [json.loads(line) for line in reader]
    assert process.returncode == 0
    report = lines.pop()
    assert (report["event"], report["level"]) == ("log_lines_dropped", "warning")
    assert [line["number"] for line in lines] == list(range(len(lines)))
    assert len(lines) + report["lines"] == 30_000
    assert [line["number"] for line in last] == [30_000]


@pytest.mark.parametrize("reader", ["slow", "none"])
def test_a_process_that_ends_waits_for_a_slow_reader_alone(reader: str) -> None:
    """All lines come while somebody reads; nobody can keep the process from ending."""
    code = """
        async def main():
            for number in range(2_000):
                log.info("said", number=number)

        uvloop.run(main())
    """
    with start(code) as process:
        assert process.stdout is not None
        if reader == "none":
            assert process.wait(timeout=60) == 0
        output = process.stdout.read()
    assert process.returncode == 0
    numbers = [json.loads(line)["number"] for line in output.splitlines(keepends=True)[:-1]]
    assert numbers == list(range(len(numbers)))
    assert (len(numbers) == 1_999) == (reader == "slow")


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_gone_log_reader_is_ignored(kind: str) -> None:
    """Neither who logs, whose work goes on, nor the standard error."""
    code = """
        async def main():
            sys.stdin.readline()
            for number in range(1_000):
                log.info("said", number=number)
                log.error("said", number=number)
                await asyncio.sleep(0)
            sys.exit(5)

        log.info("starts")
        uvloop.run(main())
    """
    readable, writable = connected(kind)
    with start(code, writable) as process:
        assert b"starts" in os.read(readable, 1000)
        os.close(readable)
        _, errors = process.communicate("\n", timeout=60)
    assert (process.returncode, errors) == (5, "")


def test_no_standard_output_is_no_error(tmp_path: Path) -> None:
    """And no line goes into the file that has its number then."""
    file = tmp_path / "file"
    program = (
        f"file = open({str(file)!r}, 'w')\nassert file.fileno() == 1" + HEAD + "log.error('x')"
    )
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", program]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr, file.read_text()) == (0, "", "")


@pytest.mark.parametrize("room", ["comes", "does not come"])
def test_a_full_disk_is_as_a_reader_that_hangs(tmp_path: Path, room: str) -> None:
    """The caller gets no error; when there is room again, no line is cut in two."""
    code = f"""
        import resource

        async def main():
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
            for number in range(30_000):
                log.info("said", number=number)
                if number % 100 == 0:
                    await asyncio.sleep(0)
            if {room == "comes"}:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

        uvloop.run(main())
    """
    file = tmp_path / "file"
    with start(code, os.open(file, os.O_CREAT | os.O_WRONLY)) as process:
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    written = file.read_text().splitlines()
    if room != "comes":
        assert file.stat().st_size == 10_000
        written.pop()
    lines = [json.loads(line) for line in written]
    if room == "comes":
        assert len(lines) + lines.pop()["lines"] == 30_001
    assert [line["number"] for line in lines] == list(range(len(lines)))


@given(st.lists(st.one_of(st.integers(1, 1500), st.just("read"))))
def test_every_line_is_written_or_counted(steps: list[int | str]) -> None:
    """However writing and reading take turns: whole lines, in order, none twice."""
    readable, writable = os.pipe()
    fcntl.fcntl(writable, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(readable, False)
    output = Output(writable, b"dropped %d\n".__mod__)
    received = b""

    def read(size: int) -> bool:
        nonlocal received
        with contextlib.suppress(BlockingIOError):
            received += os.read(readable, size)
            return True
        return False

    lines = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_output, "BACKLOG", 4096)
        for step in steps:
            if isinstance(step, int):
                output.write(b"%d%s\n" % (lines, b" " * step))
                lines += 1
            else:
                read(1000)
        while output.flush() or read(10_000):
            read(10_000)
    for descriptor in (readable, writable, output._descriptor):
        os.close(descriptor)
    numbers: list[int] = []
    dropped = 0
    for line in received.splitlines():
        if line.startswith(b"dropped"):
            dropped += int(line.split()[1])
        else:
            numbers.append(int(line))
    assert numbers == sorted(set(numbers))
    assert len(numbers) + dropped == lines

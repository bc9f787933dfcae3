"""The rule of quick tests: they start no process and reach no other machine."""

import sys
from typing import Any

STARTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "pty.spawn")
"""Audit events (PEP 578) of a process that is started."""


def forbid_processes() -> None:
    """From now on, raise an error where code starts a process or connects to another machine."""
    sys.addaudithook(_forbid)


def _forbid(event: str, args: tuple[Any, ...]) -> None:
    if event in STARTS:
        raise RuntimeError(
            "a test without the fixture `processes` starts a process: request it, in the fixture "
            f"or by pytest.mark.usefixtures ({event} {args[:2]!r})"
        )
    if event == "socket.connect" and isinstance(args[1], tuple) and _is_remote(args[1][0]):
        raise RuntimeError(f"a quick test connects to another machine: {args[1]!r}")


def _is_remote(address: str) -> bool:
    return not address.startswith("127.") and address not in ("::1", "localhost")

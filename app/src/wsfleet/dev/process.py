"""A child process of `wsfleet dev`, as its parent sees it."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from typing import BinaryIO, Self, cast

STOP_TIMEOUT = 2.0
"""Seconds for a node to stop; then it is killed."""


class NodeProcess:
    """A process that has the code of a node, and serves when it is told to."""

    def __init__(self, process: Process, word: BinaryIO) -> None:
        self._process = process
        self._word = word

    @classmethod
    async def spawn(cls, sockets: Sequence[socket.socket], environment: Mapping[str, str]) -> Self:
        """Start a process; it ends when this one does."""
        theirs, ours = os.pipe()
        word = cast(BinaryIO, os.fdopen(ours, "wb", buffering=0))
        descriptors = [theirs, *(each.fileno() for each in sockets)]
        # Ctrl-C reaches all processes; a child that imports has no handler for it yet.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "wsfleet.dev.child", *map(str, descriptors)),
                pass_fds=descriptors,
                env=environment,
            )
        except BaseException:
            word.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            os.close(theirs)
        return cls(process, word)

    def serve(self) -> None:
        """Tell the process to serve."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, as `ended` says
            self._word.write(b"1")

    async def ended(self) -> None:
        """Wait until the process has ended."""
        await self._process.wait()

    async def stop(self) -> bool:
        """End the process; return False if it had to be killed."""
        self._word.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            return False
        return True

"""The child of `wsfleet dev`: a node on the sockets of its parent.

It imports the node's code at once, and waits for the parent's word before it imports the
application: so a restart takes no longer than the application itself.
"""

import contextlib
import os
import signal
import socket
import sys
import threading

from wsfleet.config import file
from wsfleet.dev.defaults import API_KEY, completed
from wsfleet.server.server import create_server, read_settings
from wsfleet.telemetry import logs
from wsfleet.telemetry.text_encoder import TextEncoder

CANNOT_START = 2


def main(parent: int, clients: int, internal: int) -> None:
    """Serve on two listening sockets, given by their file descriptors, until SIGTERM or SIGINT.

    `parent` is the end of a pipe. A byte in it is the word to serve, and its end is the parent's.

    Raises:
        SystemExit: 2 or 3, as for `server.run`; standard error has the reason.
    """
    if not os.read(parent, 1):
        return
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # the parent has blocked it
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    # A file that changes twice in a second keeps the time that is in its bytecode file.
    sys.dont_write_bytecode = True
    settings = read_settings()
    try:
        config = completed(
            file.load(settings.config), os.environ[API_KEY], built_in=settings.config is None
        )
        server = create_server(settings, config=config)
    except file.ConfigError as mistakes:
        print(mistakes, file=sys.stderr)
        raise SystemExit(CANNOT_START) from None
    logs.configure(settings.log_level, settings.name, TextEncoder())
    server.run([socket.socket(fileno=clients), socket.socket(fileno=internal)])


def _end_with(parent: int) -> None:
    os.read(parent, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(*map(int, sys.argv[1:]))

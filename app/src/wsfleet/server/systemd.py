"""The service's side of systemd.

Ready, watchdog and stopping are those of sd_notify(3), sockets those of sd_listen_fds(3).
"""

import asyncio
import os
import socket
from collections.abc import Callable

FIRST_FD = 3
"""The first file descriptor that systemd passes."""


def listening_sockets() -> list[socket.socket]:
    """Return the sockets of the unit's `Sockets=`; none if systemd did not pass any."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    sockets = [socket.socket(fileno=fd) for fd in range(FIRST_FD, FIRST_FD + count)]
    for each in sockets:
        each.set_inheritable(False)
    return sockets


def notify(*assignments: str) -> None:
    """Send assignments to systemd; return at once if systemd did not start the process."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto("\n".join(assignments).encode(), address)


async def keep_watchdog_quiet(status: Callable[[], str]) -> None:
    """Notify the watchdog in every half of `WatchdogSec` (sd_watchdog_enabled(3))."""
    microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
    interval = microseconds / 2_000_000 if microseconds else 10.0
    while True:
        notify("WATCHDOG=1", f"STATUS={status()}")
        await asyncio.sleep(interval)

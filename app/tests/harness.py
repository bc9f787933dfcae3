"""What the tests start and wait for: Redis as a process of its own, nodes in this one."""

import asyncio
import contextlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import yaml
from websockets.asyncio.client import ClientConnection, connect

from wsfleet.config.settings import Settings
from wsfleet.server.server import Server
from wsfleet.tasks import end

REDIS_ROLE = Path(__file__).parents[2] / "roles" / "redis"


_ports_given: set[int] = set()


def free_port() -> int:
    """Return a TCP port that nobody listens on, on any address, and that was not returned before.

    It is below those that Linux gives to outgoing connections (ip_local_port_range): one of these
    could take it before its server does.
    """
    while True:
        port = random.randrange(10_000, 32_768)  # noqa: S311 - it protects nothing
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("", port))
            if port not in _ports_given:
                _ports_given.add(port)
                return port


def redis_rights() -> dict[str, str]:
    """What each Redis user may do, as the role `redis` says."""
    variables = yaml.safe_load((REDIS_ROLE / "vars" / "main" / "main.yml").read_text())
    rights: dict[str, str] = variables["_redis_rights"]
    return rights


class RedisServer:
    """A redis-server on a port of its own, with options of its own; its data outlives `stop`.

    Who gives no name may do everything; the users that the role makes are there as well.
    With `tls`, a folder in which are the files of `make_certificate`, it speaks nothing else.
    """

    def __init__(self, directory: Path, *, tls: Path | None = None, **options: object) -> None:
        self._directory = directory
        directory.mkdir(exist_ok=True)
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = {"port": self.port, "dir": directory, "appendonly": "yes", "save": '""'}
        if tls:
            self.url = f"rediss://127.0.0.1:{self.port}/0?ssl_ca_certs={tls}/ca.pem"
            own = dict.fromkeys(("tls_cert_file", "tls_key_file"), tls / "host.pem")
            options |= {"port": 0, "tls_port": self.port, "tls_ca_cert_file": tls / "ca.pem", **own}
            options |= {"tls_auth_clients": "no", "tls_replication": "yes"}
        self._options |= {name.replace("_", "-"): value for name, value in options.items()}
        self._process: subprocess.Popen[bytes] | None = None

    def url_of(self, user: str) -> str:
        """The URL for one of the role's users."""
        return self.url.replace("://", f"://{user}:any@")

    def start(self) -> None:
        """Start, and return once it answers."""
        binary = shutil.which("redis-server")
        assert binary, "redis-server is not installed; scripts/test installs it"
        file = self._directory / "redis.conf"  # which Redis itself may write to
        sentinel = ["--sentinel"] if "sentinel" in self._options else []
        users = {} if sentinel else redis_rights()
        lines = [f"{name} {value}" for name, value in self._options.items()]
        lines += [f"user {user} on nopass {rights}" for user, rights in users.items()]
        if not file.exists():
            file.write_text("\n".join(lines))
        with (self._directory / "log").open("ab") as log:
            command = [binary, str(file), *sentinel]
            # Python ignores SIGXFSZ, and so does its child: see `no_space`.
            self._process = subprocess.Popen(command, stdout=log, stderr=log, restore_signals=False)
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.05)
        raise RuntimeError(f"redis-server did not start: see {self._directory / 'log'}")

    def no_space(self, *, left: bool = False) -> None:
        """Let no byte fit into its files any more, as if the disk were full; `left`: end that."""
        assert self._process is not None
        limit = resource.RLIM_INFINITY if left else 0
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def freeze(self) -> None:
        """Stop it from answering: its sockets stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        """End the process, frozen or not."""
        if self._process is not None:
            self.thaw()
            self._process.terminate()
            self._process.wait(timeout=10)
            self._process = None


def make_certificate(certificate: Path, with_key: Path, *names: str) -> None:
    """Make a certificate of the loopback, by itself and in one file with its key.

    It signed itself: who trusts it as a CA trusts nobody else.
    """
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    others = "".join(f",DNS:{name}" for name in names)
    subject = f"-subj /CN=loopback -addext subjectAltName=IP:127.0.0.1{others}"
    files = ["-keyout", str(with_key), "-out", str(certificate)]
    subprocess.run([*request.split(), *subject.split(), *files], check=True, capture_output=True)
    with_key.write_text(certificate.read_text() + with_key.read_text())


class RunningNode:
    """A node that serves on the loopback, in this process."""

    def __init__(self, server: Server, settings: Settings) -> None:
        self.server = server
        self.settings = settings
        self.node = server._node
        self.task = asyncio.create_task(server._serve())

    @property
    def url(self) -> str:
        """Base URL, without a path."""
        return self.settings.url

    async def wait_ready(self) -> None:
        """Until new clients should come, or fail after ten seconds."""
        async with asyncio.timeout(10):
            while not self.server.started or self.node.not_ready_reason() is not None:
                await asyncio.sleep(0.01)

    def connect(self, **options: Any) -> connect:
        """Open a WebSocket to the plain endpoint."""
        options.setdefault("proxy", None)
        return connect(self.url.replace("http", "ws") + "/ws", **options)

    async def stop(self) -> None:
        """Stop as SIGTERM does."""
        self.server.should_exit = True
        _, running = await asyncio.wait([self.task], timeout=30)
        if running:
            for task in asyncio.all_tasks():
                task.print_stack()
            raise AssertionError("it did not stop within 30 s: what its tasks do is on stderr")
        self.task.result()

    async def crash(self) -> None:
        """Vanish without a word, as after kill -9: no release, no farewell, sockets cut."""
        self.task.cancel()
        await end(self.node._tasks)
        for server in self.server.servers:
            server.close()
        for protocol in list(self.server.server_state.connections):
            protocol.transport.abort()


StartNode = Callable[..., Awaitable[RunningNode]]


async def settled(condition: Callable[[], Awaitable[Any] | Any], what: str) -> None:
    """Wait until `condition` holds, at most ten seconds.

    Raises:
        AssertionError: it never held; the message says `what` did not happen.
    """
    for _ in range(200):
        result = condition()
        if result if not isinstance(result, Awaitable) else await result:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"did not happen within 10 s: {what}")


async def silent(client: ClientConnection, seconds: float = 0.3) -> bool:
    """Whether nothing arrives for a while."""
    try:
        await asyncio.wait_for(client.recv(), seconds)
    except TimeoutError:
        return True
    return False

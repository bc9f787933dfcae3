"""A real redis-server of a test's own."""

import resource
import shutil
import signal
import subprocess
from pathlib import Path

import redis.asyncio
import yaml

from lab.paths import ROOT
from lab.ports import free_port
from lab.processes import start, stop

REDIS_ROLE = ROOT / "roles" / "redis"


def redis_rights() -> dict[str, str]:
    """Return the rights of each Redis user, from the role `redis`."""
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

    def client(self) -> redis.asyncio.Redis:
        """A client of it, answers decoded."""
        return redis.asyncio.Redis.from_url(self.url, decode_responses=True)

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
        command = [binary, str(file), *sentinel]
        # Python ignores SIGXFSZ, and so does its child: see `no_space`.
        self._process = start(
            command, self._directory / "log", port=self.port, restore_signals=False
        )

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
            stop(self._process)
            self._process = None

"""Redis URLs: one server, a primary that Sentinels name, a Redis Cluster, or no Redis."""

import re
import ssl
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from pydantic import AfterValidator

DEFAULT_PORTS = {"one": 6379, "sentinel": 26379, "cluster": 6379}
FORMS = (
    "write redis://[USER:PASSWORD@]HOST:PORT/DB, "
    "redis+sentinel://[USER:PASSWORD@]SENTINEL:PORT,SENTINEL:PORT,.../MASTER/DB or "
    "redis+cluster://[USER:PASSWORD@]HOST:PORT,HOST:PORT,... (rediss for TLS, ?ssl_ca_certs=FILE "
    "for a CA of your own); or memory:// for one node process without Redis"
)

_URL = re.compile(r"(\w+)(?:\+(\w+))?://([^/?]*@)?([^/?]*)([/?].*)?")
"""The parts of a URL with several hosts, which urlsplit does not know."""

_NAME = re.compile(r"[A-Za-z0-9_-]*")
"""The name of a database in memory."""


class RedisURLError(ValueError):
    """The URL is invalid; the message tells how to correct it."""


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a server."""

    host: str
    port: int

    def __str__(self) -> str:
        """HOST:PORT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RedisURL:
    """A Redis URL in its parts; `addresses` are those of Sentinels or of some Cluster nodes.

    The kind `memory` is the memory of the node's process; it has no address.
    """

    text: str
    kind: Literal["one", "sentinel", "cluster", "memory"]
    scheme: str
    credentials: str
    addresses: tuple[Address, ...]
    master: str
    database: int
    sentinel_username: str | None
    sentinel_password: str | None
    ca: str | None

    @classmethod
    def parse(cls, text: str) -> "RedisURL":
        """Parse a URL.

        Raises:
            RedisURLError: it is invalid.
        """
        try:
            return cls._parse(text)
        except RedisURLError:
            raise
        except ValueError as error:
            raise RedisURLError(f"{error}: {FORMS}") from None

    @classmethod
    def _parse(cls, text: str) -> "RedisURL":
        found = _URL.fullmatch(text)
        if found is None:
            raise RedisURLError(f"not a URL: {FORMS}")
        scheme, kind, credentials, hosts, rest = (part or "" for part in found.groups())
        if scheme == "memory" and not kind:
            if credentials or rest.strip("/") or not _NAME.fullmatch(hosts):
                raise RedisURLError(
                    "memory:// is the memory of this process, not a server: write memory:// or "
                    "memory://NAME; several processes need a Redis"
                )
            return cls._memory(text, hosts)
        if scheme not in ("redis", "rediss", "unix") or kind not in ("", "sentinel", "cluster"):
            raise RedisURLError(f"there is no scheme {text.partition('://')[0]!r}: {FORMS}")
        parts = urlsplit(rest)
        path = parts.path.strip("/").split("/")
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        master = ""
        if kind == "sentinel":
            master = unquote(path.pop(0))
            if not master:
                raise RedisURLError(f"the name of the master is missing: {FORMS}")
        if not hosts and scheme != "unix":
            raise RedisURLError(f"an address is missing: {FORMS}")
        database = path.pop(0) if path and scheme != "unix" else ""
        if not (database or "0").isdigit() or (path and scheme != "unix"):
            raise RedisURLError(f"{parts.path!r} is too much of a path: {FORMS}")
        if kind == "cluster" and database not in ("", "0"):
            raise RedisURLError("a Redis Cluster has database 0 alone: leave the path out")
        ca = query.get("ssl_ca_certs")
        if ca is not None:
            _check_ca(ca, scheme)
        return cls(
            text=text,
            kind=kind or "one",  # type: ignore[arg-type]  # it is one of the three, see above
            scheme=scheme,
            credentials=credentials,
            addresses=tuple(
                _address(host, DEFAULT_PORTS[kind or "one"]) for host in hosts.split(",") if host
            ),
            master=master,
            database=int(database or 0),
            sentinel_username=query.get("sentinel_username"),
            sentinel_password=query.get("sentinel_password"),
            ca=ca,
        )

    @classmethod
    def _memory(cls, text: str, name: str) -> "RedisURL":
        return cls(
            text=text,
            kind="memory",
            scheme="memory",
            credentials="",
            addresses=(),
            master=name,
            database=0,
            sentinel_username=None,
            sentinel_password=None,
            ca=None,
        )

    def __str__(self) -> str:
        """Return the URL without its passwords."""
        if self.kind == "memory":
            return f"memory://{self.master}"
        if self.scheme == "unix":
            return self.text.partition("?")[0].rpartition("@")[2]
        kind = "" if self.kind == "one" else f"+{self.kind}"
        hosts = ",".join(map(str, self.addresses))
        master = f"/{self.master}" if self.master else ""
        return f"{self.scheme}{kind}://{hosts}{master}/{self.database}"

    def of(self, address: Address) -> str:
        """Return the URL of one Redis server of this topology."""
        query = f"?{urlencode({'ssl_ca_certs': self.ca})}" if self.ca else ""
        return f"{self.scheme}://{self.credentials}{address}/{self.database}{query}"


def _checked(text: str) -> str:
    RedisURL.parse(text)
    return text


CheckedURL = Annotated[str, AfterValidator(_checked)]
"""A setting that is a Redis URL, as text."""


def _shared(text: str) -> str:
    check_shared(RedisURL.parse(text))
    return text


SharedURL = Annotated[str, AfterValidator(_shared)]
"""The same, of a Redis that several processes can reach."""


def check_shared(url: RedisURL) -> None:
    """Check that other processes can reach what a URL names.

    Raises:
        RedisURLError: it is the memory of one process.
    """
    if url.kind == "memory":
        raise RedisURLError(
            "memory:// is inside one node process: neither another node nor this command can reach "
            "it. A cluster, and every command that reads Redis, needs one: write redis://HOST:PORT/0"
        )


def _check_ca(file: str, scheme: str) -> None:
    if scheme != "rediss":
        raise RedisURLError("ssl_ca_certs is for TLS: write rediss in place of redis")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except OSError as error:
        raise RedisURLError(f"the CA {file} cannot be read: {error.strerror}") from error


def _address(text: str, port: int) -> Address:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(f"{text!r} is no address")
    return Address(parts.hostname, parts.port or port)

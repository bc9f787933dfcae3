"""The node's settings: environment variables `WSFLEET_*`, checked once at start."""

import socket
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from wsfleet.config.endpoint_url import LONGEST_SOCKET
from wsfleet.config.fleet_file import SYSTEM_HOSTS
from wsfleet.config.redis_url import CheckedURL

NODE_DEAD_AFTER = 8.0
"""The default of `Settings.node_dead_after`, which the command line relies on."""


def _internal_port(given: dict[str, Any]) -> int:
    return given.get("port", 0) + 1000 if given.get("app") else 0


class Settings(BaseSettings):
    """The settings of a node, one attribute a variable: `redis_url` is `WSFLEET_REDIS_URL`.

    Raises:
        pydantic.ValidationError: a variable has an invalid value; the message names it.
    """

    model_config = SettingsConfigDict(env_prefix="WSFLEET_", frozen=True)

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8001, ge=0, le=65535)
    """Port to listen on; also the end of the default `name`."""
    app: str = Field(default="", pattern=r"^([A-Za-z_][\w.]*:[A-Za-z_][\w.]*)?$")
    """MODULE:NAME of an ASGI application, which has the paths of `port` to itself but for
    `/connection/` and `/emulation`. Empty: a built-in one with `/health`."""
    app_dir: str = ""
    """Folder in which the application's module is looked for first. Empty: the working folder."""
    app_socket: str = Field(default="", pattern=r"^(/[!-~]*)?$", max_length=LONGEST_SOCKET)
    """Path of the Unix socket where processes of `wsfleet app` run the handlers of `app`. Empty:
    they run in this process."""
    plain_path: str = Field(default="", pattern=r"^(/[!-~]*)?$")
    """Path of the plain protocol. Empty: `/ws`, and none with an application."""
    internal_host: str = ""
    """Address of the internal port. Empty: `host`."""
    internal_port: int = Field(default_factory=_internal_port, ge=0, le=65535)
    """Port for balancers, monitoring and operators: `/ready`, `/health`, `/metrics`,
    `/api`, `/console`, `/docs`. Clients then have `port` for themselves. 0: all is on `port`.
    Default: 0, and `port` + 1000 with an application."""
    node_name: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]{0,64}$")
    """Name of this process in the cluster: its HAProxy server, its cookie. Empty: HOST-PORT."""
    node_url: str = ""
    """Where operators reach this process. Empty: `http://{host}:{port}`, with TLS `https://…`; host
    and port are the internal ones where there are any."""
    node_header: str = Field(default="", pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]*$")
    """Name of a field, such as `X-Wsfleet-Node`, by which each answer on `port` names the process;
    empty: none does."""
    tls_certificate: Path | None = None
    """PEM file with certificate and chain; with one, the ports speak TLS and nothing else."""
    tls_key: Path | None = None
    """PEM file with the certificate's key; none: it is in the same file."""
    trusted_proxies: str = "127.0.0.1"
    """Addresses whose X-Forwarded-For is believed, comma separated."""
    log_level: str = Field(default="info", pattern=r"^(debug|info|warning|error)$")
    """Least severe level that is logged."""

    config: Path | None = None
    """YAML file with channels, tokens and keys, as docs/configuration.md says; none: built in."""

    hosts: Path = SYSTEM_HOSTS
    """Where the balancers are, as site.yml writes it down; the console does without as well."""

    redis_url: CheckedURL = "redis://127.0.0.1:6379/0"
    """The shared state: one Redis, Sentinels or a Redis Cluster, see docs/redis.md. `memory://` is
    the memory of this process, for one node without Redis."""
    redis_timeout: PositiveFloat = 2.0
    """Seconds to connect to Redis, and to wait for one answer."""
    redis_max_connections: int = Field(default=8, ge=4)
    """Connections in the pool to a primary of Redis: commands, replicated ones, pub/sub, spare."""

    heartbeat_interval: PositiveFloat = 2.0
    """Seconds between two signs of life in the registry, and between two probes of pub/sub."""
    node_dead_after: PositiveFloat = NODE_DEAD_AFTER
    """Seconds without a sign of life until other nodes reap this node's `connection:*` keys; at
    least twice `heartbeat_interval`."""
    resume_window: PositiveInt = 120
    """Seconds that `state:{client_id}` outlives its client, and a session its last client."""

    max_connections: PositiveInt = 10_000
    """Open WebSockets, and handshakes that are not accepted yet; more are refused with 503, and
    `/ready` says so."""
    max_message_size: PositiveInt = 65_536
    """Bytes of one message from a client; a larger one closes with 1009."""
    max_publication_size: PositiveInt = 2_000_000
    """Bytes of one publication, data and tags; a larger one is refused with error 107. Keep it
    below `client.reply_max_size`, or a publication may be too large to be recovered."""
    max_request_size: int = Field(default=8_388_608, ge=65_536)
    """Bytes of the body of an HTTP request with a key of the API, or to an application; more is
    refused with 413."""
    body_timeout: PositiveFloat = 10.0
    """Seconds in which a request's body must end, or go on at 240 bytes a second; a slower one is
    refused with 408."""
    compression: bool = False
    """Whether clients that offer permessage-deflate are sent compressed publications."""
    max_json_depth: PositiveInt = 128
    """Levels that JSON from a client may nest: other clients' parsers must take it, too."""
    message_rate: float = Field(default=1000.0, ge=0)
    """Messages a second from one client, over ten seconds; more close with 3013. 0 is no limit."""
    byte_rate: float = Field(default=4_194_304.0, ge=0)
    """Bytes a second from one client, likewise."""
    ping_interval: PositiveFloat = 25.0
    """Seconds between WebSocket pings; keep it below the balancer's tunnel time-out."""
    ping_timeout: PositiveFloat = 20.0
    """Seconds to wait for a pong until the connection is closed with 1011."""
    idle_timeout: float = Field(default=0.0, ge=0)
    """Seconds without a message from a client until it is closed with 1000; 0 is never."""
    outbox_limit: PositiveInt = 8_388_608
    """Bytes that may wait for one client of `/ws`, where one write counts for half of them at most;
    a slower one is closed with 1013."""
    write_timeout: PositiveFloat = 10.0
    """Seconds in which a client must read something, once its backlog is more than 64 KiB;
    a slower one is closed with 1013 or 3008."""
    drain_delay: float = Field(default=3.0, ge=0)
    """Seconds in which the balancers see that a node drains, before it sends clients away."""
    drain_timeout: float = Field(default=30.0, ge=0)
    """Seconds after that in which a draining node asks its clients to reconnect."""
    drain_rate: PositiveInt = 200
    """Clients a second that a draining node sends away, unless the time-out asks for more."""
    weight: int = Field(default=1, ge=1, le=256)
    """Share of the clients, beside the weights of the other nodes: HAProxy's weight of this node's
    server."""
    standby: bool = False
    """Stay drained until an operator wants the node to serve."""

    @model_validator(mode="after")
    def _a_sign_of_life_may_be_lost(self) -> Self:
        if self.node_dead_after < 2 * self.heartbeat_interval:
            raise ValueError(
                f"WSFLEET_NODE_DEAD_AFTER ({self.node_dead_after:g}) must be at least twice "
                f"WSFLEET_HEARTBEAT_INTERVAL ({self.heartbeat_interval:g}): other nodes would take "
                "this one for dead when one sign of life is late; raise the one or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _two_ports_are_two(self) -> Self:
        if self.internal_port and self.internal_port == self.port:
            raise ValueError(
                f"WSFLEET_INTERNAL_PORT ({self.internal_port}) is WSFLEET_PORT as well: give it a "
                "port of its own, or 0 to have all on WSFLEET_PORT"
            )
        if self.app and not self.internal_port:
            raise ValueError(
                "WSFLEET_INTERNAL_PORT is 0, but the application of WSFLEET_APP has all paths of "
                "WSFLEET_PORT: give the internal paths a port of their own"
            )
        return self

    @model_validator(mode="after")
    def _a_socket_has_an_application(self) -> Self:
        if self.app_socket and not self.app:
            raise ValueError(
                "WSFLEET_APP_SOCKET is set, and WSFLEET_APP is not: name the application whose "
                "handlers are asked there, or remove the socket"
            )
        return self

    @cached_property
    def name(self) -> str:
        """The node's name, made from host name and port where none is set."""
        return self.node_name or f"{socket.gethostname()}-{self.port}"

    @cached_property
    def url(self) -> str:
        """The node's own URL, for operators."""
        host, port = self.host, self.port
        if self.internal_port:
            host, port = self.internal_host or self.host, self.internal_port
        return self.node_url or f"{self._scheme}://{host}:{port}"

    @cached_property
    def client_url(self) -> str:
        """The URL of the port for clients."""
        return f"{self._scheme}://{self.host}:{self.port}"

    @property
    def _scheme(self) -> str:
        return "https" if self.tls_certificate else "http"

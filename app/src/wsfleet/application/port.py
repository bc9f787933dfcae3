"""What a node asks of an application: the events, their answers, and the two ways to refuse.

Each backend implements this port: the handlers of `Realtime`, and the HTTP proxy. The rules are
those of Centrifugo's proxies: https://centrifugal.dev/docs/server/proxy
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, get_args

from starlette.requests import cookie_parser
from typing_extensions import TypeVar

from wsfleet.application.session import Session
from wsfleet.auth.tokens import Grant

T = TypeVar("T", default=Any)

ERROR_CODES = range(400, 2000)
DISCONNECT_CODES = range(4000, 5000)
MAX_REASON = 32
"""Bytes of a disconnect's reason: a close frame has 125, and SDKs show this one to a user."""


def _check(what: str, code: object, codes: range) -> None:
    """Check a code, as a type checker would: SDKs fail at a reply with another type."""
    if not isinstance(code, int) or code not in codes:
        raise ValueError(f"{what} is {codes.start}-{codes.stop - 1}: {code!r} is not")


def _check_text(what: str, text: object) -> None:
    """Check a text that is sent to a client."""
    if not isinstance(text, str):
        raise TypeError(f"{what} is a string: {text!r} is not")
    text.encode()  # a lone surrogate has no UTF-8


class Error(Exception):
    """A refusal of one command: the client gets an error, its connection stays.

    `code` is 400-1999. With `temporary`, SDKs try the command again.
    """

    def __init__(self, code: int, message: str, *, temporary: bool = False) -> None:
        _check("an error's code", code, ERROR_CODES)
        _check_text("an error's message", message)
        super().__init__(message)
        self.code = code
        self.message = message
        self.temporary = bool(temporary)

    def __str__(self) -> str:
        """Return code and message."""
        return f"{self.code}: {self.message}"


class Disconnect(Exception):  # noqa: N818 - the name in the protocol
    """A refusal that ends the connection.

    `code` is 4000-4999; after 4000-4499 SDKs reconnect, after 4500-4999 they do not. `reason` has
    at most 32 bytes of ASCII.
    """

    def __init__(self, code: int, reason: str) -> None:
        _check("a disconnect's code", code, DISCONNECT_CODES)
        _check_text("a disconnect's reason", reason)
        if not reason.isascii() or len(reason) > MAX_REASON:
            raise ValueError(f"a disconnect's reason is ASCII, at most 32 bytes: {reason!r} is not")
        super().__init__(reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        """Return code and reason."""
        return f"{self.code}: {self.reason}"


@dataclass(slots=True, eq=False)
class Client:
    """One client, as handlers see it; the same object for all events of its connection.

    `headers` are those of the handshake, names in lower case. `emulated_headers` are those in the
    connect command, which a page can set, unlike those of its handshake; any client may send any of
    them. `info` is what other clients see of it, `meta` what only the server sees; both are JSON or
    empty. `encoding` is "json" or "protobuf". `state` is free for the application, and ends with
    the connection; `session` is in Redis, and outlives it.
    """

    id: str
    user: str = ""
    info: bytes = b""
    meta: bytes = b""
    transport: str = "websocket"
    protocol: str = "centrifuge"
    encoding: str = "json"
    address: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    emulated_headers: Mapping[str, str] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    session: Session = field(default_factory=Session)

    @property
    def cookies(self) -> Mapping[str, str]:
        """The cookies of the handshake, read as those of a route's `Request`.

        Python's `SimpleCookie` gives up at the first one that is not as in RFC 2109.
        """
        return cookie_parser(self.headers.get("cookie", ""))


@dataclass(frozen=True, slots=True)
class ConnectCall:
    """A connect without a token.

    `name` and `version` are those of the client's program, `channels` those that it asks for.
    """

    client: Client
    data: bytes = b""
    name: str = ""
    version: str = ""
    channels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RefreshCall:
    """A connection that expires now."""

    client: Client


@dataclass(frozen=True, slots=True)
class SubscribeCall:
    """A subscribe without a subscription token; `name` is the channel without its namespace."""

    client: Client
    channel: str
    name: str
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class SubRefreshCall:
    """A subscription that expires now."""

    client: Client
    channel: str
    name: str


@dataclass(frozen=True, slots=True)
class PublishCall:
    """A publish command; `name` is the channel without its namespace."""

    client: Client
    channel: str
    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class RpcCall:
    """A call of a method."""

    client: Client
    method: str
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class DisconnectedCall:
    """A connection that ended; `client` is its last known state.

    For a client of a node that died, `code` is 0, and `client.state`, `client.session` and
    `client.headers` are empty.
    """

    client: Client
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Connected:
    """The answer to a connect; `expire_at` is in Unix seconds, 0 is never.

    `data` is for the client. `subs` are the channels that the server subscribes it to. `session` is
    the name of its session; "" is none.
    """

    user: str = ""
    expire_at: int = 0
    info: bytes = b""
    meta: bytes = b""
    data: bytes = b""
    subs: Mapping[str, Grant] = field(default_factory=dict)
    session: str = ""


@dataclass(frozen=True, slots=True)
class Renewed:
    """The answer to a refresh, or a sub_refresh; None leaves `info` or `meta` as it is."""

    expired: bool = False
    expire_at: int = 0
    info: bytes | None = None
    meta: bytes | None = None


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The answer to a subscribe; `expire_at` is in Unix seconds, 0 is never."""

    grant: Grant = field(default_factory=Grant)
    expire_at: int = 0


@dataclass(frozen=True, slots=True)
class Published(Generic[T]):
    """The answer to a publish: what is published in the client's name.

    A handler returns one with `data` that is any JSON value, or a pydantic model.
    """

    data: T
    skip_history: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    idempotency_key: str = ""
    version: int = 0
    version_epoch: str = ""


class Backend(Protocol):
    """Application code behind a node.

    Each method raises Error or Disconnect to refuse, and BackendError if it cannot tell. It ends
    within its own time-out: the caller needs none. `refresh` and `sub_refresh` answer no command:
    after an Error, as after a BackendError, they are called again after a minute. `disconnected`
    is called again after a BackendError, see `application.disconnects`.
    """

    async def connect(self, call: ConnectCall) -> Connected | None:
        """Identify a client; None if it has no credentials."""

    async def refresh(self, call: RefreshCall) -> Renewed:
        """Extend a connection, or let it expire."""

    async def subscribe(self, call: SubscribeCall) -> Subscribed:
        """Let a client subscribe."""

    async def sub_refresh(self, call: SubRefreshCall) -> Renewed:
        """Extend a subscription, or let it expire."""

    async def publish(self, call: PublishCall) -> Published:
        """Let a client publish."""

    async def rpc(self, call: RpcCall) -> bytes:
        """Answer a call."""

    async def disconnected(self, call: DisconnectedCall) -> None:
        """Take note that a connection ended."""


Failure = Literal["exception", "timeout", "unavailable", "invalid"]
"""How a backend failed: it raised, took too long, cannot be reached, or its answer is invalid."""
FAILURES: tuple[Failure, ...] = get_args(Failure)


class BackendError(Exception):
    """A failure of a backend; the client gets error 100, a temporary one: SDKs try again.

    `reason` is for the metrics, the text for the log.
    """

    def __init__(self, message: str = "", *, reason: Failure = "exception") -> None:
        super().__init__(message)
        self.reason: Failure = reason


class UnknownMethodError(Exception):
    """No backend has the method: error 104."""


class MethodDisabledError(Exception):
    """The method's namespace exists, but its calls are not enabled: error 108."""


class Router(Protocol):
    """Which backend answers for an event; None where the node decides by its own rules.

    `namespace` is "" for channels without one.
    """

    @property
    def connect(self) -> Backend | None:
        """The backend for connect."""

    @property
    def refresh(self) -> Backend | None:
        """The backend for refresh."""

    @property
    def disconnected(self) -> Backend | None:
        """The backend that is told of disconnects."""

    def subscribe(self, namespace: str) -> Backend | None:
        """Return the backend for subscribe."""

    def sub_refresh(self, namespace: str) -> Backend | None:
        """Return the backend for sub_refresh."""

    def publish(self, namespace: str) -> Backend | None:
        """Return the backend for publish."""

    @property
    def methods(self) -> Collection[str]:
        """The methods that have a backend: their names, for start-up checks and metrics.

        A name that ends with the boundary (`room:`) is a whole namespace; "" is all methods
        without one.
        """

    def rpc(self, method: str) -> Backend:
        """Return the backend for a method.

        Raises:
            UnknownMethodError, MethodDisabledError: there is none.
        """

"""The keys of proxies: which events go to a backend over HTTP, and how."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from wsfleet.config.endpoint_url import CheckedEndpoint
from wsfleet.config.section import Section
from wsfleet.config.types import Seconds

DEFAULT_PROXY = "default"
"""The name of the proxy that each event has in `client.proxy`, `channel.proxy` or `rpc.proxy`."""
PROXY_NAME = r"^[-a-zA-Z0-9_.]{2,}$"
NOT_FORWARDED = frozenset(
    [
        "host",
        "connection",
        "content-length",
        "transfer-encoding",
        "upgrade",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "expect",
        "accept-encoding",
    ]
)
"""Header fields of the connection, not of the client; a backend would misread the request."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2


def _header_name(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a header field")
    if name.lower() in NOT_FORWARDED:
        raise ValueError(f"{name} belongs to the connection itself: remove it")
    return name


def _header_value(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text.isprintable() or not text.isascii():
        raise ValueError("a header field's value is printable ASCII")
    return value


def _ascii(text: str) -> str:
    if not text.isascii() or not text.isprintable():
        raise ValueError("must be printable ASCII")
    return text


HeaderName = Annotated[str, AfterValidator(_header_name)]
HeaderValue = Annotated[SecretStr, AfterValidator(_header_value)]
Text = Annotated[str, AfterValidator(_ascii)]


class ToError(Section):
    """The error that a status becomes."""

    code: int = Field(ge=400, le=1999)
    """Code of the error, 400 to 1999; required."""
    message: Text = Field(default="", max_length=123)
    """Message of the error: ASCII, at most 123 characters."""
    temporary: bool = False
    """SDKs try the command again."""


class ToDisconnect(Section):
    """The disconnect that a status becomes."""

    code: int = Field(ge=4000, le=4999)
    """Close code: 4000 to 4499, after which SDKs reconnect, or 4500 to 4999; required."""
    reason: Text = Field(default="", max_length=32)
    """Reason of the disconnect: ASCII, at most 32 characters."""


class StatusTransform(Section):
    """The error or disconnect for a status other than 200; a status without one is a failure."""

    status_code: int = Field(ge=201, le=599)
    """Status of the backend's answer; required."""
    to_error: ToError | None = None
    """The error for the client. Give this or the next."""
    to_disconnect: ToDisconnect | None = None
    """The disconnect of the client."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.to_error is None) == (self.to_disconnect is None):
            raise ValueError("needs either to_error or to_disconnect")
        return self


class ProxyTLS(Section):
    """How an `https://` backend is verified; without this section, by the system's CAs."""

    enabled: bool = False
    """Apply this section."""
    cert_pem: str = ""
    """Certificate of the node: a file, or the PEM text itself, or that in Base64."""
    key_pem: SecretStr = SecretStr("")
    """Key of that certificate, likewise."""
    server_ca_pem: str = ""
    """CA certificate that the backend's certificate must be signed by, likewise."""
    insecure_skip_verify: bool = False
    """Accept any certificate: only for tests, because any server is then trusted."""
    server_name: str = ""
    """Name that the backend's certificate must have, if it is not the endpoint's host."""

    unsupported: ClassVar[str] = "client_ca_pem"

    @model_validator(mode="after")
    def _pair_is_whole(self) -> Self:
        if bool(self.cert_pem) != bool(self.key_pem.get_secret_value()):
            raise ValueError("a certificate needs both cert_pem and key_pem")
        return self


class ProxyHTTP(Section):
    """HTTP of the requests to a backend."""

    static_headers: dict[HeaderName, HeaderValue] = {}
    """Header fields of each request; a forwarded one of the same name replaces them."""
    tls: ProxyTLS = ProxyTLS()
    """How an `https://` backend is verified."""
    status_to_code_transforms: list[StatusTransform] = []
    """The error or disconnect for a status other than 200; others are failures: error 100."""


class Proxy(Section):
    """One endpoint of a backend."""

    endpoint: CheckedEndpoint = ""
    """Where the events go: `http://…`, `https://…`, or `http+unix://%2Frun%2Fapp.sock/PATH` for a
    unix socket, which is not a scheme of Centrifugo's."""
    timeout: Seconds = 1.0
    """Time for one call, with its connection; after it the call has failed."""
    http_headers: list[HeaderName] = []
    """Header fields of the client's handshake to forward, such as `Cookie`. Clients that are not
    browsers may send any value."""
    emulated_headers: list[HeaderName] = []
    """Header fields from the `headers` of the client's connect command to forward, such as
    `Authorization`. The value of the handshake takes precedence."""
    include_connection_meta: bool = False
    """Send the connection's `meta` along, which a token or a connect answer set."""
    binary_encoding: bool = False
    """Send payloads in Base64, as `b64data`: for clients whose payloads are not JSON."""
    http: ProxyHTTP = ProxyHTTP()
    """HTTP of the requests."""

    unsupported: ClassVar[str] = "grpc grpc_metadata"

    @model_validator(mode="after")
    def _tls_is_used(self) -> Self:
        if self.http.tls.enabled and self.endpoint and not self.endpoint.startswith("https://"):
            raise ValueError("http.tls needs an https:// endpoint")
        return self


class EventProxy(Proxy):
    """A proxy that is switched on by itself."""

    enabled: bool = False
    """Send these events to the endpoint."""

    @model_validator(mode="after")
    def _has_an_endpoint(self) -> Self:
        if self.enabled and not self.endpoint:
            raise ValueError("endpoint is missing")
        return self


class ClientProxies(Section):
    """Proxies for the events of connections."""

    connect: EventProxy = EventProxy()
    """A client connects without a token."""
    refresh: EventProxy = EventProxy()
    """A connection expires. With this on, no client renews its own token."""
    disconnect: EventProxy = EventProxy()
    """A connection ended; the answer does not matter. Not a key of Centrifugo's."""


class ChannelProxies(Section):
    """Proxies named `default` for the events of channels, which each namespace switches on."""

    subscribe: Proxy = Proxy()
    """A client subscribes without a token."""
    publish: Proxy = Proxy()
    """A client publishes."""
    sub_refresh: Proxy = Proxy()
    """A subscription expires."""

    unsupported: ClassVar[str] = "subscribe_stream map_publish map_remove shared_poll_refresh"


class NamedProxy(Proxy):
    """A proxy that namespaces refer to by its name."""

    name: str = Field(pattern=PROXY_NAME)
    """The proxy's name: two or more of `A-Z a-z 0-9 . _ -`; required, and not `default`."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.name == DEFAULT_PROXY:
            raise ValueError(f"the name {DEFAULT_PROXY!r} is reserved: choose another")
        if not self.endpoint:
            raise ValueError("endpoint is missing")
        return self


class RpcOptions(Section):
    """The options for the methods of one namespace."""

    proxy_enabled: bool = False
    """Send calls of these methods to a backend; else they get error 108."""
    proxy_name: str = DEFAULT_PROXY
    """The proxy for them: `default`, which is `rpc.proxy`, or one of `proxies`."""


class RpcNamespace(RpcOptions):
    """Options for the methods whose names begin with `name` and the boundary."""

    name: str = Field(pattern=PROXY_NAME)
    """The namespace's name: two or more of `A-Z a-z 0-9 . _ -`; required."""


class RpcPing(Section):
    """A method that the node itself answers, with nothing."""

    enabled: bool = False
    """Answer it."""
    method: str = "ping"
    """Its name."""


class RpcConfig(Section):
    """Calls of methods."""

    proxy: Proxy = Proxy()
    """The proxy named `default`."""
    without_namespace: RpcOptions = RpcOptions()
    """Options of methods without a namespace."""
    namespaces: list[RpcNamespace] = []
    """Options of each namespace: a mapping with the same keys and `name`. A method of another one
    gets error 104."""
    ping: RpcPing = RpcPing()
    """A method that the node itself answers."""
    namespace_boundary: str = ":"
    """Ends the namespace in a method's name. Empty: methods have no namespace."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        check_unique("namespaces", [namespace.name for namespace in self.namespaces])
        return self


def check_unique(key: str, names: Sequence[str]) -> None:
    """Check that no name of the list `key` is given twice.

    Raises:
        ValueError: a name is given twice.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{key}: the name {twice[0]!r} is given twice")


def named(name: str, default: Proxy, path: str, proxies: Sequence[NamedProxy]) -> Proxy:
    """Return the proxy with a name; `default` is the one at `path`.

    Raises:
        ValueError: the proxy does not exist, or has no endpoint.
    """
    if name == DEFAULT_PROXY:
        if not default.endpoint:
            raise ValueError(f"needs {path}.endpoint")
        return default
    for proxy in proxies:
        if proxy.name == name:
            return proxy
    raise ValueError(f"there is no proxy {name!r} in proxies")


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Put a place before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None

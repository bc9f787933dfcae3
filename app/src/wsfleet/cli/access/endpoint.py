"""The URL of a fleet, as its clients use it."""

from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from wsfleet.cli.errors import CannotRun
from wsfleet.config.fleet_file import COOKIE
from wsfleet.protocol.centrifuge import negotiation
from wsfleet.protocol.plain import PATH

_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


@dataclass(frozen=True, slots=True)
class FleetEndpoint:
    """One fleet as a client sees it: the URLs of its WebSocket and of its HTTP, and its cookie."""

    websocket: str
    http: str
    #: Name of the load balancers' stickiness cookie.
    cookie: str = COOKIE

    @property
    def secure(self) -> bool:
        """Whether the connection is TLS."""
        return self.websocket.startswith("wss:")

    @property
    def path(self) -> str:
        """The path of the WebSocket."""
        return urlsplit(self.websocket).path

    def at(self, path: str) -> "FleetEndpoint":
        """Return the same fleet with its WebSocket at another path, without a query."""
        return replace(
            self, websocket=urlsplit(self.websocket)._replace(path=path, query="").geturl()
        )


def parse_url(text: str, default_path: str = PATH) -> FleetEndpoint:
    """Return the endpoint for an http, https, ws or wss URL; the path defaults to /ws.

    Raises:
        CannotRun: the URL is invalid.

    """
    invalid = CannotRun(f"{text!r} is not a URL of a fleet: write http://HOST[:PORT] or ws://…")
    try:
        url = urlsplit(text.strip())
        port = url.port
    except ValueError as error:
        raise invalid from error
    if url.scheme not in _SCHEMES or not url.hostname or url.username or port == 0:
        raise invalid
    scheme = _SCHEMES[url.scheme]
    path = url.path if url.path not in ("", "/") else default_path
    query = f"?{url.query}" if url.query else ""
    http = "https" if scheme == "wss" else "http"
    return FleetEndpoint(f"{scheme}://{url.netloc}{path}{query}", f"{http}://{url.netloc}")


def is_application(endpoint: FleetEndpoint, protocol: str | None, command: str) -> bool:
    """Return whether `command` treats a URL as an application's WebSocket.

    `protocol` is the option, "plain" or "application". Without it the path decides: /ws is the
    plain protocol, any other path an application's.

    Raises:
        CannotRun: the path is that of the Centrifuge protocol.

    """
    if endpoint.path == negotiation.PATH:
        raise CannotRun(
            f"{endpoint.path} speaks the Centrifuge protocol, which `wsfleet {command}` does not: "
            f"leave the path out for the plain protocol, or use `wsfleet verify-delivery`"
        )
    return protocol == "application" or (protocol is None and endpoint.path != PATH)


def unreachable(endpoint: FleetEndpoint, reason: object) -> CannotRun:
    """Return the error of a command that could not open a single connection."""
    return CannotRun(
        f"no connection to {endpoint.websocket}: {reason}. "
        "Check the URL, and the fleet with `wsfleet status`."
    )

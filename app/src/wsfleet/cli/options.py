"""The arguments and options that several commands share."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

Url = Annotated[
    str,
    typer.Argument(
        metavar="URL",
        help="http(s)://HOST[:PORT] or ws(s)://HOST[:PORT][/PATH]; the path defaults to /ws.",
        show_default=False,
    ),
]


def _trust(ca: Path | None) -> None:
    """Trust a CA in every library and child process that speaks TLS: OpenSSL reads the variable."""
    if ca is not None:
        os.environ["SSL_CERT_FILE"] = str(ca.resolve())


Ca = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        metavar="FILE",
        envvar="SSL_CERT_FILE",
        exists=True,
        dir_okay=False,
        callback=_trust,
        expose_value=False,
        help="PEM file of the CA that signed the cluster's certificate. Default: the public CAs.",
        show_default=False,
    ),
]
FleetFile = Annotated[
    Path | None,
    typer.Option(
        "--fleet",
        metavar="FILE",
        envvar="WSFLEET_FLEET",
        help="The fleet file that site.yml writes. Default: /etc/wsfleet/fleet.json if it exists, "
        "else inventory/local/.fleet.json in the current folder.",
        show_default=False,
    ),
]
CookieName = Annotated[
    str | None,
    typer.Option(
        "--cookie",
        metavar="NAME",
        help="Name of the balancers' cookie, as in the variable haproxy_cookie. "
        "Default: the fleet file's.",
        show_default=False,
    ),
]
Protocol = Annotated[
    Literal["plain", "application"] | None,
    typer.Option(
        "--protocol",
        help="plain: the cluster's own protocol. application: any WebSocket of an application. "
        "Default: plain for the path /ws, application for any other path.",
        show_default=False,
    ),
]
Message = Annotated[
    str | None,
    typer.Option(
        "--message",
        metavar="TEXT",
        help="For an application: a text message to send. {token} in it becomes a text by which "
        "the message is recognised in whatever the application sends back. Default: send nothing.",
        show_default=False,
    ),
]
Nodes = Annotated[
    list[str],
    typer.Argument(
        metavar="NODE...",
        help="Names of nodes, as `wsfleet status` shows them. A host's name without a port means "
        "all nodes of the host.",
        show_default=False,
    ),
]
Wait = Annotated[
    bool,
    typer.Option("--wait/--no-wait", help="Wait for the nodes to reach the state, or return."),
]
Timeout = Annotated[float, typer.Option(min=0, help="Seconds to wait.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print exactly one JSON object on stdout, nothing else.")
]
Page = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Also write an HTML page with the verdict, the figures and the charts.",
        show_default=False,
    ),
]

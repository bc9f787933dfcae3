"""The operator's command line: what there is, its options; each command imports its work late.

A node is started by ``wsfleet serve``: importing Rich, httpx or picows here would cost every
node of every host their memory, so this module imports nothing but Typer.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from wsfleet.cli.access.websocket_client import Endpoint
    from wsfleet.cli.measure.report import Report

EXIT_WELL, EXIT_WRONG, EXIT_NOT_RUN = 0, 1, 2


class CannotRun(typer.TyperException):
    """The command could not do its work; the message is one line that says how to mend it."""

    exit_code = EXIT_NOT_RUN


class Operator(TyperGroup):
    """The root command: whatever cannot be run ends in one line on stderr and exit code 2."""

    def main(  # type: ignore[override]  # the signature of Click's main is wider than is used here
        self, args: Sequence[str] | None = None, prog_name: str | None = "wsfleet", **extra: Any
    ) -> None:
        """Run the command line and exit the process with 0, 1 or 2 (130 after Ctrl-C)."""
        args = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        try:
            code = super().main(args=args, prog_name=prog_name, **extra)
        except typer.TyperException as error:
            sys.exit(_not_run(error, args))
        except (typer.Abort, KeyboardInterrupt):
            sys.exit(130)
        except BrokenPipeError:
            # The reader of stdout (head, a closed pager) has gone: not worth a word.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_WRONG)
        except Exception:  # a defect of this program: 1 would read as "checked and found wrong"
            traceback.print_exc()
            sys.exit(EXIT_NOT_RUN)
        sys.exit(code or EXIT_WELL)


def _not_run(error: typer.TyperException, args: list[str]) -> int:
    """Say in one line why nothing was done; with --json stdout still gets its one object."""
    message = " ".join(error.format_message().split())
    if not isinstance(error, CannotRun):
        context = getattr(error, "ctx", None)
        message += f" See `{context.command_path if context else 'wsfleet'} --help`."
    print(f"wsfleet: {message}", file=sys.stderr)
    if "--json" in args:
        import orjson

        print(orjson.dumps({"ok": False, "error": message}).decode())
    return EXIT_NOT_RUN


app = typer.Typer(
    cls=Operator,
    help="Run a node of the WebSocket fleet, and check, load and watch the fleet. "
    "Exit codes: 0 all is well, 1 something was found wrong, 2 the command could not be run.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
check = typer.Typer(help="Prove one property of the running fleet.", rich_markup_mode=None)
app.add_typer(check, name="check")

Url = Annotated[
    str,
    typer.Argument(
        metavar="URL",
        help="http(s)://HOST[:PORT] or ws(s)://HOST[:PORT][/PATH]; without a path, /ws is meant.",
        show_default=False,
    ),
]


def _trust(ca: Path | None) -> None:
    """Trust a CA, in all libraries and processes that speak TLS for us: OpenSSL reads it there."""
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
        help="PEM file of the CA that signed the fleet's certificate, if it is not a public one.",
        show_default=False,
    ),
]
Fleet = Annotated[
    Path | None,
    typer.Option(
        "--fleet",
        metavar="FILE",
        envvar="WSFLEET_FLEET",
        help="Where the cluster is. Default: /etc/wsfleet/fleet.json if it exists, "
        "else inventory/local/.fleet.json below the current folder.",
        show_default=False,
    ),
]
Nodes = Annotated[
    list[str],
    typer.Argument(
        metavar="NODE...",
        help="As `wsfleet status` names them; a host's name, without a port, means all of its "
        "nodes.",
        show_default=False,
    ),
]
Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Return only when it is so, or not so in time.")
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
        help="Write a page (HTML) with the verdict, all figures and drawings as well.",
        show_default=False,
    ),
]


def _checked(url: str, page: Path | None) -> "Endpoint":
    """Return the endpoint for a URL, and make sure that the page can be written."""
    from wsfleet.cli.access.websocket_client import parse_url
    from wsfleet.cli.measure.page import check

    check(page)
    return parse_url(url)


def _end(
    report: "Report", as_json: bool, page: Path | None = None, endpoint: "Endpoint | None" = None
) -> None:
    """Print the report, write its page if it is wanted, and exit with 0 if all was well, else 1."""
    from wsfleet.cli.measure.report import emit

    emit(report, as_json=as_json)
    if page is not None and endpoint is not None:
        from wsfleet.cli.measure.page import write

        write(report, page, "wsfleet", endpoint)
    raise typer.Exit(EXIT_WELL if report.ok else EXIT_WRONG)


def _version(asked: bool) -> None:
    if asked:
        from wsfleet import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command()
def serve(
    check: Annotated[
        bool, typer.Option("--check", help="Only check the settings; start nothing.")
    ] = False,
) -> None:
    """Run one node in the foreground; WSFLEET_* environment variables configure it."""
    from wsfleet.server.server import run

    run(check=check)


@app.command("status")
def status_command(
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, help="Seconds between two looks.")
    ] = 2.0,
    fleet: Fleet = None,
    as_json: Json = False,
) -> None:
    """Show nodes, load balancers and Redis; 1 if any of them is not well (at the end)."""
    from wsfleet.cli.access.fleet_file import load_fleet
    from wsfleet.cli.commands import status

    if watch and as_json:
        raise CannotRun("--watch is for people: leave --json out, or ask again and again")
    where = load_fleet(fleet)
    _end(status.watch(where, interval) if watch else status.run(where), as_json)


@app.command("logs")
def logs_command(
    node: Annotated[
        list[str] | None,
        typer.Option(
            "--node",
            metavar="NAME",
            help="Only of this node, or of this host of the inventory; repeat it for several.",
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        str,
        typer.Option(
            help="10m, 2h, 1d, '2026-11-26 14:00', 14:00 or yesterday, in your time zone."
        ),
    ] = "10m",
    follow: Annotated[bool, typer.Option("--follow", help="Wait for more, until Ctrl-C.")] = False,
    ssh: Annotated[
        str | None,
        typer.Option(
            metavar="USER@HOST",
            help="Where the journals are collected, as ssh takes it. Default: the fleet file's.",
            show_default=False,
        ),
    ] = None,
    fleet: Fleet = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object an entry, one a line.")
    ] = False,
) -> None:
    """Show the journals of all machines in one: connections, what nodes and balancers say."""
    from wsfleet.cli.access.fleet_file import load_fleet
    from wsfleet.cli.commands import logs

    shell: list[str] = logs.ssh(ssh) if ssh else []
    hostnames: dict[str, str] = {}
    try:
        known = load_fleet(fleet)
        shell, hostnames = shell or known.logs, known.hosts
    except CannotRun:
        if fleet or not ssh:  # with --ssh it is needed for the hosts' names alone
            raise
    if not shell:
        raise CannotRun(
            "the fleet file names no machine that collects the logs: have a host in the group "
            "`monitoring`, run site.yml and read the logs on the machine where that runs, or say "
            "--ssh USER@HOST"
        )
    logs.run(logs.Plan(shell, node or [], since, follow, as_json, hostnames))


@app.command("drain")
def drain_command(
    nodes: Nodes,
    timeout: Timeout = 120.0,
    wait: Wait = True,
    force: Annotated[
        bool, typer.Option("--force", help="Even if no other node is ready to take the clients.")
    ] = False,
    fleet: Fleet = None,
    as_json: Json = False,
) -> None:
    """Send the clients of nodes to the other nodes, a few at a time; 1 if some are left.

    A drained node runs on without clients, also after a restart, until `wsfleet undrain`.
    """
    from wsfleet.cli.access.fleet_file import load_fleet
    from wsfleet.cli.commands import drain
    from wsfleet.cluster.node_state import DRAIN

    plan = drain.Plan(nodes, DRAIN, timeout if wait else None, force)
    _end(drain.run(load_fleet(fleet), plan, quiet=as_json), as_json)


@app.command("undrain")
def undrain_command(
    nodes: Nodes,
    timeout: Timeout = 30.0,
    wait: Wait = True,
    fleet: Fleet = None,
    as_json: Json = False,
) -> None:
    """Let drained or standby nodes take clients, and end a drain under way; 1 if one does not."""
    from wsfleet.cli.access.fleet_file import load_fleet
    from wsfleet.cli.commands import drain
    from wsfleet.cluster.node_state import SERVE

    plan = drain.Plan(nodes, SERVE, timeout if wait else None)
    _end(drain.run(load_fleet(fleet), plan, quiet=as_json), as_json)


@app.command("forget")
def forget_command(
    nodes: Nodes, timeout: Timeout = 30.0, fleet: Fleet = None, as_json: Json = False
) -> None:
    """Leave no trace in Redis of nodes that are stopped for good; 1 if something stays."""
    from wsfleet.cli.access.fleet_file import load_fleet
    from wsfleet.cli.commands import drain

    _end(drain.forget(load_fleet(fleet), nodes, timeout), as_json)


def _setting(text: str, name: str, **bounds: Any) -> Any:
    """An option of the autoscaler, which its service sets by the environment."""
    return typer.Option(
        f"--{name}",
        envvar=f"WSFLEET_AUTOSCALE_{name.replace('-', '_').upper()}",
        help=text,
        **bounds,
    )


@app.command("autoscale")
def autoscale_command(
    minimum: Annotated[int, _setting("Hosts that serve at least.", "min", min=1)] = 2,
    maximum: Annotated[int, _setting("Hosts that serve at most.", "max", min=1)] = 10,
    desired: Annotated[int, _setting("Hosts to begin with.", "desired", min=1)] = 2,
    step: Annotated[int, _setting("Hosts brought in at once.", "step", min=1)] = 1,
    connections_high: Annotated[
        float,
        _setting("Connections of a node above which a host comes in.", "connections-high", min=0),
    ] = 7000.0,
    connections_low: Annotated[
        float, _setting("Connections of a node up to which one may go.", "connections-low", min=0)
    ] = 3000.0,
    cpu_high: Annotated[
        float, _setting("Per cent of CPU above which a host comes in.", "cpu-high", min=0)
    ] = 70.0,
    cpu_low: Annotated[
        float, _setting("Per cent of CPU up to which one may go.", "cpu-low", min=0)
    ] = 30.0,
    margin: Annotated[
        float,
        _setting(
            "How far below the high thresholds those that stay must be, 0 to 1.",
            "margin",
            min=0,
            max=1,
        ),
    ] = 0.1,
    scale_out_cooldown: Annotated[
        float,
        _setting("Seconds after a decision until a host may come in.", "scale-out-cooldown", min=0),
    ] = 60.0,
    scale_in_cooldown: Annotated[
        float, _setting("Seconds after a decision until a host may go.", "scale-in-cooldown", min=0)
    ] = 300.0,
    interval: Annotated[float, _setting("Seconds between two looks.", "interval", min=0.1)] = 5.0,
    metrics_host: Annotated[str, _setting("Address for Prometheus.", "metrics-host")] = "127.0.0.1",
    metrics_port: Annotated[
        int | None,
        _setting(
            "Port for Prometheus; default: none.",
            "metrics-port",
            min=1,
            max=65535,
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done; another one may lead.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only check the settings; start nothing.")
    ] = False,
    log: Annotated[bool, typer.Option("--log", help="Only show the last decisions.")] = False,
    count: Annotated[int, typer.Option("--count", min=1, help="How many --log shows.")] = 20,
    fleet: Fleet = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object a decision, one a line.")
    ] = False,
) -> None:
    """Bring standby hosts in and drain hosts out, by connections and CPU, until SIGTERM.

    Any number may run: one decides. A host that an operator drained is left alone.
    """
    from wsfleet.cli.access.fleet_file import load_fleet
    from wsfleet.cli.commands import autoscale

    policy = autoscale.policy(
        min=minimum,
        max=maximum,
        desired=desired,
        step=step,
        connections_high=connections_high,
        connections_low=connections_low,
        cpu_high=cpu_high,
        cpu_low=cpu_low,
        margin=margin,
        scale_out_cooldown=scale_out_cooldown,
        scale_in_cooldown=scale_in_cooldown,
    )
    if check:
        return
    if log:
        _end(autoscale.log(load_fleet(fleet), count), as_json)
    plan = autoscale.Plan(policy, interval, once, dry_run, as_json, metrics_host, metrics_port)
    autoscale.run(lambda: load_fleet(fleet), plan)


@check.command("stickiness")
def stickiness_command(
    url: Url,
    clients: Annotated[int, typer.Option(min=1, max=1000, help="Clients at once.")] = 20,
    connections: Annotated[
        int, typer.Option(min=1, max=1000, help="Connections of each client, one after the other.")
    ] = 5,
    messages: Annotated[
        int, typer.Option(min=1, max=1000, help="Messages on each connection.")
    ] = 3,
    seconds: Annotated[
        float, typer.Option(min=0, help="Spread the whole check over this time; 0: no pauses.")
    ] = 10.0,
    jar: Annotated[
        bool | None,
        typer.Option(
            "--jar/--no-jar",
            help="Only clients that keep cookies, or only clients that do not. Default: both.",
            show_default=False,
        ),
    ] = None,
    page: Page = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Show that a client with a cookie comes back to its node; 1 if one moved or failed."""
    from wsfleet.cli.commands import check_stickiness

    endpoint = _checked(url, page)
    modes = (True, False) if jar is None else (jar,)
    plan = check_stickiness.Plan(clients, connections, messages, seconds, modes)
    _end(check_stickiness.run(endpoint, plan), as_json, page, endpoint)


@check.command("node")
def node_command(
    url: Url,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds until it must answer as it should.")
    ] = 10.0,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Show that one node is ready and answers on a WebSocket, or is drained; 1 if neither.

    URL is the node's own. No other client hears of it.
    """
    from wsfleet.cli.access.websocket_client import parse_url
    from wsfleet.cli.commands import check_node

    _end(check_node.run(parse_url(url), timeout), as_json)


@check.command("state")
def state_command(
    fleet: Fleet = None,
    redis: Annotated[
        list[str] | None,
        typer.Option(
            "--redis",
            metavar="URL",
            help="Read this Redis instead of the fleet file's; repeat it to compare several.",
            show_default=False,
        ),
    ] = None,
    settle: Annotated[
        float,
        typer.Option(min=0, max=60, help="Seconds until suspects are read a second time."),
    ] = 2.0,
    as_json: Json = False,
) -> None:
    """Show that no connection: or state: key of Redis is an orphan; 1 if there are any."""
    from wsfleet.cli.access.fleet_file import load_fleet
    from wsfleet.cli.commands import check_state

    urls = redis or [load_fleet(fleet).redis_url]
    _end(check_state.run(urls, settle), as_json)


@app.command("load")
def load_command(
    url: Url,
    clients: Annotated[int, typer.Option("--clients", min=2, help="Connections held open.")] = 100,
    rate: Annotated[
        float,
        typer.Option("--rate", min=0.01, help="Messages a second of ALL clients together."),
    ] = 20.0,
    duration: Annotated[
        float, typer.Option("--duration", min=0.1, help="Seconds of sending that are measured.")
    ] = 20.0,
    warmup: Annotated[
        float,
        typer.Option(
            "--warmup", min=0, help="Seconds of sending before that: checked, but not timed."
        ),
    ] = 0.0,
    size: Annotated[
        int, typer.Option("--size", min=0, max=1_000_000, help="Bytes of padding in a message.")
    ] = 0,
    connect_rate: Annotated[
        float, typer.Option("--connect-rate", min=1, help="New connections a second.")
    ] = 500.0,
    drain: Annotated[
        float,
        typer.Option("--drain", min=0, help="Seconds to wait at the end for what is on its way."),
    ] = 10.0,
    page: Page = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Load the fleet and account for every message; 1 if one was lost, doubled or failed.

    Each message is broadcast: every other client must receive each acknowledged message exactly
    once. Latency counts from the moment a message was due, so that a generator that falls behind
    shows in it.
    """
    from wsfleet.cli.commands import load

    endpoint = _checked(url, page)
    plan = load.Plan(clients, rate, duration, warmup, size, connect_rate, drain)
    _end(load.run(endpoint, plan), as_json, page, endpoint)


@app.command("verify-delivery")
def verify_command(
    url: Url,
    publishers: Annotated[int, typer.Option(min=1, max=1000, help="Who publish at once.")] = 4,
    subscribers: Annotated[int, typer.Option(min=1, max=5000, help="Who hear it all.")] = 20,
    messages: Annotated[int, typer.Option(min=1, help="Messages of each publisher.")] = 50,
    rate: Annotated[
        float, typer.Option(min=0.01, help="Messages a second of each publisher, at the most.")
    ] = 20.0,
    protocol: Annotated[
        Literal["centrifuge", "plain"],
        typer.Option(help="An SDK on /connection/websocket, or /ws, which has no recovery."),
    ] = "centrifuge",
    channel: Annotated[str, typer.Option(help="A channel that everybody may use.")] = "broadcast",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for everything.")] = 300.0,
    events: Annotated[
        Path | None,
        typer.Option(
            "--events",
            metavar="FILE",
            help="Write down all that happens, one JSON object a line; `at` is seconds since the "
            "first, which has the time.",
            show_default=False,
        ),
    ] = None,
    page: Page = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Account for every publication while the fleet is under fault; 1 if the contract was broken.

    Publishers repeat each message until it is acknowledged; subscribers reconnect and recover.
    Nothing acknowledged may be lost, doubled, out of order, or wrongly called recovered. Ctrl-C
    ends the publishing; what was published by then is accounted for.
    """
    from wsfleet.cli.commands import verify_delivery

    endpoint = _checked(url, page)
    plan = verify_delivery.Plan(
        publishers, subscribers, messages, rate, protocol, channel, timeout, events
    )
    _end(verify_delivery.run(endpoint, plan), as_json, page, endpoint)


@app.command("monitor")
def monitor_command(
    url: Url,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, help="Seconds between two rounds.")
    ] = 5.0,
    count: Annotated[
        int | None,
        typer.Option("--count", min=1, help="Rounds; default: until Ctrl-C.", show_default=False),
    ] = None,
    limit: Annotated[
        float,
        typer.Option(
            "--limit", min=0, max=100, help="Per cent of CPU or memory above which a check fails."
        ),
    ] = 90.0,
    fleet: Fleet = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Watch the health of the fleet and of every node behind URL; 1 if any check failed."""
    from wsfleet.cli.access.fleet_file import find_fleet
    from wsfleet.cli.access.websocket_client import parse_url
    from wsfleet.cli.commands import monitor

    endpoint = parse_url(url)
    plan = monitor.Plan(interval, count, limit, live=not as_json)
    _end(monitor.run(endpoint, plan, find_fleet(fleet, endpoint.http)), as_json)

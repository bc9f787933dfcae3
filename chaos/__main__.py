"""The command line: `scripts/chaos --help`."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from wsfleet.cli.access.endpoint import parse_url
from wsfleet.cli.access.http import describe
from wsfleet.cli.errors import EXIT_CANNOT_RUN, EXIT_OK, CannotRun
from wsfleet.cli.measure.page import check, write
from wsfleet.cli.measure.report import emit

from chaos import disconnects
from chaos.clients import Clients
from chaos.cluster import ROOT, Cluster, CommandError
from chaos.faults import FAULTS
from chaos.report import report_of
from chaos.run import progress, run
from chaos.schedule import schedule


def arguments() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        prog="scripts/chaos",
        description="Inject faults into a cluster of local VMs, in an order set by a seed, while "
        "clients account for every message. Exit codes: 0 no message was lost and the cluster is "
        "healthy, 1 otherwise, 2 it could not run. Ctrl-C ends it after the current fault.",
    )
    parser.add_argument("--seed", type=int, default=1, help="sets the faults, targets and times")
    parser.add_argument("--faults", type=int, default=10, metavar="K", help="number of faults")
    parser.add_argument(
        "--clients", type=int, default=20, metavar="C", help="number of subscribers of a channel"
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=5.0,
        metavar="N",
        help="messages a second of each of the four publishers",
    )
    parser.add_argument(
        "--even",
        type=float,
        metavar="SECONDS",
        help="after each fault wait until the cluster has spread the clients by itself, 10 %% from "
        "the mean at most; it is a failure if this takes longer",
    )
    parser.add_argument("--inventory", default="local", help="a folder below inventory/, or a path")
    parser.add_argument(
        "--channel",
        default="replicated:chaos",
        help="a channel with durability: replicated that is open to everybody",
    )
    parser.add_argument(
        "--application",
        action="store_true",
        help="first deploy chaos/application, whose handlers sleep, block and raise at a rate; "
        f"clients also use {disconnects.CHANNEL}, its channel. It stays deployed until "
        "playbooks/rolling_update.yml",
    )
    parser.add_argument(
        "--only", default="", metavar="NAME,NAME...", help="only these kinds of faults"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="also write a report page (HTML)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--plan", action="store_true", help="print the schedule and exit")
    parser.add_argument("--heal", action="store_true", help="undo the faults of a killed run")
    return parser.parse_args()


def clients_of(options: argparse.Namespace, cluster: Cluster) -> list[Clients]:
    """Return the clients of each channel."""
    channels = {options.channel: False}  # by whether a handler publishes each message once
    if options.application:
        channels[disconnects.CHANNEL] = True
    folder = ROOT / ".cache" / "chaos"
    return [
        Clients(
            *(cluster.url, options.clients, channel, options.rate),
            folder / f"{cluster.name}-{options.seed}-{channel.replace(':', '-')}.jsonl",
            keyed=keyed,
        )
        for channel, keyed in channels.items()
    ]


def main() -> int:
    """Run the command line, and return the exit code."""
    options = arguments()
    names = [name for name in options.only.split(",") if name]
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise CommandError(f"unknown: {', '.join(unknown)}; choose from {', '.join(FAULTS)}")
    path = Path(options.inventory)
    inventory = path.resolve() if len(path.parts) > 1 else ROOT / "inventory" / path
    cluster = Cluster(inventory, disconnects.VARIABLES if options.application else ())
    if options.heal:
        cluster.heal()
        return EXIT_OK
    steps = schedule(options.seed, options.faults, cluster.groups, names)
    if options.plan:
        for step in steps:
            print(f"{step.name:25} {step.target:10} held {step.hold:4} s")
        return EXIT_OK
    check(options.report)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    outcome = run(
        *(cluster, steps, clients_of(options, cluster), options.seed, stop),
        even=options.even,
        application=options.application,
    )
    report = report_of(outcome)
    if options.report:
        write(report, options.report, "scripts/chaos", describe(parse_url(cluster.url)))
    return emit(report, as_json=options.json)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (CommandError, CannotRun) as error:
        progress(f"scripts/chaos: {error}")
        sys.exit(EXIT_CANNOT_RUN)

"""The command line: which peers and modes, how often and how long, and where results go."""

from __future__ import annotations

import argparse
import functools
import json
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import balancer, costs, deploy, machine, profile, report
from bench.catalog import HERE, PEERS, Peer
from bench.modes import FLYING, MODES, cpu_microseconds
from bench.rig import BenchError, Rig, Shape

RESULTS = HERE / "results"
PAGE = HERE.parent / "docs/performance.md"
CAPACITY = HERE.parent / "docs/capacity.md"
FILES = 20_000
#: What --quick compares: the node, and the machine's limit, which needs nothing installed.
QUICK = {"only": ["wsfleet", "limit", "limit-joined"], "modes": ["one", "sixteen"]}
#: Of the curve: nodes, clients of one channel, and channels.
NODES = (1, 2, 4)
CONNECTIONS = (100, 300, 1_000, 3_000, 10_000)
CHANNELS = (1, 10, 100, 1_000)

Measurement = dict[str, Any]


def say(text: str) -> None:
    """Tell on stderr how far the run is."""
    print(text, file=sys.stderr, flush=True)


def attempt(what: Measurement, take: Callable[[], Measurement]) -> Measurement:
    """Take a measurement; what fails does not end the run."""
    try:
        result = take()
    except (BenchError, RuntimeError, OSError) as error:
        say(f"{_name(what)}: {error}")
        return what | {"error": str(error).splitlines()[0][:200]}
    say(f"{_name(what)}: {report.number(result['value'])}")
    return what | result


def _name(what: Measurement) -> str:
    return ", ".join(str(value) for value in what.values())


def peers_round(turn: int, arguments: argparse.Namespace) -> Iterator[Measurement]:
    """Each peer once, in all modes that make sense for it; another one is first in each round."""
    names = arguments.only
    first = turn * 4 % len(names)
    for name in names[first:] + names[:first]:
        yield from _modes_of(PEERS[name], turn, arguments)


def _modes_of(peer: Peer, turn: int, arguments: argparse.Namespace) -> Iterator[Measurement]:
    with ExitStack() as stack:
        start = functools.cache(lambda: Rig(peer, stack))
        for name, mode in MODES.items():
            if name not in arguments.modes or not mode.suits(peer):
                continue
            for size in mode.sizes:
                what = {"round": turn, "peer": peer.name, "mode": name, "size": size}
                take = functools.partial(mode.measure, size=size, seconds=arguments.seconds)
                yield attempt(what, lambda take=take: take(start()))  # type: ignore[misc]


def curve_round(turn: int, arguments: argparse.Namespace) -> Iterator[Measurement]:
    """What a delivery costs with more connections, nodes and channels."""
    product = PEERS["wsfleet-centrifuge"]
    points = [
        ("connections", "1 node" if nodes == 1 else f"{nodes} nodes", nodes, connections, 1)
        for nodes in NODES
        for connections in CONNECTIONS
    ]
    for channels in CHANNELS:
        points.append(("channels", "1,000 clients in all", 1, 1_000, channels))
        points.append(("channels", "10 clients a channel", 1, 10 * channels, channels))
    for axis, line, nodes, connections, channels in points:
        what = {
            "round": turn,
            "axis": axis,
            "line": line,
            "connections": connections,
            "channels": channels,
        }
        shape = Shape.of(product, connections, FLYING, channels)
        yield attempt(what, functools.partial(_cost, product, nodes, shape, arguments.seconds))


def _cost(peer: Peer, nodes: int, shape: Shape, seconds: float) -> Measurement:
    """CPU microseconds of a delivery, with 16 messages in flight."""
    with ExitStack() as stack:
        rig = Rig(peer, stack, nodes)
        with rig.clients(shape) as clients:
            return cpu_microseconds(clients.measure("window", FLYING, seconds, rig.pids))


def balancer_round(turn: int, arguments: argparse.Namespace) -> Iterator[Measurement]:
    """What HAProxy's settings are worth."""
    for column in balancer.COLUMNS:
        for variant in balancer.VARIANTS:
            what = {"round": turn, "variant": str(variant), "column": column}
            take = functools.partial(balancer.measure, variant, column, arguments.seconds)
            yield attempt(what, take)


def profile_round(turn: int, arguments: argparse.Namespace) -> Iterator[Measurement]:
    """Where the node's time goes in each mode that is profiled."""
    for mode in profile.PROFILED:
        what = {"round": turn, "peer": profile.PEER.name, "mode": mode}
        yield attempt(what, functools.partial(profile.take, mode, arguments.seconds))


def deploy_round(turn: int, arguments: argparse.Namespace) -> Iterator[Measurement]:
    """The steps of deploying."""
    return _of_a_cluster("step", "s", turn, deploy.steps())


def costs_round(turn: int, arguments: argparse.Namespace) -> Iterator[Measurement]:
    """What each part of a cluster takes for one thing it does."""
    return _of_a_cluster("cost", "µs", turn, costs.rounds())


def _of_a_cluster(
    what: str, unit: str, turn: int, results: Iterator[Measurement]
) -> Iterator[Measurement]:
    """What is taken of one cluster; what fails ends it, since each needs the one before."""
    try:
        for result in results:
            say(f"{result[what]}: {report.number(result['value'])} {unit}")
            yield {"round": turn} | result
    except BenchError as error:
        say(str(error))
        yield {"round": turn, "error": str(error)[:200]}


def run(
    rounds: Callable[[int, argparse.Namespace], Iterator[Measurement]],
    arguments: argparse.Namespace,
    file: Path,
) -> dict[str, Any]:
    """Take all rounds; the file has what there is, also if the run is ended."""
    document: dict[str, Any] = {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.description(),
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "measurements": [],
    }
    RESULTS.mkdir(exist_ok=True)
    for turn in range(arguments.rounds):
        document["measurements"] += rounds(turn, arguments)
        file.write_text(json.dumps(document, indent=1) + "\n")
    return document


def again(full: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """A full run with some modes of a later one, of all peers, in the place of its own."""
    modes = {found["mode"] for found in later["measurements"]}
    kept = [found for found in full["measurements"] if found["mode"] not in modes]
    taken = {"began": later["began"], "rounds": later["rounds"], "seconds": later["seconds"]}
    return full | {
        "measurements": kept + later["measurements"],
        "again": full.get("again", {}) | dict.fromkeys(sorted(modes), taken),
    }


def main() -> None:
    """Do what the command line asks for."""
    arguments = _arguments()
    soft = min(FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # end what was started
    full = RESULTS / "full.json"
    others = {
        "curve": (curve_round, report.write_curve, PAGE),
        "balancer": (balancer_round, report.write_balancer, PAGE),
        "profile": (profile_round, report.write_profile, PAGE),
        "deploy": (deploy_round, report.write_deploy, PAGE),
        "costs": (costs_round, report.write_costs, CAPACITY),
    }
    if arguments.what in others:
        run(others[arguments.what][0], arguments, RESULTS / f"{arguments.what}.json")
    elif arguments.what == "run":
        everybody = set(arguments.only) == set(PEERS)
        complete = everybody and set(arguments.modes) == set(MODES)
        document = run(peers_round, arguments, full if complete else RESULTS / "partial.json")
        if not complete:
            show(document["measurements"], arguments.only)
            if not everybody or not full.exists():
                return
            document = again(json.loads(full.read_text()), document)
            full.write_text(json.dumps(document, indent=1) + "\n")
    if full.exists():
        report.write_full(json.loads(full.read_text()), PAGE)
    for name, (_, write, page) in others.items():
        if (file := RESULTS / f"{name}.json").exists():
            write(json.loads(file.read_text()), page)


def show(measurements: list[Measurement], names: list[str]) -> None:
    """Print the tables, and how the first peer compares to the others."""
    for columns in report.TABLES:
        if text := report.table(measurements, columns):
            print(text, end="\n\n")
    rows = []
    for other in names[1:]:
        for mode, size in dict.fromkeys((found["mode"], found["size"]) for found in measurements):
            if spread := report.ratios(measurements, names[0], other, mode, size):
                rows.append([f"{names[0]} / {other}", f"{mode}, {size:,}", str(spread)])
    if rows:
        print(report.markdown(["ratio", "mode", "median (least-greatest)"], rows))
    if failed := report.errors(measurements):
        print(f"\nNot measured:\n{failed}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=("run", "curve", "balancer", "profile", "deploy", "costs", "report"),
        default="run",
        help="run: the peers; curve: more nodes, connections and channels; balancer: "
        "HAProxy's settings; profile: where the node's time goes; deploy: scripts/up, site.yml "
        "again, a node more; costs: what scripts/capacity.py reckons with; report: only write "
        "docs/performance.md and docs/capacity.md, from bench/results",
    )
    parser.add_argument("--quick", action="store_true", help="the node and the limit, in a minute")
    parser.add_argument("--only", type=_names(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument(
        "--modes",
        type=_names(MODES),
        help=f"of {', '.join(MODES)}; of all peers, they "
        "take their places in the results of before",
    )
    parser.add_argument("--rounds", type=int, help="how often (5; profile, deploy and costs: 1)")
    parser.add_argument("--seconds", type=float, help="of each measurement (2; profile: 8)")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.only = arguments.only or (QUICK["only"] if quick else list(PEERS))
    arguments.modes = arguments.modes or (QUICK["modes"] if quick else list(MODES))
    rounds = dict.fromkeys(("profile", "deploy", "costs"), 1).get(arguments.what, 3 if quick else 5)
    arguments.rounds = arguments.rounds or rounds
    seconds = {"profile": 8}.get(arguments.what, 1 if quick else 2)
    arguments.seconds = arguments.seconds or seconds
    return arguments


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        found = text.split(",")
        if unknown := set(found) - set(known):
            raise argparse.ArgumentTypeError(f"there is no {', '.join(sorted(unknown))}")
        return found

    return names


if __name__ == "__main__":
    main()

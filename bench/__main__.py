"""The command line of scripts/bench: runs the measurements and writes results and pages."""

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
from bench.modes import IN_FLIGHT, MODES, cpu_microseconds
from bench.rig import BenchError, Rig, Shape
from bench.spread import number

RESULTS = HERE / "results"
PAGE = HERE.parent / "docs/performance.md"
CAPACITY = HERE.parent / "docs/capacity.md"
FILES = 20_000
#: --quick compares the node with the machine's limit, which needs no installation.
QUICK = {"only": ["wsfleet", "limit", "limit-joined"], "modes": ["one", "sixteen"]}
#: The points of the curve: nodes, clients of one channel, and channels.
NODES = (1, 2, 4)
CONNECTIONS = (100, 300, 1_000, 3_000, 10_000)
CHANNELS = (1, 10, 100, 1_000)

Measurement = dict[str, Any]


def progress(text: str) -> None:
    """Print the progress of the run to stderr."""
    print(text, file=sys.stderr, flush=True)


def attempt(what: Measurement, take: Callable[[], Measurement]) -> Measurement:
    """Take a measurement; a failure becomes an `error` and does not end the run."""
    try:
        result = take()
    except (BenchError, RuntimeError, OSError) as error:
        progress(f"{_name(what)}: {error}")
        return what | {"error": str(error).splitlines()[0][:200]}
    progress(f"{_name(what)}: {number(result['value'])}")
    return what | result


def _name(what: Measurement) -> str:
    return ", ".join(str(value) for value in what.values())


def peers_round(turn: int, arguments: argparse.Namespace) -> Iterator[Measurement]:
    """Measure each peer in all modes that suit it; each round begins with another peer."""
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
            if peer.only and name not in peer.only:
                continue
            for size in mode.sizes:
                what = {"round": turn, "peer": peer.name, "mode": name, "size": size}
                take = functools.partial(mode.measure, size=size, seconds=arguments.seconds)
                yield attempt(what, lambda take=take: take(start()))  # type: ignore[misc]


def curve_round(turn: int, arguments: argparse.Namespace) -> Iterator[Measurement]:
    """Measure the cost of a delivery with more connections, nodes and channels."""
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
        shape = Shape.of(product, connections, IN_FLIGHT, channels)
        yield attempt(what, functools.partial(_cost, product, nodes, shape, arguments.seconds))


def _cost(peer: Peer, nodes: int, shape: Shape, seconds: float) -> Measurement:
    """Measure the CPU microseconds of a delivery, with 16 messages in flight."""
    with ExitStack() as stack:
        rig = Rig(peer, stack, nodes)
        with rig.clients(shape) as clients:
            return cpu_microseconds(clients.measure("window", IN_FLIGHT, seconds, rig.pids))


def balancer_round(turn: int, arguments: argparse.Namespace) -> Iterator[Measurement]:
    """Measure HAProxy with each of its settings."""
    for column in balancer.COLUMNS:
        for variant in balancer.VARIANTS:
            what = {"round": turn, "variant": str(variant), "column": column}
            take = functools.partial(balancer.measure, variant, column, arguments.seconds)
            yield attempt(what, take)


def profile_round(turn: int, arguments: argparse.Namespace) -> Iterator[Measurement]:
    """Profile the node in each of the profiled modes."""
    for mode in profile.PROFILED:
        what = {"round": turn, "peer": profile.PEER.name, "mode": mode}
        yield attempt(what, functools.partial(profile.take, mode, arguments.seconds))


def deploy_round(turn: int, arguments: argparse.Namespace) -> Iterator[Measurement]:
    """Measure the steps of a deployment."""
    return _measured_on_a_cluster("step", "s", turn, deploy.steps())


def costs_round(turn: int, arguments: argparse.Namespace) -> Iterator[Measurement]:
    """Measure the unit costs of each part of a cluster."""
    return _measured_on_a_cluster("cost", "µs", turn, costs.rounds())


def _measured_on_a_cluster(
    what: str, unit: str, turn: int, results: Iterator[Measurement]
) -> Iterator[Measurement]:
    """Yield results of one cluster; a failure ends them, since each needs the one before."""
    try:
        for result in results:
            progress(f"{result[what]}: {number(result['value'])} {unit}")
            yield {"round": turn} | result
    except BenchError as error:
        progress(str(error))
        yield {"round": turn, "error": str(error)[:200]}


def run(
    rounds: Callable[[int, argparse.Namespace], Iterator[Measurement]],
    arguments: argparse.Namespace,
    file: Path,
) -> dict[str, Any]:
    """Take all rounds, and write the file after each: an interrupted run keeps its results."""
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


def merge(full: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Return a full run in which the modes of a later run, of all peers, replace its own."""
    modes = {found["mode"] for found in later["measurements"]}
    kept = [found for found in full["measurements"] if found["mode"] not in modes]
    taken = {"began": later["began"], "rounds": later["rounds"], "seconds": later["seconds"]}
    return full | {
        "measurements": kept + later["measurements"],
        "again": full.get("again", {}) | dict.fromkeys(sorted(modes), taken),
    }


def main() -> None:
    """Run the command that the command line names."""
    arguments = _arguments()
    soft = min(FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # run the cleanup of all contexts
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
        all_peers = set(arguments.only) == set(PEERS)
        complete = all_peers and set(arguments.modes) == set(MODES)
        document = run(peers_round, arguments, full if complete else RESULTS / "partial.json")
        if not complete:
            show(document["measurements"], arguments.only)
            if not all_peers or not full.exists():
                return
            document = merge(json.loads(full.read_text()), document)
            full.write_text(json.dumps(document, indent=1) + "\n")
    if full.exists():
        report.write_full(json.loads(full.read_text()), PAGE)
    for name, (_, write, page) in others.items():
        if (file := RESULTS / f"{name}.json").exists():
            write(json.loads(file.read_text()), page)


def show(measurements: list[Measurement], names: list[str]) -> None:
    """Print the tables, and the ratios of the first peer to the others."""
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
        help="run: all peers; curve: more nodes, connections and channels; balancer: "
        "HAProxy's settings; profile: shares of the node's time; deploy: scripts/up, site.yml "
        "again, one more node; costs: the costs for scripts/capacity.py; report: only write "
        "docs/performance.md and docs/capacity.md, from bench/results",
    )
    parser.add_argument("--quick", action="store_true", help="the node and the limit, in a minute")
    parser.add_argument(
        "--only", type=_names(PEERS), help=f"measure only these: {', '.join(PEERS)}"
    )
    parser.add_argument(
        "--modes",
        type=_names(MODES),
        help=f"measure only these: {', '.join(MODES)}; "
        "with all peers, they replace those of the last full run",
    )
    parser.add_argument(
        "--rounds", type=int, help="number of rounds (5; profile, deploy and costs: 1)"
    )
    parser.add_argument("--seconds", type=float, help="seconds of each measurement (2; profile: 8)")
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
            raise argparse.ArgumentTypeError(
                f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(known)}"
            )
        return found

    return names


if __name__ == "__main__":
    main()

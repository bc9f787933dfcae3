"""``wsfleet undrain``: let nodes take clients."""

from wsfleet.cli.access.fleet_file import load_fleet
from wsfleet.cli.commands.drain import DesiredStatePlan, run
from wsfleet.cli.measure.report import emit
from wsfleet.cli.options import FleetFile, Json, Nodes, Timeout, Wait
from wsfleet.cluster.node_state import SERVE


def command(
    nodes: Nodes,
    timeout: Timeout = 30.0,
    wait: Wait = True,
    fleet: FleetFile = None,
    as_json: Json = False,
) -> int:
    """Let drained or standby nodes take clients.

    It also ends a drain in progress. Exit code 1 if a node does not become ready.
    """
    plan = DesiredStatePlan(nodes, SERVE, timeout if wait else None)
    return emit(run(load_fleet(fleet), plan, quiet=as_json), as_json=as_json)

"""The account of disconnects: from client ids and records, in any order and number."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from chaos.disconnects import CHANNEL, RECORDS, SOURCE, account, read_connections

CLIENTS = st.sampled_from("abcdefgh")
RECORD = st.fixed_dictionaries({"client": CLIENTS, "code": st.sampled_from([0, 1000, 3001])})


@given(st.frozensets(CLIENTS), st.lists(RECORD))
def test_every_connection_is_accounted_for(
    connected: frozenset[str], records: list[dict[str, Any]]
) -> None:
    """It is untold exactly if no record has it; each is counted once; the order is irrelevant."""
    found = account(connected, records)
    recorded = [each["client"] for each in records]
    assert set(found.untold) == {client for client in connected if client not in recorded}
    assert len(found.untold) == len(set(found.untold))
    assert found.connections == len(connected)
    assert found.repeated == sum(recorded.count(client) > 1 for client in connected)
    of_dead_nodes = {each["client"] for each in records if not each["code"]} & connected
    assert found.of_dead_nodes == len(of_dead_nodes)
    assert account(connected, reversed(records)) == found


@given(st.frozensets(CLIENTS), st.lists(RECORD), RECORD)
def test_another_record_never_hides_a_connection(
    connected: frozenset[str], records: list[dict[str, Any]], another: dict[str, Any]
) -> None:
    """It tells its own client's end, and no other."""
    before, after = account(connected, records), account(connected, [*records, another])
    assert set(after.untold) == set(before.untold) - {another["client"]}


def test_connections_are_those_of_all_clients() -> None:
    """Publishers and subscribers alike have a line for each connection."""
    events = [{"event": "connected", "client": client} for client in "aba"]
    assert read_connections([*events, {"event": "sent", "publisher": 0}]) == {"a", "b"}


def test_the_variables_suit_the_account() -> None:
    """The application writes the file that is read, and its namespace is that of the channel."""
    deployed = yaml.safe_load((SOURCE / "deploy.yml").read_text())
    assert deployed["wsnode_app_environment"]["CHAOS_DISCONNECTS"] == RECORDS
    assert RECORDS.startswith(deployed["wsnode_app_writable_paths"][0])
    names = [each["name"] for each in deployed["wsnode_config"]["channel"]["namespaces"]]
    assert CHANNEL.partition(":")[0] in names

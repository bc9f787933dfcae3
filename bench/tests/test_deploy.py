"""The steps of a deployment, and Ansible's recap."""

from __future__ import annotations

import pytest
import yaml

from bench import deploy
from bench.rig import BenchError


def test_changes_of_all_hosts_count() -> None:
    """Ansible's recap has a line for each host."""
    recap = "lb1 : ok=9 changed=2 unreachable=0\nnode1 : ok=7 changed=10 unreachable=0\n"
    assert deploy.changed(recap) == 12


def test_host_tasks_count_each_host_and_item() -> None:
    """A task that was skipped, and an included file, cost nothing."""
    output = """\
TASK [a] ***
ok: [lb1]
changed: [node1]
TASK [b] ***
included: /x.yml for lb1
skipping: [node1]
ok: [lb1] => (item=one)
ok: [lb1 -> localhost] => (item=two)
PLAY RECAP ***
lb1 : ok=3 changed=0
"""
    assert deploy.host_tasks(output) == 4


def test_the_inventory_has_a_node_in_reserve() -> None:
    """The commented node of the local inventory becomes a host, and the next one a comment."""
    texts = [(deploy.ROOT / deploy.INVENTORY).read_text()]
    for _ in range(2):
        texts.append(deploy.with_another_node(texts[-1]))
    hosts = [yaml.safe_load(text)["wsnodes"]["hosts"] for text in texts]
    assert set(hosts[1]) - set(hosts[0]) == {"node3"}
    assert set(hosts[2]) - set(hosts[1]) == {"node4"}
    addresses = [host["ansible_host"] for host in hosts[2].values()]
    assert len(set(addresses)) == len(addresses)
    with pytest.raises(BenchError, match="no node"):
        deploy.with_another_node("wsnodes:\n")

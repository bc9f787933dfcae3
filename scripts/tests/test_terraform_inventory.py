"""Inventories from Terraform's outputs: Ansible reads them, and `site.yml` accepts them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "terraform_inventory.py"
#: The output of Terraform 1.11 for the outputs in docs/aws.md.
SAMPLE = Path(__file__).with_name("terraform_output.json")


def convert(text: str) -> subprocess.CompletedProcess[str]:
    """Run the script."""
    return subprocess.run(
        [sys.executable, SCRIPT], input=text, capture_output=True, text=True, timeout=60
    )


def test_site_yml_accepts_the_inventory(tmp_path: Path) -> None:
    """All hosts are in their groups with their addresses, and the inventory check passes."""
    folder = tmp_path / "inventory"
    (folder / "group_vars" / "all").mkdir(parents=True)
    (folder / "group_vars" / "all" / "vault.yml").write_text(
        "redis_password: sixteen characters or more\n"
    )
    (folder / "hosts.yml").write_text(convert(SAMPLE.read_text()).stdout)
    play = tmp_path / "check.yml"
    play.write_text("""
- hosts: loadbalancers:wsnodes:redis
  gather_facts: false
  roles: [{role: wsfleet.wsfleet.fleet}]
  tasks:
    - import_role: {name: wsfleet.wsfleet.fleet, tasks_from: inventory}
    - debug: {msg: "{{ fleet_file | to_json }} {{ ansible_host }}"}
      run_once: true
""")
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", folder, play],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("http://10.0.0.23:9002", "ws.example.com", "10.0.0.33:26379", "203.0.113.11"):
        assert words in done.stdout


def test_a_host_may_be_in_several_groups() -> None:
    """A host in several groups is one host, with the variables from one of them."""
    text = convert(SAMPLE.read_text()).stdout
    assert "monitoring:\n  hosts:\n    lb1: {}\n" in text
    assert "vpc" not in text
    outputs = json.loads(SAMPLE.read_text())
    node1 = outputs["wsnodes"]["value"]["node1"]
    outputs["loadbalancers"]["value"]["node1"] = {}
    outputs["redis"]["value"]["node1"] = {"ansible_host": node1["ansible_host"]}
    assert convert(json.dumps(outputs)).returncode == 0


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("wsnodes", None, "the output wsnodes is missing"),
        ("wsnodes", {"value": ["203.0.113.21"]}, "wsnodes is not a map"),
        ("wsnodes", {"value": {}}, "wsnodes is not a map"),
        ("redis", {"value": {"redis1": "203.0.113.31"}}, "redis1 is not a map"),
        ("redis", {"sensitive": True}, "vault.yml"),
        ("redis", {"value": {"lb1": {"ansible_host": "203.0.113.99"}}}, "lb1 has other variables"),
        ("redis", {"value": {"redis1": {}}}, "redis1: no address"),
    ],
)
def test_other_outputs_are_refused(name: str, change: dict[str, Any] | None, words: str) -> None:
    """One line names the mistake, and no part of an inventory is written."""
    outputs = copy.deepcopy(json.loads(SAMPLE.read_text()))
    if change is None:
        del outputs[name]
    else:
        outputs[name] |= change
    done = convert(json.dumps(outputs))
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1

"""A team's own repository deploys a cluster with the collection, by its full names."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from lab.paths import ROOT

if TYPE_CHECKING:
    from molecule.conftest import Cluster

PROGRAMS = Path(sys.executable).parent
COLLECTION = Path("collections/ansible_collections/wsfleet/wsfleet")
#: A role of the team that has the name of one of the collection.
OWN_ROLE = [{"name": "Fail", "ansible.builtin.fail": {"msg": "this is the team's own role"}}]


def galaxy(folder: Path, *arguments: str | Path) -> None:
    """Run `ansible-galaxy collection` in a folder, without a server."""
    environment = {name: text for name, text in os.environ.items() if name != "ANSIBLE_CONFIG"}
    command = [PROGRAMS / "ansible-galaxy", "collection", *arguments]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=120)


def write_inventory(team: Cluster, source: Path, *without: str) -> None:
    """Write the team's inventory: the scenario's, without some hosts."""
    inventory = yaml.safe_load((source / "hosts.yml").read_text())
    for group in inventory.values():
        for name in without:
            group.get("hosts", {}).pop(name, None)
    (team.inventory / "hosts.yml").write_text(yaml.safe_dump(inventory))


def files(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files in a folder."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def team(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The cluster of a team's repository, which has installed the collection; node2 comes later."""
    work = tmp_path_factory.mktemp("work")
    sources, folder = work / "sources", work / "team"
    subprocess.run(
        ["git", "-C", ROOT, "checkout-index", "--all", f"--prefix={sources}/"], check=True
    )
    galaxy(sources, "build", "--output-path", work)
    (tarball,) = work.glob("*.tar.gz")
    variables = folder / "inventory" / "group_vars" / "all"
    variables.mkdir(parents=True)
    settings = re.search(r"```ini\n(.*?)```", (ROOT / "docs/collection.md").read_text(), re.DOTALL)
    assert settings
    (folder / "ansible.cfg").write_text(settings[1])
    role = folder / "roles" / "redis" / "tasks"
    role.mkdir(parents=True)
    (role / "main.yml").write_text(yaml.safe_dump(OWN_ROLE))
    galaxy(folder, "install", "--collections-path", "collections", tarball)
    # How to reach the VMs, but not where this checkout has its releases.
    reached = yaml.safe_load((cluster.inventory / "group_vars" / "all" / "vms.yml").read_text())
    del reached["wsnode_build_directory"]
    (variables / "vms.yml").write_text(yaml.safe_dump(reached))
    made = type(cluster)(folder / "inventory", folder)
    write_inventory(made, cluster.inventory, "node2")
    return made


@pytest.fixture(scope="module")
def deployed(team: Cluster) -> Cluster:
    """The cluster, after the first run of site.yml."""
    team.play("wsfleet.wsfleet.site")
    return team


def test_the_cluster_is_well_and_a_second_run_changes_nothing(deployed: Cluster) -> None:
    """As with a checkout."""
    deployed.well()
    deployed.output("check", "stickiness", deployed.url, "--seconds", "2")
    assert deployed.changed(deployed.play("wsfleet.wsfleet.site")) == []


def test_releases_and_the_fleet_file_are_beside_the_inventory(deployed: Cluster) -> None:
    """The team's folder has all that was made."""
    assert list((deployed.inventory / ".cache" / "releases").glob("*.tar"))
    assert deployed.fleet["base_url"]


def test_a_node_is_added_and_removed(cluster: Cluster, deployed: Cluster) -> None:
    """By the playbooks' full names; node2 has another Debian, so a release is built for it."""
    write_inventory(deployed, cluster.inventory)
    deployed.play("wsfleet.wsfleet.scale_out", "-e", "node=node2")
    deployed.well()
    assert set(deployed.fleet["nodes"]) == {"node1-8001", "node2-8001"}
    assert deployed.changed(deployed.play("wsfleet.wsfleet.site")) == []
    deployed.play("wsfleet.wsfleet.scale_in", "-e", "node=node2")
    write_inventory(deployed, cluster.inventory, "node2")
    deployed.well()


def test_an_update_restarts_the_nodes_and_the_rest_is_untouched(deployed: Cluster) -> None:
    """rolling_update and monitoring, which site.yml includes, are also called alone."""
    output = deployed.play("wsfleet.wsfleet.rolling_update", "-e", "wsnode_log_level=warning")
    assert len(deployed.changed(output)) >= 1
    deployed.well()
    assert deployed.changed(deployed.play("wsfleet.wsfleet.monitoring")) == []


def test_a_backup_is_beside_the_inventory(deployed: Cluster) -> None:
    """A relative path begins there, and restore reads it."""
    deployed.play("wsfleet.wsfleet.backup")
    (backup,) = (deployed.inventory / "backups").glob("redis-*.rdb")
    answers = json.dumps({"redis_backup": str(backup), "confirm": "yes"})
    deployed.play("wsfleet.wsfleet.restore", "-e", answers)
    deployed.well()


def test_a_rollback_without_a_previous_release_is_refused(deployed: Cluster) -> None:
    """The error is the role's own."""
    result = deployed.playbook("wsfleet.wsfleet.rollback")
    assert result.returncode != 0
    assert "has no release to go back to" in result.stdout


def test_nothing_is_written_into_the_collection(deployed: Cluster) -> None:
    """It may be another user's, or part of an image."""
    installed = files(deployed.folder / COLLECTION)
    listed = json.loads(installed["FILES.json"])["files"]
    made = {each["name"] for each in listed if each["ftype"] == "file"}
    assert set(installed) == made | {"FILES.json", "MANIFEST.json"}
    galaxy(deployed.folder, "verify", "--offline", "-p", "collections", "wsfleet.wsfleet")

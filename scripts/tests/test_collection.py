"""The collection: what is in it, and that it works in a folder that has nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import wsfleet
import yaml
from packaging.specifiers import SpecifierSet

from lab.paths import ROOT

PROGRAMS = Path(sys.executable).parent
#: Files that a checkout may have beside its own, and that must not be published.
PRIVATE = (
    ".cache/vms/id_ed25519",
    ".env",
    ".venv/pyvenv.cfg",
    "app/dist/wsfleet.whl",
    "app/src/wsfleet/__pycache__/main.pyc",
    "backups/redis.rdb",
    "bench/node_modules/x.js",
    "collections/ansible_collections/other/other/README.md",
    "inventory/local/.fleet.json",
    "inventory/local/tls/ca.key",
    "inventory/mine/group_vars/all/vault.yml",
    "inventory/mine/.cache/releases/x.tar",
    "playbooks/site.retry",
    "ca.key",
    "ws.example.com.pem",
    "wsfleet-wsfleet-0.0.1.tar.gz",
)
SCRIPTS = "application capacity locks release sbom terraform_inventory"
PLAYBOOKS = sorted(path.stem for path in ROOT.glob("playbooks/*.yml"))
#: Hosts that do not exist: site.yml gets as far as to connect to them.
INVENTORY = {
    "all": {
        "vars": {
            "redis_allow_no_password": True,
            "ansible_ssh_common_args": "-o ConnectTimeout=1 -o BatchMode=yes",
        }
    },
    "loadbalancers": {"hosts": {"lb1": {"ansible_host": "192.0.2.1"}}},
    "wsnodes": {"hosts": {"node1": {"ansible_host": "192.0.2.2"}}},
    "redis": {"hosts": {"redis1": {"ansible_host": "192.0.2.3"}}},
}


def run(folder: Path, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of Ansible's programs in a folder, with the folder's ansible.cfg alone."""
    environment = {name: text for name, text in os.environ.items() if "ANSIBLE" not in name}
    return subprocess.run(
        [PROGRAMS / program, *arguments],
        cwd=folder,
        env=environment | {"ANSIBLE_NOCOLOR": "1", "COLUMNS": "500"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


def output(folder: Path, program: str, *arguments: str | Path) -> str:
    """Run a program that must succeed, and return its output."""
    done = run(folder, program, *arguments)
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout
    return done.stdout


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, with a fixed author."""
    author = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    command = ["git", *author, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the files of this checkout."""
    folder = tmp_path_factory.mktemp("clone")
    git(ROOT, "checkout-index", "--all", f"--prefix={folder}/")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "All")
    return folder


@pytest.fixture(scope="module")
def team(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A team's folder with the collection, from the repository; its own role `redis` fails."""
    folder = tmp_path_factory.mktemp("team")
    settings = re.search(r"```ini\n(.*?)```", (ROOT / "docs/collection.md").read_text(), re.DOTALL)
    assert settings
    (folder / "ansible.cfg").write_text(settings[1])
    (folder / "inventory").mkdir()
    (folder / "inventory" / "hosts.yml").write_text(yaml.safe_dump(INVENTORY))
    (folder / "roles" / "redis" / "tasks").mkdir(parents=True)
    own = [{"ansible.builtin.fail": {"msg": "the team's own role"}}]
    (folder / "roles" / "redis" / "tasks" / "main.yml").write_text(yaml.safe_dump(own))
    source = f"git+file://{clone}"
    output(folder, "ansible-galaxy", "collection", "install", "-p", "collections", source)
    return folder


@pytest.fixture(scope="module")
def installed(team: Path) -> Path:
    """The folder of the installed collection."""
    return team / "collections/ansible_collections/wsfleet/wsfleet"


def test_an_archive_has_what_a_deployment_needs_and_nothing_private(
    clone: Path, tmp_path: Path
) -> None:
    """Files that are not the repository's are left out, also of a checkout that is in use."""
    tracked = {*git(clone, "ls-files").splitlines()}
    for name in PRIVATE:
        path = clone / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a secret")
    try:
        output(clone, "ansible-galaxy", "collection", "build", "--output-path", tmp_path)
    finally:
        git(clone, "clean", "--quiet", "-ffdx")
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as opened:
        names = {member.name for member in opened if member.isfile()}
    assert names - tracked == {"FILES.json", "MANIFEST.json"}
    assert {name.partition("/")[0] for name in names if "/" in name} == {
        *("app", "docs", "meta", "playbooks", "plugins", "roles", "scripts")
    }
    assert {name for name in names if name.startswith("scripts/")} == {
        "scripts/lock",
        *(f"scripts/{name}.py" for name in SCRIPTS.split()),
    }
    assert [name for name in names if "/tests/" in name or "molecule" in name] == []
    kept = ("app/src/", "playbooks/requirements", "plugins/modules/", "plugins/plugin_utils/")
    assert {name for name in tracked if name.startswith(kept)} <= names
    assert {"app/pyproject.toml", "app/requirements.lock", "LICENSE"} <= names


def test_a_release_has_the_name_that_it_has_in_a_checkout(
    clone: Path, installed: Path, tmp_path: Path
) -> None:
    """The collection has all sources of a release, and they are the same."""
    ids = {
        subprocess.run(
            [sys.executable, "-B", folder / "scripts/release.py", "--id", "--directory", tmp_path],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for folder in (clone, installed)
    }
    assert len(ids) == 1


def test_the_playbooks_have_full_names(team: Path) -> None:
    """Ansible finds them, and all that they import, from a folder with an inventory."""
    names = [f"wsfleet.wsfleet.{name}" for name in PLAYBOOKS]
    listed = output(team, "ansible-playbook", "--list-tasks", *names)
    assert "wsfleet.wsfleet.fleet : Check the requirements of the role" in listed
    for name in PLAYBOOKS:
        assert f"wsfleet/wsfleet/playbooks/{name}.yml" in listed


def test_roles_and_modules_have_documentation(team: Path) -> None:
    """`ansible-doc` prints their variables and options."""
    roles = sorted(path.name for path in ROOT.glob("roles/*"))
    text = output(team, "ansible-doc", "--type=role", "--list", "--json", "wsfleet.wsfleet")
    assert sorted(json.loads(text)) == [f"wsfleet.wsfleet.{name}" for name in roles]
    text = output(team, "ansible-doc", "--type=module", "--list", "--json", "wsfleet.wsfleet")
    modules = (path.stem for path in ROOT.glob("plugins/modules/*.py"))
    assert sorted(json.loads(text)) == sorted(f"wsfleet.wsfleet.{name}" for name in modules)


def test_site_checks_the_inventory_and_connects(team: Path) -> None:
    """The collection's roles and filters run; the team's role `redis` does not take their place."""
    done = run(team, "ansible-playbook", "wsfleet.wsfleet.site")
    assert "[wsfleet.wsfleet.fleet : Check the inventory]" in done.stdout
    assert "UNREACHABLE" in done.stdout
    assert "the team's own role" not in done.stdout
    done = run(team, "ansible-playbook", "wsfleet.wsfleet.site", "-e", "haproxy_maxconn=0")
    assert "haproxy_maxconn of the host 'lb1' is 0, and must be" in done.stdout
    assert "UNREACHABLE" not in done.stdout


def test_certificates_are_made_beside_the_inventory(team: Path, installed: Path) -> None:
    """And nothing that a playbook or a release makes is written into the collection."""
    output(team, "ansible-playbook", "wsfleet.wsfleet.certificates")
    made = {path.name for path in (team / "inventory/tls").iterdir()}
    hosts = ("ca", "lb1", "node1", "redis1")
    assert made == {f"{name}.{end}" for name in hosts for end in ("pem", "key")}
    listed = json.loads((installed / "FILES.json").read_text())["files"]
    files = {str(p.relative_to(installed)) for p in installed.rglob("*") if p.is_file()}
    assert files == {each["name"] for each in listed if each["ftype"] == "file"} | {
        *("FILES.json", "MANIFEST.json")
    }
    verify = ("collection", "verify", "--offline", "-p", "collections", "wsfleet.wsfleet")
    output(team, "ansible-galaxy", *verify)


@pytest.mark.parametrize("package", ["cyclonedx", "hatchling.build"])
def test_a_missing_package_is_named_with_its_remedy(package: str, tmp_path: Path) -> None:
    """It ends the first task about the release, with the file that lists all packages."""
    script = ROOT / "scripts" / "release.py"
    code = (
        f"import runpy, sys; sys.modules[{package!r}] = None; sys.path[0] = {str(script.parent)!r};"
        f"sys.argv = ['release.py', '--id', '--directory', {str(tmp_path)!r}];"
        f"runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"has no package {package.partition('.')[0]}" in done.stderr
    assert f"-r {ROOT}/playbooks/requirements.txt" in done.stderr
    assert "Traceback" not in done.stderr


def pins(path: str) -> dict[str, str]:
    """Return the versions of a lock file, by package."""
    return dict(re.findall(r"^([\w.-]+)==([^ ;]+)", (ROOT / path).read_text(), re.MULTILINE))


def test_the_versions_are_those_of_the_checkout() -> None:
    """Of the collection, of its packages, and of Ansible, which is tested with no other one."""
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text())
    assert galaxy["version"] == wsfleet.__version__
    ours, theirs = pins("requirements.txt"), pins("playbooks/requirements.txt")
    assert theirs.items() <= ours.items()
    assert {"ansible", "hatchling", "cyclonedx-python-lib", "typer"} <= theirs.keys()
    major, minor, _ = ours["ansible-core"].split(".")
    supported = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["requires_ansible"]
    assert SpecifierSet(supported) == SpecifierSet(f">={major}.{minor}.0")
    for role in ROOT.glob("roles/*/meta/main.yml"):
        least = yaml.safe_load(role.read_text())["galaxy_info"]["min_ansible_version"]
        assert least == f"{major}.{minor}"
    assert f"pip install ansible=={ours['ansible']}" in (ROOT / "docs/collection.md").read_text()

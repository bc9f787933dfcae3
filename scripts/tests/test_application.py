"""A release with an application: its sources, and the sources that are refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "examples" / "tutorial"
sys.path.insert(0, str(ROOT / "scripts"))

import locks  # noqa: E402
from application import Application, SourceError  # noqa: E402

MARKERS = locks.environment("3.13.5", "x86_64")


def release(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run scripts/release.py."""
    command = [sys.executable, ROOT / "scripts" / "release.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def id_of(source: str | Path) -> str:
    """Return the name of the release with an application."""
    done = release("--id", "--app", source)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def git(folder: Path, *arguments: str) -> None:
    """Run git in a folder, with a fixed author."""
    author = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", *author, "-C", folder, *arguments], check=True, capture_output=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the tutorial that a test may change."""
    return Path(shutil.copytree(TUTORIAL, tmp_path / "tutorial"))


@pytest.mark.parametrize(
    ("python", "arch"), [("3.11.2", "aarch64"), ("3.13.5", "x86_64")], ids=["arm64", "x86-64"]
)
def test_a_release_has_both_and_one_lock(python: str, arch: str) -> None:
    """Each wheel is there once, is in the lock, and suits the node's Python and architecture."""
    done = release("--app", TUTORIAL, "--python", python, "--arch", arch)
    assert done.returncode == 0, done.stderr
    archive = Path(done.stdout.strip())
    assert archive.name.startswith(id_of(TUTORIAL))
    with tarfile.open(archive) as opened:
        names = opened.getnames()
        requirements = opened.extractfile("requirements.txt")
        bill = opened.extractfile("sbom.cdx.json")
        assert requirements is not None
        assert bill is not None
        lines = requirements.read().decode().splitlines()
        document = json.load(bill)
    wheels = [name for name in names if name.endswith(".whl")]
    assert {"tutorial-1.0.0-py3-none-any.whl"} < set(wheels)
    assert all("--hash=sha256:" in line for line in lines)
    assert len(wheels) == len(lines) == len({line.partition("==")[0] for line in lines})
    assert [w for w in wheels if "linux" in w] == [w for w in wheels if f"_{arch}" in w] != []
    assert document["metadata"]["component"]["name"] == "tutorial"
    assert {"tutorial", "wsfleet", "watchfiles"} <= {
        each["name"] for each in document["components"]
    }


def test_the_name_changes_with_the_source(copy: Path) -> None:
    """Source and lock change the name; hidden and generated files do not."""
    before = id_of(copy)
    assert before.startswith("tutorial-1.0.0-")
    assert before == id_of(TUTORIAL)
    for name in (".git/HEAD", ".venv/x", "venv/pyvenv.cfg", "__pycache__/main.pyc", "dist/x.whl"):
        file = copy / name
        file.parent.mkdir(parents=True)
        file.write_text("x")
    assert id_of(copy) == before
    (copy / "main.py").write_text((copy / "main.py").read_text() + "# changed\n")
    changed = id_of(copy)
    (copy / locks.NAME).write_text((copy / locks.NAME).read_text() + "# changed\n")
    assert len({before, changed, id_of(copy)}) == 3


def test_a_build_gets_the_files_of_the_name(copy: Path, tmp_path: Path) -> None:
    """The wheel has only these files, and the build writes nothing into the source."""
    (copy / ".secret.py").write_text("")
    project = (copy / "pyproject.toml").read_text()
    (copy / "pyproject.toml").write_text(project.replace('"main.py"', '"main.py", ".secret.py"'))
    before = sorted(copy.rglob("*"))
    target = tmp_path / "wheels"
    target.mkdir()
    wheel = Application(str(copy), tmp_path).put_wheel(target, "3.13.5", "x86_64")
    with zipfile.ZipFile(wheel) as archive:
        assert "main.py" in archive.namelist()
        assert ".secret.py" not in archive.namelist()
    assert sorted(copy.rglob("*")) == before
    assert list(target.iterdir()) == [wheel]


def test_a_wheel_is_a_source(copy: Path, tmp_path: Path) -> None:
    """A wheel with a lock beside it is copied unchanged."""
    built = Application(str(copy), tmp_path).put_wheel(tmp_path, "3.13.5", "x86_64")
    with pytest.raises(SourceError, match=r"has no requirements.lock: scripts/lock --app"):
        Application(str(built), tmp_path)
    shutil.copy(copy / locks.NAME, tmp_path)
    application = Application(str(built), tmp_path)
    assert (application.name, application.version) == ("tutorial", "1.0.0")
    target = tmp_path / "release"
    target.mkdir()
    assert application.put_wheel(target, "3.13.5", "x86_64").read_bytes() == built.read_bytes()


def test_a_wheel_for_other_machines_is_refused(copy: Path, tmp_path: Path) -> None:
    """The nodes' Python and architecture count, not those of the control machine."""
    shutil.copy(copy / locks.NAME, tmp_path)
    wheel = tmp_path / "chat-1.0-cp313-cp313-manylinux_2_28_aarch64.whl"
    wheel.write_bytes(b"")
    target = tmp_path / "release"
    target.mkdir()
    Application(str(wheel), tmp_path).put_wheel(target, "3.13.5", "aarch64")
    for python, arch in [("3.11.2", "aarch64"), ("3.13.5", "x86_64")]:
        with pytest.raises(SourceError, match=f"which have Python {python} .{arch}"):
            Application(str(wheel), tmp_path).put_wheel(target, python, arch)


def test_a_repository_is_a_source(copy: Path, tmp_path: Path) -> None:
    """A tag, the current commit of a branch, and a subdirectory work."""
    repository = tmp_path / "repository"
    shutil.copytree(copy, repository / "backend")
    git(tmp_path, "init", "--quiet", "--initial-branch=main", str(repository))
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message=one")
    git(repository, "tag", "v1")
    tag, branch = (f"git+file://{repository}@{ref}#subdirectory=backend" for ref in ("v1", "main"))
    assert id_of(tag) == id_of(branch) == id_of(TUTORIAL)
    (repository / "backend" / "main.py").write_text("app = None\n")
    git(repository, "commit", "--quiet", "--all", "--message=two")
    assert id_of(tag) == id_of(TUTORIAL) != id_of(branch)
    missing = release("--id", "--app", f"git+file://{repository}@v2")
    assert missing.returncode == 1
    assert "git fetch of v2 fails: fatal: couldn't find remote ref v2" in missing.stderr


@pytest.mark.parametrize("source", ["nowhere", "git+https://example.com/chat.git"])
def test_an_invalid_source_is_explained(source: str) -> None:
    """The error names the three kinds of sources, and the given one."""
    done = release("--id", "--app", source)
    assert done.returncode == 1
    assert "git+URL@REF; this is" in done.stderr
    assert source in done.stderr
    assert "Traceback" not in done.stderr


def test_conflicting_locks_end_the_build(copy: Path) -> None:
    """The error names the package and both versions, before any download."""
    lock = copy / locks.NAME
    lock.write_text(lock.read_text().replace("redis==8.1.0", "redis==5.0.1"))
    done = release("--app", copy, "--python", "3.13.5", "--arch", "x86_64")
    assert done.returncode == 1
    ours = locks.read(ROOT / "app" / locks.NAME, MARKERS)["redis"].version
    assert f"redis: 5.0.1 there, {ours} in app/requirements.lock" in done.stderr
    assert f"scripts/lock --app {copy}" in done.stderr


def test_a_changed_hash_of_a_build_requirement_ends_the_build(copy: Path) -> None:
    """The build runs only packages with the hashes of build-requirements.lock."""
    lock = copy / locks.BUILD_NAME
    lock.write_text(re.sub("sha256:[0-9a-f]{64}", f"sha256:{'0' * 64}", lock.read_text()))
    done = release("--app", copy, "--python", "3.13.5", "--arch", "x86_64")
    assert done.returncode == 1
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert f"{lock} cannot be installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_build_requirement_without_a_hash_ends_the_build(copy: Path) -> None:
    """A requirement that the lock lacks is named, and not installed."""
    project = copy / "pyproject.toml"
    project.write_text(project.read_text().replace('["hatchling"]', '["hatchling", "flit-core"]'))
    done = release("--app", copy, "--python", "3.13.5", "--arch", "x86_64")
    assert done.returncode == 1
    assert "missing: 'flit-core'" in done.stderr
    assert f"{copy} cannot be built" in done.stderr
    assert f"scripts/lock --app {copy}" in done.stderr


@pytest.mark.parametrize("line", ["redis", "redis>=5", "redis==8.1.0", "-e .", "redis==x"])
def test_an_unpinned_line_is_named(copy: Path, line: str) -> None:
    """A line of a lock without one version and hashes is an error."""
    lock = copy / locks.NAME
    lock.write_text(f"{line}\n")
    with pytest.raises(locks.LockError, match="is not NAME==VERSION with hashes"):
        locks.read(lock, MARKERS)


def wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    """Write a wheel with only metadata."""
    file = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        lines = [f"Requires-Dist: {each}" for each in requires]
        text = "\n".join(["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines])
        archive.writestr(f"{name}-{version}.dist-info/METADATA", text)
    return file


def test_a_package_that_the_lock_lacks_is_found(tmp_path: Path) -> None:
    """Markers and extras are evaluated for the node, as `pip check` would there."""
    wheels = [
        wheel(tmp_path, "chat", "1.0", "web[fast]>=2", 'old; python_version < "3.12"', "db"),
        wheel(tmp_path, "web", "1.5", 'speed; extra == "fast"', 'docs; extra == "docs"'),
        wheel(tmp_path, "db", "3.0"),
    ]
    assert locks.unmet(wheels, MARKERS) == ["chat 1.0 requires web[fast]>=2, which is 1.5"]
    wheels[1] = wheel(tmp_path, "web", "2.0", 'speed; extra == "fast"', 'docs; extra == "docs"')
    assert locks.unmet(wheels, MARKERS) == [
        'web 2.0 requires speed; extra == "fast", which is missing'
    ]
    wheels.append(wheel(tmp_path, "speed", "1.0"))
    assert locks.unmet(wheels, MARKERS) == []
    on_debian_12 = locks.environment("3.11.2", "x86_64")
    assert locks.unmet(wheels, on_debian_12) == [
        'chat 1.0 requires old; python_version < "3.12", which is missing'
    ]

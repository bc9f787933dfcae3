"""The source, lock files and wheel of an application that runs in the nodes.

A source is one of
    a folder with pyproject.toml, requirements.lock, and build-requirements.lock for its build
    a wheel, with requirements.lock in the same folder
    git+URL@REF, a repository whose root is such a folder
    git+URL@REF#subdirectory=FOLDER, a repository with such a folder
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import locks
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

GIT = re.compile(
    r"git\+(?P<url>[^#]+)@(?P<ref>[^@/#:]+(?:/[^@#:]+)*)(?:#subdirectory=(?P<folder>.+))?"
)
LEFT_OUT = {"__pycache__", "build", "dist", "node_modules"}
"""Generated folders and folders for development; hidden folders are left out as well."""

GLIBC = ["2_36", "2_35", "2_34", "2_31", "2_28", "2_26", "2_24", "2_17", "2_12", "2_5"]
"""manylinux tags that Debian 12 (glibc 2.36) and newer can run."""


class SourceError(Exception):
    """An invalid source of an application; the message names the change that corrects it."""


def platforms(arch: str) -> list[str]:
    """List the platform tags of wheels that a node of the architecture can run, best first."""
    return [
        *(f"manylinux_{glibc}_{arch}" for glibc in GLIBC),
        f"manylinux2014_{arch}",
        f"linux_{arch}",
    ]


class Application:
    """An application's source on this machine; `git+URL@REF` is fetched into `checkouts`.

    Raises:
        SourceError: the source or one of its files is missing.
    """

    def __init__(self, source: str, checkouts: Path) -> None:
        is_git = source.startswith("git+")
        self.path = _checkout(source, checkouts) if is_git else Path(source).resolve()
        self.is_wheel = self.path.suffix == ".whl"
        self.lock = (self.path.parent if self.is_wheel else self.path) / locks.NAME
        self.build_lock = self.path / locks.BUILD_NAME
        built = [self.path / "pyproject.toml", self.build_lock]
        for file in [*([self.path] if self.is_wheel else built), self.lock]:
            if not file.is_file():
                made = f": scripts/lock --app {self.lock.parent}" if file.suffix == ".lock" else ""
                raise SourceError(f"{source} has no {file.name}{made}. {_hint(source)}")
        self.name, self.version = self._named()

    def _named(self) -> tuple[str, str]:
        """Return the name and the version, which is "" if only a build can compute it."""
        if self.is_wheel:
            name, version, _, _ = parse_wheel_filename(self.path.name)
            return name, str(version)
        project = tomllib.loads((self.path / "pyproject.toml").read_text()).get("project", {})
        if "name" not in project:
            raise SourceError(f"{self.path}/pyproject.toml has no project.name: add it (PEP 621).")
        return canonicalize_name(project["name"]), project.get("version", "")

    def files(self) -> Iterator[Path]:
        """Yield the files of the application in order; a build gets only these."""
        if self.is_wheel:
            yield from (self.lock, self.path)
            return
        for folder, folders, names in os.walk(self.path):
            folders[:] = sorted(each for each in folders if _is_source(Path(folder, each)))
            yield from (Path(folder, each) for each in sorted(names) if not each.startswith("."))

    def hash_into(self, digest: hashlib._Hash) -> None:
        """Add names and contents of all files to a hash."""
        for file in self.files():
            digest.update(f"{file.relative_to(self.lock.parent)}\0".encode())
            digest.update(file.read_bytes() + b"\0")

    def put_wheel(self, folder: Path, python: str, arch: str) -> Path:
        """Copy the wheel into the folder, or build it there; return the file.

        Raises:
            SourceError: a node with that Python (3.X.Y) and architecture cannot run it.
        """
        if self.is_wheel:
            wheel = Path(shutil.copy(self.path, folder))
        else:
            with tempfile.TemporaryDirectory() as work:
                made = self._build(Path(work))
                wheel = Path(shutil.copy(made, folder))
        _, _, _, tags = parse_wheel_filename(wheel.name)
        if not tags & _tags(python, arch):
            raise SourceError(
                f"{wheel.name} does not run on the nodes, which have Python {python} ({arch}): "
                "give a wheel that was built for them."
            )
        return wheel

    def _build(self, work: Path) -> Path:
        """Build the wheel with the packages of `build_lock`, and no others; return the file.

        pip does not check hashes in the environment that it makes for a build, so this makes one.
        """
        source, environment, wheels = work / "source", work / "environment", work / "wheels"
        for file in self.files():
            copy = source / file.relative_to(self.path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        python = str(environment / "bin" / "python")
        pip = [sys.executable, "-m", "pip", "--quiet", "--python", python]
        install = ["install", "--require-hashes", "--only-binary=:all:", "--requirement"]
        if subprocess.run([*pip, *install, self.build_lock]).returncode:
            raise SourceError(
                f"{self.build_lock} cannot be installed: pip's output above says why. If a "
                f"package has changed on purpose, compile it again: scripts/lock --app {self.path}"
            )
        build = ["wheel", "--no-deps", "--no-build-isolation", "--check-build-dependencies"]
        if subprocess.run([*pip, *build, "--use-pep517", "--wheel-dir", wheels, source]).returncode:
            raise SourceError(
                f"{self.path} cannot be built: the output above says why. If a build requirement "
                f"is missing, compile {locks.BUILD_NAME} again: scripts/lock --app {self.path}"
            )
        (made,) = wheels.iterdir()
        return made


def _hint(source: str) -> str:
    return (
        f"A source is a folder with pyproject.toml, {locks.NAME} and {locks.BUILD_NAME}, a wheel "
        f"with {locks.NAME} beside it, or git+URL@REF; this is {source!r}."
    )


def _is_source(folder: Path) -> bool:
    name = folder.name
    is_venv = (folder / "pyvenv.cfg").exists()
    return not (name.startswith(".") or name in LEFT_OUT or name.endswith(".egg-info") or is_venv)


def _tags(python: str, arch: str) -> set[Tag]:
    version = tuple(int(part) for part in python.split(".")[:2])
    runs = platforms(arch)
    return {
        *cpython_tags(version, platforms=runs),
        *compatible_tags(version, f"cp{version[0]}{version[1]}", runs),
    }


def _checkout(source: str, checkouts: Path) -> Path:
    """Fetch the current commit of a branch, a tag or a hash; return its folder."""
    matched = GIT.fullmatch(source)
    if matched is None:
        raise SourceError(f"{source} has no @REF, a tag, branch or commit. {_hint(source)}")
    url, ref = matched["url"], matched["ref"]
    folder = checkouts / hashlib.sha256(url.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for command in (
        ["init", "--quiet"],
        ["fetch", "--quiet", "--depth=1", url, ref],
        ["-c", "advice.detachedHead=false", "checkout", "--quiet", "--force", "FETCH_HEAD"],
        ["clean", "--quiet", "-ffdx"],
    ):
        done = subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True)
        if done.returncode:
            # The URL is hidden, because it may contain a password.
            said = done.stderr.strip().replace(url, "URL")
            raise SourceError(f"git {command[0]} of {ref} fails: {said}")
    return folder / (matched["folder"] or "")

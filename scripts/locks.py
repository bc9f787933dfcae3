"""Read and merge the lock files of a release, for one Python version and architecture."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.metadata import parse_email
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

NAME = "requirements.lock"
BUILD_NAME = "build-requirements.lock"


class LockError(Exception):
    """An invalid lock file, or two that conflict; the message names the change that corrects it."""


@dataclass(frozen=True)
class Pin:
    """A package of a lock file: its version, and the hashes of its permitted files."""

    name: str
    version: Version
    hashes: frozenset[str]

    def __str__(self) -> str:
        """Return the line of a requirements file, without a marker."""
        return " ".join(
            [f"{self.name}=={self.version}", *(f"--hash={h}" for h in sorted(self.hashes))]
        )


def environment(python: str, arch: str) -> dict[str, str]:
    """Return the values for markers (PEP 508) on a node with Python `3.X.Y`."""
    return {
        "implementation_name": "cpython",
        "implementation_version": python,
        "os_name": "posix",
        "platform_machine": arch,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": python,
        "python_version": ".".join(python.split(".")[:2]),
        "sys_platform": "linux",
    }


def read(path: Path, markers: dict[str, str]) -> dict[str, Pin]:
    """Return the packages that a node installs from a lock file, by name.

    Raises:
        LockError: a line is not one package with its version and hashes.
    """
    pins: dict[str, Pin] = {}
    for line in path.read_text().replace("\\\n", " ").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        specification, *hashes = line.partition(" #")[0].split("--hash=")
        requirement, version = _pinned(specification)
        if requirement is None or not hashes:
            raise LockError(
                f'{path}: "{specification.strip()}" is not NAME==VERSION with hashes. '
                f"Compile the file again: scripts/lock --app {path.parent}"
            )
        if requirement.marker is None or requirement.marker.evaluate(markers):
            name: str = canonicalize_name(requirement.name)
            pins[name] = Pin(name, version, frozenset(h.strip() for h in hashes))
    return pins


def _pinned(specification: str) -> tuple[Requirement | None, Version]:
    """Return a requirement and its one version; None if it is not pinned with `==`."""
    try:
        requirement = Requirement(specification)
        (pinned,) = requirement.specifier
        return (requirement if pinned.operator == "==" else None), Version(pinned.version)
    except ValueError:  # also InvalidRequirement, InvalidVersion, and several specifiers
        return None, Version("0")


def merge(ours: Mapping[str, Pin], theirs: Mapping[str, Pin], path: Path) -> dict[str, Pin]:
    """Return the packages of both locks; `path` is the file of `theirs`.

    Raises:
        LockError: a package has different versions in the two locks.
    """
    clashes = [
        f"  {name}: {theirs[name].version} there, {ours[name].version} in app/{NAME}"
        for name in sorted(ours.keys() & theirs)
        if theirs[name].version != ours[name].version
    ]
    if clashes:
        raise LockError(
            "\n".join([f"{path} conflicts with wsfleet, which runs in the same process:", *clashes])
            + f"\nCompile it with wsfleet's versions: scripts/lock --app {path.parent}"
        )
    merged = {**theirs, **ours}
    for name in ours.keys() & theirs:
        hashes = ours[name].hashes | theirs[name].hashes
        merged[name] = Pin(name, ours[name].version, hashes)
    return dict(sorted(merged.items()))


def unmet(wheels: Iterable[Path], markers: dict[str, str]) -> list[str]:
    """Return the requirements that no wheel meets, as `pip check` would report on the node."""
    versions: dict[str, Version] = {}
    requires: dict[str, list[Requirement]] = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            (inside,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            metadata, _ = parse_email(archive.read(inside))
        name: str = canonicalize_name(metadata["name"])
        versions[name] = Version(metadata["version"])
        requires[name] = [Requirement(each) for each in metadata.get("requires_dist", [])]
    lines = set()
    todo = [(each, "") for each in versions]
    seen = set(todo)
    while todo:
        whose, extra = todo.pop()
        for requirement in requires[whose]:
            marker = requirement.marker
            if marker is not None and not marker.evaluate(markers | {"extra": extra}):
                continue
            wanted = canonicalize_name(requirement.name)
            found = versions.get(wanted)
            if found is None or not requirement.specifier.contains(found, prereleases=True):
                has = "is missing" if found is None else f"is {found}"
                lines.add(f"{whose} {versions[whose]} requires {requirement}, which {has}")
                continue
            further = {(wanted, each) for each in requirement.extras} - seen
            seen |= further
            todo += further
    return sorted(lines)

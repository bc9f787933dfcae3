"""Lock files of a release: what a node of a kind installs by them, and whether two fit together."""

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


class LockError(Exception):
    """A lock that cannot be used, or two that do not fit together; the message has the remedy."""


@dataclass(frozen=True)
class Pin:
    """One package of a lock: its version, and the hashes of the files that may be installed."""

    name: str
    version: Version
    hashes: frozenset[str]

    def __str__(self) -> str:
        """Return the line of a requirements file, without a marker."""
        return " ".join(
            [f"{self.name}=={self.version}", *(f"--hash={h}" for h in sorted(self.hashes))]
        )


def environment(python: str, arch: str) -> dict[str, str]:
    """Return what markers (PEP 508) are evaluated with on a node, whose Python is `3.X.Y`."""
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
    """Read a lock file as a node would, by name.

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
    """Return a requirement and its one version; None where it is no such thing."""
    try:
        requirement = Requirement(specification)
        (pinned,) = requirement.specifier
        return (requirement if pinned.operator == "==" else None), Version(pinned.version)
    except ValueError:  # InvalidRequirement and InvalidVersion are such, and so is the unpacking's
        return None, Version("0")


def merge(ours: Mapping[str, Pin], theirs: Mapping[str, Pin], path: Path) -> dict[str, Pin]:
    """Return one lock of both; `path` is where theirs is.

    Raises:
        LockError: a package has another version in the one than in the other.
    """
    clashes = [
        f"  {name}: {theirs[name].version} there, {ours[name].version} in app/{NAME}"
        for name in sorted(ours.keys() & theirs)
        if theirs[name].version != ours[name].version
    ]
    if clashes:
        raise LockError(
            "\n".join([f"{path} does not fit wsfleet, which is in the same process:", *clashes])
            + f"\nCompile it with wsfleet's versions: scripts/lock --app {path.parent}"
        )
    merged = {**theirs, **ours}
    for name in ours.keys() & theirs:
        hashes = ours[name].hashes | theirs[name].hashes
        merged[name] = Pin(name, ours[name].version, hashes)
    return dict(sorted(merged.items()))


def unmet(wheels: Iterable[Path], markers: dict[str, str]) -> list[str]:
    """List what the wheels require and none of them is, as `pip check` would on the node."""
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

#!/usr/bin/env python3
"""Build a release: one archive of wheels, the application's and all that it needs, and their SBOM.

    scripts/release.py --id                            print the release's name, build nothing
    scripts/release.py --python 3.13.5 --arch x86_64   build for nodes of that kind, print the path

The name is the version and a hash of the source, of app/requirements.lock and of what builds it. An
archive that is there already is not built again. It goes to .cache/releases/.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

try:
    import sbom
    from packaging.requirements import Requirement
except ModuleNotFoundError as error:  # .venv is of another version than this checkout
    sys.exit(f"{error.name} is not there: pip install --require-hashes -r requirements.txt")

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "app"
RELEASES = ROOT / ".cache" / "releases"

GLIBC = ["2_36", "2_35", "2_34", "2_31", "2_28", "2_26", "2_24", "2_17", "2_12", "2_5"]
"""manylinux tags that Debian 12 (glibc 2.36) and newer can run."""


def release_id() -> str:
    """Name what would be built from the files as they are now."""
    files = [Path(__file__), Path(sbom.__file__)]
    files += [APP / "pyproject.toml", APP / "requirements.lock"]
    files += sorted(p for p in (APP / "src").rglob("*") if p.is_file() and p.suffix != ".pyc")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.resolve().relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    source = (APP / "src" / "wsfleet" / "__init__.py").read_text()
    version = re.search(r'__version__ = "(.+)"', source)
    assert version, "app/src/wsfleet/__init__.py has no __version__"
    return f"{version[1]}-{digest.hexdigest()[:8]}"


def locked(python: str, arch: str) -> list[str]:
    """Read the lock file as a node of that kind would: lines without markers, with hashes."""
    environment = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": arch,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": python,
        "python_version": ".".join(python.split(".")[:2]),
        "sys_platform": "linux",
    }
    lines = []
    text = (APP / "requirements.lock").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        specification, *hashes = line.split("--hash=")
        requirement = Requirement(specification)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            pinned = f"{requirement.name}{requirement.specifier}"
            lines.append(" ".join([pinned, *(f"--hash={h.strip()}" for h in hashes)]))
    return lines


def pip(*arguments: str | Path) -> None:
    """Run this interpreter's pip; its own output says what went wrong."""
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *map(str, arguments)], check=True)


def build(release: str, python: str, arch: str, archive: Path) -> None:
    """Fill `archive`; nothing half done is left behind."""
    with tempfile.TemporaryDirectory(dir=RELEASES) as name:
        folder = Path(name)
        pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, APP)
        (wheel,) = folder.glob("*.whl")
        requirements = folder / "requirements.txt"
        requirements.write_text("\n".join(locked(python, arch)) + "\n")
        platforms = [f"--platform=manylinux_{glibc}_{arch}" for glibc in GLIBC]
        platforms += [f"--platform=manylinux2014_{arch}", f"--platform=linux_{arch}"]
        pip(
            *("download", "--no-deps", "--require-hashes", "--only-binary=:all:"),
            *("--implementation=cp", f"--python-version={python.rpartition('.')[0]}"),
            *platforms,
            *("--dest", folder, "--requirement", requirements),
        )
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        with requirements.open("a") as lines:
            lines.write(f"wsfleet=={wheel.name.split('-')[1]} --hash=sha256:{digest}\n")
        sbom.write(folder, release)
        finished = folder.with_suffix(".tar")
        with tarfile.open(finished, "w") as tar:
            for file in sorted(folder.iterdir()):
                tar.add(file, arcname=file.name)
        finished.rename(archive)


def main() -> None:
    """Read the arguments; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--id", action="store_true", help="print the name and build nothing")
    parser.add_argument("--python", help="full Python version of the nodes, as 3.13.5")
    parser.add_argument("--arch", help="their architecture, as x86_64")
    arguments = parser.parse_args()
    if arguments.id:
        print(release_id())
        return
    if not (arguments.python and re.fullmatch(r"3\.\d+\.\d+", arguments.python) and arguments.arch):
        parser.error("give --id, or --python 3.X.Y and --arch ARCH")
    RELEASES.mkdir(parents=True, exist_ok=True)
    release = release_id()
    archive = RELEASES / f"{release}-{arguments.python}-{arguments.arch}.tar"
    with (RELEASES / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            build(release, arguments.python, arguments.arch, archive)
            print("built", file=sys.stderr)
    print(archive)


if __name__ == "__main__":
    main()

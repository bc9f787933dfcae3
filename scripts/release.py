#!/usr/bin/env python3
"""Build a release: an archive of wsfleet, an application, their dependencies and their SBOM.

    scripts/release.py --id                            print the release's name and exit
    scripts/release.py --python 3.13.5 --arch x86_64   build for such nodes, print the path
    scripts/release.py --app SOURCE ...                with an application: see docs/applications.md

The name is wsfleet's version, or the application's name and version, and a hash of the sources, of
their lock files and of the build scripts. An existing archive is not built again. Archives are in
the folder `releases` of --directory.
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

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "app"
try:
    import application
    import hatchling.build  # noqa: F401 - builds the wheel, in a process of pip
    import locks
    import sbom
    from application import Application
except ModuleNotFoundError as error:
    sys.exit(
        f"The Python of Ansible, {sys.executable}, has no package {error.name}, which builds the "
        f"release. Install what the playbooks need: {sys.executable} -m pip install "
        f"--require-hashes -r {ROOT}/playbooks/requirements.txt"
    )


def release_id(app: Application | None) -> str:
    """Return the name of the release of the current files."""
    files = [
        Path(__file__).with_name(f"{m}.py") for m in ("release", "application", "locks", "sbom")
    ]
    files += [APP / "pyproject.toml", APP / locks.NAME]
    files += sorted(p for p in (APP / "src").rglob("*") if p.is_file() and p.suffix != ".pyc")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.resolve().relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    source = (APP / "src" / "wsfleet" / "__init__.py").read_text()
    version = re.search(r'__version__ = "(.+)"', source)
    assert version, "app/src/wsfleet/__init__.py has no __version__"
    words = [version[1]]
    if app is not None:
        app.hash_into(digest)
        words = [app.name, *filter(None, [re.sub(r"[^\w.]", "_", app.version)])]
    return "-".join([*words, digest.hexdigest()[:8]])


def pip(*arguments: str | Path) -> None:
    """Run this interpreter's pip; its output has the reason of a failure."""
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *map(str, arguments)], check=True)


def build(release: str, app: Application | None, python: str, arch: str, archive: Path) -> None:
    """Build `archive`, or nothing at all.

    Raises:
        LockError: the application's lock conflicts with wsfleet's, or lacks a package.
        SourceError: the application cannot be built for these nodes.
    """
    markers = locks.environment(python, arch)
    pins = ours = locks.read(APP / locks.NAME, markers)
    if app is not None:
        pins = locks.merge(ours, locks.read(app.lock, markers), app.lock)
        if app.name in {"wsfleet", *pins}:
            raise locks.LockError(
                f"{app.path} has the same name as its dependency {app.name}: rename it."
            )
    with tempfile.TemporaryDirectory(dir=archive.parent) as name:
        folder = Path(name)
        pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, APP)
        if app is not None:
            app.put_wheel(folder, python, arch)
        made = sorted(folder.glob("*.whl"))
        requirements = folder / "requirements.txt"
        requirements.write_text("".join(f"{pin}\n" for pin in pins.values()))
        pip(
            *("download", "--no-deps", "--require-hashes", "--only-binary=:all:"),
            *("--implementation=cp", f"--python-version={python.rpartition('.')[0]}"),
            *(f"--platform={platform}" for platform in application.platforms(arch)),
            *("--dest", folder, "--requirement", requirements),
        )
        if unmet := locks.unmet(folder.glob("*.whl"), markers):
            where = f": scripts/lock --app {app.lock.parent}" if app else ": scripts/lock"
            raise locks.LockError("\n".join([*unmet, f"Compile the lock again{where}"]))
        with requirements.open("a") as lines:
            for wheel in made:
                name, version, *_ = wheel.name.split("-")
                digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
                lines.write(f"{name}=={version} --hash=sha256:{digest}\n")
        sbom.write(folder, app.name if app else "wsfleet", release, known={"wsfleet", *ours})
        finished = folder.with_suffix(".tar")
        with tarfile.open(finished, "w") as tar:
            for file in sorted(folder.iterdir()):
                tar.add(file, arcname=file.name)
        finished.rename(archive)


def main() -> None:
    """Build the release that the arguments ask for, or print its name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--id", action="store_true", help="print the name and build nothing")
    parser.add_argument("--python", help="full Python version of the nodes, such as 3.13.5")
    parser.add_argument("--arch", help="their architecture, such as x86_64")
    parser.add_argument("--app", metavar="SOURCE", help="a folder, a wheel, or git+URL@REF")
    parser.add_argument(
        "--directory",
        metavar="FOLDER",
        type=Path,
        default=ROOT / ".cache",
        help="folder of archives and of fetched applications; default: .cache of this checkout",
    )
    arguments = parser.parse_args()
    releases = arguments.directory.resolve() / "releases"
    releases.mkdir(parents=True, exist_ok=True)
    try:
        with (releases / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            checkouts = releases.with_name("applications")
            app = Application(arguments.app, checkouts) if arguments.app else None
            release = release_id(app)
            if arguments.id:
                print(release)
                return
            python, arch = arguments.python or "", arguments.arch
            if not (re.fullmatch(r"3\.\d+\.\d+", python) and arch):
                parser.error("give --id, or --python 3.X.Y and --arch ARCH")
            archive = releases / f"{release}-{python}-{arch}.tar"
            if not archive.exists():
                build(release, app, python, arch, archive)
                print("built", file=sys.stderr)
            print(archive)
    except (application.SourceError, locks.LockError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

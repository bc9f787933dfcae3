#!/usr/bin/env python3
"""Download the JavaScript libraries of the pages from npm at the versions of vendor.json.

Usage: scripts/vendor.py [NAME@VERSION...]     change the named ones to other versions

Each folder of FOLDERS has a vendor.json, which keeps npm's checksum of each package and the SHA-256
of each file. A package with another checksum is refused, unless its version was given.
"""

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDERS = (
    ROOT / "app/src/wsfleet/console/static/vendor",
    ROOT / "examples/chat/chat/pages/vendor",
    ROOT / "examples/django-backend/chat/static/vendor",
)


def pack(name: str, version: str, folder: str) -> tuple[str, Path]:
    """Download a package, checked against npm's checksum; return the checksum and the file."""
    command = ["npm", "pack", f"{name}@{version}", "--json", "--pack-destination", folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    (packed,) = json.loads(done.stdout)
    return packed["integrity"], Path(folder) / packed["filename"]


def download(package: dict[str, Any], vendor: Path) -> None:
    """Write a package's files, including its licence, and put their checksums into its entry."""
    with tempfile.TemporaryDirectory() as folder:
        integrity, archive = pack(package["name"], package["version"], folder)
        if package.setdefault("integrity", integrity) != integrity:
            sys.exit(
                f"{package['name']}: npm has the checksum {integrity}, vendor.json has"
                f" {package['integrity']}: give NAME@VERSION to accept it"
            )
        with tarfile.open(archive) as members:
            for name, file in package["files"].items():
                source = members.extractfile(f"package/{file['from']}")
                assert source is not None, file
                data = source.read()
                (vendor / name).write_bytes(data)
                file["sha256"] = hashlib.sha256(data).hexdigest()
            described = members.extractfile("package/package.json")
            assert described is not None
            package["license"] = json.load(described)["license"]


def update(vendor: Path, versions: dict[str, str]) -> None:
    """Download the libraries of one folder, and write its vendor.json."""
    manifest = vendor / "vendor.json"
    packages: list[dict[str, Any]] = json.loads(manifest.read_text())
    for package in packages:
        if package["name"] in versions:
            package |= {"version": versions[package["name"]]}
            del package["integrity"]
        download(package, vendor)
    manifest.write_text(json.dumps(packages, indent=2) + "\n")


def main() -> None:
    """Download the libraries of all folders."""
    versions = {name: version for name, _, version in (w.partition("@") for w in sys.argv[1:])}
    for vendor in FOLDERS:
        update(vendor, versions)


if __name__ == "__main__":
    main()

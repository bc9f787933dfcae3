#!/usr/bin/env python3
"""Download the console's JavaScript libraries from npm at the versions of vendor.json.

Usage: scripts/vendor.py [NAME@VERSION...]     change the named ones to other versions

vendor.json keeps npm's checksum of each package and the SHA-256 of each file. A package with
another checksum is refused, unless its version was given.
"""

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).parents[1] / "app/src/wsfleet/console/static/vendor"
MANIFEST = VENDOR / "vendor.json"


def pack(name: str, version: str, folder: str) -> tuple[str, Path]:
    """Download a package, checked against npm's checksum; return the checksum and the file."""
    command = ["npm", "pack", f"{name}@{version}", "--json", "--pack-destination", folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    (packed,) = json.loads(done.stdout)
    return packed["integrity"], Path(folder) / packed["filename"]


def download(package: dict[str, Any]) -> None:
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
                (VENDOR / name).write_bytes(data)
                file["sha256"] = hashlib.sha256(data).hexdigest()
            described = members.extractfile("package/package.json")
            assert described is not None
            package["license"] = json.load(described)["license"]


def main() -> None:
    """Download every library, and write vendor.json."""
    packages = json.loads(MANIFEST.read_text())
    for word in sys.argv[1:]:
        name, _, version = word.partition("@")
        (package,) = (each for each in packages if each["name"] == name)
        package |= {"version": version}
        del package["integrity"]
    for package in packages:
        download(package)
    MANIFEST.write_text(json.dumps(packages, indent=2) + "\n")


if __name__ == "__main__":
    main()

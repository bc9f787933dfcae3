"""The contents of a release, and its bill of materials."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parents[2]
VENDOR = ROOT / "app/src/wsfleet/console/static/vendor"


@pytest.fixture(scope="module", params=["3.11.2", "3.13.5"], ids=["Debian 12", "Debian 13"])
def release(request: pytest.FixtureRequest) -> dict[str, bytes]:
    """Return the files of a release."""
    script = ROOT / "scripts" / "release.py"
    done = subprocess.run(
        [sys.executable, script, "--python", request.param, "--arch", "x86_64"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    with tarfile.open(done.stdout.strip()) as archive:
        opened = ((member.name, archive.extractfile(member)) for member in archive)
        return {name: file.read() for name, file in opened if file is not None}


@pytest.fixture(scope="module")
def components(release: dict[str, bytes]) -> list[dict[str, Any]]:
    """Return the components in the bill of materials."""
    listed: list[dict[str, Any]] = json.loads(release["sbom.cdx.json"])["components"]
    return listed


def test_the_sbom_lists_every_wheel_and_no_other(
    release: dict[str, bytes], components: list[dict[str, Any]]
) -> None:
    """Each wheel is listed with its own name, version, purl and SHA-256."""
    expected = set()
    for file, content in release.items():
        if file.endswith(".whl"):
            name, version, _, _ = parse_wheel_filename(file)
            checksum = hashlib.sha256(content).hexdigest()
            expected.add((name, str(version), f"pkg:pypi/{name}@{version}", checksum))
    wheels = [each for each in components if each["purl"].startswith("pkg:pypi/")]
    listed = {(w["name"], w["version"], w["purl"], w["hashes"][0]["content"]) for w in wheels}
    assert listed == expected
    assert len(wheels) == len(expected) > 40


def test_the_sbom_lists_the_libraries_of_the_console(components: list[dict[str, Any]]) -> None:
    """Each file of a JavaScript library is listed with its SHA-256."""
    libraries = [each for each in components if each["purl"].startswith("pkg:npm/")]
    listed = {
        file["name"]: file["hashes"][0]["content"]
        for library in libraries
        for file in library["components"]
    }
    vendored = [file for file in VENDOR.iterdir() if file.name != "vendor.json"]
    assert listed == {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in vendored}


def test_no_licence_is_unknown(components: list[dict[str, Any]]) -> None:
    """Each licence is an SPDX name or expression."""
    for component in components:
        (licence,) = component["licenses"]
        assert licence.get("expression") or licence["license"].get("id"), component["name"]

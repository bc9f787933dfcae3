"""Write the bill of materials (SBOM) of a release in CycloneDX JSON: wheels, vendored libraries."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cyclonedx import spdx
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.metadata import RawMetadata, parse_email
from packaging.utils import canonicalize_name

NAME = "sbom.cdx.json"
VENDOR = Path(__file__).parents[1] / "app/src/wsfleet/console/static/vendor"

LICENCES = {
    "aiofastnet": "MIT",
    "async-timeout": "Apache-2.0",
    "google-re2": "BSD-3-Clause",
    "markdown-it-py": "MIT",
    "mdurl": "MIT",
    "picows": "MIT",
    "protobuf": "BSD-3-Clause",
    "shellingham": "ISC",
    "uvloop": "Apache-2.0 OR MIT",
}
"""Packages whose metadata has no SPDX licence: the licence according to the text of the licence."""


def write(folder: Path, name: str, release: str, known: Collection[str]) -> None:
    """Write the bill of a release whose wheels are in `folder` into that folder.

    A package in `known` without a known licence is an error. The packages of an application are
    listed with the licences in their metadata, if any.
    """
    parts = [_wheel(file, known) for file in sorted(folder.glob("*.whl"))]
    parts += [_vendored(package) for package in json.loads((VENDOR / "vendor.json").read_text())]
    bom = Bom(components=parts)
    bom.metadata.component = Component(
        type=ComponentType.APPLICATION, name=name, version=release, bom_ref=release
    )
    bom.register_dependency(bom.metadata.component, parts)
    (folder / NAME).write_text(JsonV1Dot6(bom).output_as_string(indent=2) + "\n")


def _wheel(file: Path, known: Collection[str]) -> Component:
    with zipfile.ZipFile(file) as archive:
        (inside,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata, _ = parse_email(archive.read(inside))
    name = canonicalize_name(metadata["name"])
    purl = PackageURL("pypi", name=name, version=metadata["version"])
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    licence = _licence(name, metadata)
    if licence is None and name in known:
        sys.exit(f"{name}: unknown licence: read its text, add it to LICENCES in {__file__}")
    return _library(purl, licence, HashType(alg=HashAlgorithm.SHA_256, content=digest))


def _licence(name: str, metadata: RawMetadata) -> License | None:
    said = metadata.get("license_expression") or metadata.get("license")
    if not said or not spdx.is_expression(said):
        said = LICENCES.get(name)
    return LicenseFactory().make_from_string(said) if said else None


def _vendored(package: dict[str, Any]) -> Component:
    """Return a JavaScript library with npm's checksum, and the checksums of its files."""
    purl = PackageURL("npm", name=package["name"], version=package["version"])
    digest = base64.b64decode(package["integrity"].removeprefix("sha512-")).hex()
    component = _library(
        purl,
        LicenseFactory().make_from_string(package["license"]),
        HashType(alg=HashAlgorithm.SHA_512, content=digest),
    )
    component.components = [
        Component(
            type=ComponentType.FILE,
            name=name,
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=file["sha256"])],
        )
        for name, file in package["files"].items()
    ]
    return component


def _library(purl: PackageURL, licence: License | None, checksum: HashType) -> Component:
    return Component(
        type=ComponentType.LIBRARY,
        name=purl.name,
        version=purl.version,
        purl=purl,
        bom_ref=purl.to_string(),
        licenses=[licence] if licence else [],
        hashes=[checksum],
    )

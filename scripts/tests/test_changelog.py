"""The changelog has the version of the code."""

from __future__ import annotations

import re
from pathlib import Path

import wsfleet

CHANGELOG = Path(__file__).resolve().parents[2] / "CHANGELOG.md"


def test_the_newest_release_is_this_version() -> None:
    """The first release below Unreleased is this version, with its day."""
    headings = re.findall(r"^## (.+)$", CHANGELOG.read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(wsfleet.__version__)}\] - \d{{4}}-\d\d-\d\d", headings[1])

"""The tests in docs/testing.md, of the application in docs/dev.md, run as they are written."""

import re
from pathlib import Path

import pytest

from lab.paths import ROOT
from tests.support.example import check_own_tests

pytestmark = pytest.mark.usefixtures("processes")

PYTEST = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"


def block(page: str, language: str) -> str:
    """Return the first code block of a language on a page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.search(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_the_examples_pass(tmp_path: Path) -> None:
    """In a folder with the application, its configuration, and pytest's."""
    (tmp_path / "chat.py").write_text(block("dev.md", "python"))
    (tmp_path / "wsfleet.yml").write_text(block("dev.md", "yaml"))
    (tmp_path / "test_chat.py").write_text(block("testing.md", "python"))
    (tmp_path / "pytest.ini").write_text(PYTEST)
    assert "3 passed" in check_own_tests(tmp_path)

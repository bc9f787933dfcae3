"""The examples of docs/realtime.md: one file, which type checkers accept and a node serves."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mypy import api

from lab.paths import ROOT

TEXT = (ROOT / "docs" / "realtime.md").read_text(encoding="utf-8")


def blocks(language: str) -> str:
    """Return the text of all blocks of a language."""
    return "\n\n".join(re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return the module that the examples are together."""
    (tmp_path / "documented_chat.py").write_text(blocks("python"))
    (tmp_path / "wsfleet.yml").write_text(blocks("yaml"))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("documented_chat")
    del sys.modules["documented_chat"]


@pytest.mark.usefixtures("processes")
def test_type_checkers_accept_them(chat: Any, tmp_path: Path) -> None:
    """`mypy --strict` finds nothing in the examples."""
    configuration = tmp_path / "mypy.ini"
    configuration.write_text("[mypy]\nstrict = True\n")
    found, _, _ = api.run(
        ["--config-file", str(configuration), "--cache-dir", str(tmp_path), chat.__file__]
    )
    assert found.startswith("Success"), found

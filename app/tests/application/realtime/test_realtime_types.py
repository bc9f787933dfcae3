"""The types of the public API, as mypy and pyright see them in an application."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mypy import api

import wsfleet
from lab.paths import ROOT
from tests.support import typed_example
from tests.support.paths import JAVASCRIPT

EXAMPLES = ("chat", "room-game")

WRONG = """
from wsfleet import Accept, Connect, Publish, Realtime, Renew, Subscribe
realtime = Realtime()

@realtime.on_connect
async def of_another_result(event: Connect) -> Renew: return Renew(0)

@realtime.on_connect
async def of_another_event(event: Subscribe) -> Accept: return Accept()

@realtime.on_subscribe("room")
def without_event() -> None: ...

@realtime.on_publish("room")
async def of_two(event: Publish[int], other: int) -> None: ...

@realtime.on_publish("room")
async def of_data(event: Publish[int]) -> str: return event.data

async def call() -> None:
    await realtime.publish(7, {})
    await realtime.publish("room:1", {}, tag={})
    offset: str = (await realtime.publish("room:1", {})).offset
"""
"""One mistake in each definition, and in each line of `call`."""


def check(path: Path, cache: Path) -> str:
    """Return what `mypy --strict` finds in a file or folder."""
    configuration = cache / "mypy.ini"
    configuration.write_text("[mypy]\nstrict = True\nexplicit_package_bases = True\n")
    found, problem, _ = api.run(
        ["--config-file", str(configuration), "--cache-dir", str(cache), str(path)]
    )
    assert not problem
    return found


def diagnostics(folder: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what pyright finds, with a configuration file in a folder."""
    configuration = folder / "pyrightconfig.json"
    configuration.write_text(json.dumps(settings | {"pythonVersion": "3.11"}))
    command = ["node_modules/.bin/pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(
        [*command, "--project", str(configuration)],
        cwd=JAVASCRIPT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)["generalDiagnostics"]
    return found


@pytest.mark.usefixtures("processes")
def test_an_application_is_checked_strictly(tmp_path: Path) -> None:
    """The example has no error; each mistake of the other one is found in its line."""
    found = check(Path(typed_example.__file__), tmp_path)
    assert found.startswith("Success"), found
    wrong = tmp_path / "wrong.py"
    wrong.write_text(WRONG)
    lines = {line.split(":")[1] for line in check(wrong, tmp_path).splitlines()[:-1]}
    text = WRONG.splitlines()
    expected = {str(number) for number, line in enumerate(text, 1) if line.startswith("@")}
    expected = expected - {"17"} | {"18", "21", "22", "23"}
    assert lines == expected


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_checked_strictly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The examples' packages and their tests have no error."""
    folder = ROOT / "examples" / name
    monkeypatch.setenv("MYPYPATH", str(folder))
    found = check(folder, tmp_path)
    assert found.startswith("Success"), found


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("name", EXAMPLES)
def test_pyright_finds_nothing_in_examples(tmp_path: Path, name: str) -> None:
    """In its strict mode."""
    folder = ROOT / "examples" / name
    assert not diagnostics(tmp_path, {"include": [str(folder)], "strict": [str(folder)]})


@pytest.mark.usefixtures("modules")
def test_pyright_agrees(tmp_path: Path) -> None:
    """In its strict mode it finds nothing in the example, and each mistake of the other one."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(WRONG)
    (tmp_path / "right.py").write_text(Path(typed_example.__file__).read_text())
    found = diagnostics(tmp_path, {"include": ["."], "strict": ["."]})
    assert {each["file"] for each in found} == {str(wrong)}, found
    lines = {each["range"]["start"]["line"] + 1 for each in found}
    assert lines == {5, 8, 11, 14, 18, 21, 22, 23}


def test_all_public_names_are_there() -> None:
    """Each name of `__all__` is imported when it is used, and is documented."""
    for name in wsfleet.__all__:
        assert getattr(wsfleet, name).__doc__, name
    assert set(wsfleet.__all__) <= set(dir(wsfleet))
    assert wsfleet.__all__ == sorted(wsfleet.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        _ = wsfleet.Missing

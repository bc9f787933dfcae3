"""The tests mirror the package: a reader finds the tests of a module from the tree alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import wsfleet
from lab.paths import ROOT

PACKAGE = Path(wsfleet.__file__).parent
TESTS = ROOT / "app/tests"
WHOLE = {"fleet", "topologies", "security"}
"""Folders for tests of more than one part: they mirror nothing."""
LONGEST = 400
"""Lines that a module of helpers may have."""


def folders() -> Iterator[Path]:
    """Yield the folders of the package that have modules, relative to it."""
    modules = (path for path in PACKAGE.rglob("*.py") if path.stem not in ("__init__", "__main__"))
    yield from {path.parent.relative_to(PACKAGE) for path in modules} - {Path()}


def mirrored() -> list[Path]:
    """Return the files of tests in folders that mirror the package, relative to the tests."""
    found = (path.relative_to(TESTS) for path in TESTS.rglob("test_*.py"))
    return sorted(path for path in found if len(path.parts) > 1 and path.parts[0] not in WHOLE)


def test_every_folder_of_the_package_has_tests() -> None:
    """A new folder brings tests, at the same path."""
    tested = {path.parent for path in mirrored()}
    missing = sorted(map(str, set(folders()) - tested))
    assert not missing, f"no app/tests/FOLDER/test_*.py for: {', '.join(missing)}"


def subjects(folder: Path) -> list[str]:
    """Return what a file of tests in a folder may be named after: a module of it, or itself."""
    modules = (path.stem for path in (PACKAGE / folder).glob("*.py"))
    return sorted({folder.name, *modules} - {"__init__", "__main__"})


@pytest.mark.parametrize("path", mirrored(), ids=str)
def test_a_file_of_tests_is_named_after_what_it_tests(path: Path) -> None:
    """It is `test_MODULE.py` or `test_MODULE_ASPECT.py`; MODULE may be the folder itself."""
    name = path.stem.removeprefix("test_")
    known = subjects(path.parent)
    assert any(f"{name}_".startswith(f"{subject}_") for subject in known), (
        f"app/tests/{path} is named after no module of wsfleet/{path.parent}: {', '.join(known)}"
    )


def test_helpers_are_in_support() -> None:
    """Other folders have tests and fixtures alone."""
    others = [
        path
        for path in TESTS.rglob("*.py")
        if path.relative_to(TESTS).parts[0] != "support"
        and not path.name.startswith("test_")
        and path.name not in ("__init__.py", "conftest.py")
    ]
    assert not others, f"move to app/tests/support: {others}"


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    "root", ["app/tests", "bench", "chaos", "lab", "plugins", "roles", "scripts"]
)
def test_no_file_of_tests_is_imported(root: str) -> None:
    """Shared helpers are modules of `support`, or fixtures in a conftest.py."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / root).rglob("*.py")
        if "node_modules" not in path.parts
        for name in imported(path)
        if any(part == "conftest" or part.startswith("test_") for part in name.split(".")[:-1])
    ]
    assert not wrong, f"move what is shared to app/tests/support: {wrong}"


def test_helpers_are_short() -> None:
    """A module of helpers that does not fit on a few screens is several."""
    lines = {path.name: len(path.read_text().splitlines()) for path in TESTS.glob("support/*.py")}
    long = {name: count for name, count in lines.items() if count > LONGEST}
    assert not long, f"more than {LONGEST} lines: {long}"

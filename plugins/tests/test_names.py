"""Roles, modules and filters are called by their full names: a short one may be another's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible_collections.wsfleet.wsfleet.plugins.filter import fleet, redis_primary, roll, typed

ROOT = Path(__file__).resolve().parents[2]
ROLES = "|".join(path.name for path in ROOT.glob("roles/*"))
MODULES = "|".join(path.stem for path in ROOT.glob("plugins/modules/*.py"))
FILTERS = "|".join(
    name
    for plugin in (fleet, redis_primary, roll, typed)
    for name in plugin.FilterModule().filters()
)
#: `haproxy_check_ports` is a variable as well, so a module has an argument below it.
SHORT = {
    "a filter": rf"\|\s*(?:{FILTERS})\b(?! *=)|map\('(?:{FILTERS})'",
    "a module": rf"^ *(?:- )?(?:{MODULES}):(?: #.*)?$",
    "a role of a task": rf"(?:import|include)_role:\n +name: (?:{ROLES})$",
    "a role of a play": rf"^ +roles:\n(?: +- .*\n)* +- (?:role: )?(?:{ROLES})$",
    "a dependency": rf"^ +- role: (?:{ROLES})$",
}
FULL = {
    "a filter": r"\| wsfleet\.wsfleet\.typed\(",
    "a module": r"^ *wsfleet\.wsfleet\.fleet_unit:",
    "a role of a task": r"name: wsfleet\.wsfleet\.fleet$",
    "a role of a play": r"roles:\n +- wsfleet\.wsfleet\.haproxy$",
    "a dependency": r"- role: wsfleet\.wsfleet\.fleet$",
}


def texts() -> dict[str, str]:
    """Return the files that Ansible reads, by their paths."""
    folders = ("roles", "playbooks", "molecule", "inventory")
    files = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for path in files
        if path.suffix in (".yml", ".j2")
    }


@pytest.mark.parametrize("kind", SHORT)
def test_names_are_full(kind: str) -> None:
    """And there are such names, so that the rule is about something."""
    short, full = (re.compile(names[kind], re.MULTILINE) for names in (SHORT, FULL))
    found = texts()
    assert any(full.search(text) for text in found.values())
    assert [
        f"{path}: {match[0]}" for path, text in found.items() for match in short.finditer(text)
    ] == []

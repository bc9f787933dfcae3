"""A role reads of another role what that one offers, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
ROLES = sorted((path.name for path in ROOT.glob("roles/*")), key=len, reverse=True)
PRIVATE = re.compile(rf"(?<!\w)_({'|'.join(ROLES)})_\w+")
"""A variable that begins with an underscore and a role's name is that role's own."""
PATH = re.compile(rf"\.\./(?:roles/)?({'|'.join(ROLES)})/\S+")
"""A path that leads from one role into another."""


def files() -> Iterator[tuple[str, Path]]:
    """Yield the files that Ansible reads, each with the role that it belongs to."""
    for folder in ("defaults", "files", "meta", "tasks", "templates", "vars"):
        for path in sorted(ROOT.glob(f"roles/*/{folder}/**/*")):
            if path.is_file():
                yield path.relative_to(ROOT / "roles").parts[0], path
    for playbook in (*ROOT.glob("playbooks/**/*"), *ROOT.glob("molecule/**/*.yml")):
        if playbook.is_file():
            yield "", playbook


def foreign(pattern: re.Pattern[str]) -> list[str]:
    """Return what the pattern finds of a role in files that belong to another one."""
    return [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for role, path in files()
        for match in pattern.finditer(path.read_text())
        if match[1] != role
    ]


def test_the_rules_see_what_they_are_about() -> None:
    """A rule that is asked of nothing is always kept."""
    own = [match[0] for _, path in files() for match in PRIVATE.finditer(path.read_text())]
    assert len(own) > 300
    assert PATH.search("src: ../../redis/templates/wsfleet.acl.j2")
    assert PATH.search("role_path ~ '/../wsnode/files/sandbox.conf'")


def test_no_variable_of_another_role_is_read_that_is_private() -> None:
    """Variables that other roles read have names without an underscore."""
    assert foreign(PRIVATE) == []


def test_no_path_leads_into_another_role() -> None:
    """A role that offers a file has a task or a variable for it."""
    assert foreign(PATH) == []

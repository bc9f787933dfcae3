#!/usr/bin/env python3
"""Check each role's defaults against its argument_specs, and write the files made from these.

scripts/roles_docs.py           write roles/*/README.md, meta/main.yml and vars/main/typed.yml
scripts/roles_docs.py --check   change nothing; print the differences and exit with 1 if any
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parent.parent / "roles"
LINE_LENGTH = 120
"""As in .yamllint."""


def load(path: Path) -> dict[str, Any]:
    """Read one YAML file."""
    return yaml.safe_load(path.read_text()) or {}


def mistakes(role: Path, options: dict[str, Any]) -> list[str]:
    """Return the differences between the options and the role's defaults."""
    defaults = load(role / "defaults" / "main.yml")
    missing = [f"{name}: in defaults, not in argument_specs" for name in defaults.keys() - options]
    missing += [f"{name}: in argument_specs, not in defaults" for name in options.keys() - defaults]
    differing = [
        f"{name}: default {defaults[name]!r} in defaults, {options[name].get('default')!r} in specs"
        for name in defaults.keys() & options
        if defaults[name] != options[name].get("default")
    ]
    return [f"{role.name}: {line}" for line in sorted(missing + differing)]


def readme(role: Path, spec: dict[str, Any]) -> str:
    """Render one role's README."""
    lines = [f"# wsfleet.wsfleet.{role.name}", "", f"{spec['short_description']}.", ""]
    lines += [line for text in spec.get("description", []) for line in (text, "")]
    lines += ["| variable | default | meaning |", "|---|---|---|"]
    for name, option in spec["options"].items():
        meaning = " ".join(option["description"].split())
        if "choices" in option:
            meaning += " One of: " + ", ".join(f"`{choice}`" for choice in option["choices"]) + "."
        lines.append(f"| `{name}` | {_inline(option['default'])} | {meaning} |")
    lines += ["", "This page is made from `meta/argument_specs.yml` by `scripts/roles_docs.py`."]
    return "\n".join(lines) + "\n"


def typed(options: dict[str, Any]) -> str:
    """Render the variables `_NAME`, which hold a role's variables converted to their types."""
    lines = [
        "---",
        "# Written by scripts/roles_docs.py: the role's variables, converted to the types of",
        "# meta/argument_specs.yml. Tasks, templates and handlers use these.",
    ]
    for name in options:
        template = f"{{{{ {name} | wsfleet.wsfleet.typed('{name}') }}}}"
        line = f'_{name}: "{template}"'
        lines.append(line if len(line) <= LINE_LENGTH else f"_{name}: >-\n  {template}")
    return "\n".join(lines) + "\n"


def metadata(role: Path, spec: dict[str, Any]) -> str:
    """Render one role's meta/main.yml."""
    # Its variables and modules alone: Ansible would check its variables in each play.
    dependencies = (
        " []" if role.name == "fleet" else "\n  - role: wsfleet.wsfleet.fleet\n    when: false"
    )
    return f"""\
---
# Written by scripts/roles_docs.py.
dependencies:{dependencies}
galaxy_info:
  author: wsfleet
  description: {spec["short_description"]}.
  license: MIT
  min_ansible_version: "2.19"
  platforms:
    - name: Debian
      versions: [bookworm, trixie]
"""


def _inline(value: Any) -> str:
    if value == "":
        return "empty"
    if isinstance(value, dict):
        return "<br>".join(f"`{key}: {item}`" for key, item in value.items())
    if isinstance(value, list):
        return "<br>".join(f"`{item}`" for item in value)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`".replace("|", "\\|")


def main() -> int:
    """Write or check the files of every role, and return the exit code."""
    check = "--check" in sys.argv[1:]
    problems = []
    for role in sorted(path.parent.parent for path in ROLES.glob("*/meta/argument_specs.yml")):
        spec = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]
        problems += mistakes(role, spec["options"])
        files = {
            "README.md": readme(role, spec),
            "meta/main.yml": metadata(role, spec),
            "vars/main/typed.yml": typed(spec["options"]),
        }
        for name, text in files.items():
            target = role / name
            if check and (not target.exists() or target.read_text() != text):
                problems.append(f"{role.name}: {name} is out of date: run scripts/roles_docs.py")
            elif not check:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text)
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

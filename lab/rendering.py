"""Render a role's templates by Ansible on this machine, with the role's own variables."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.paths import ROOT


def rendered(
    folder: Path, role: str, contents: Mapping[str, str], variables: Mapping[str, Any]
) -> dict[str, str]:
    """Return the rendered contents by their names; each is a template's text.

    `variables` win over the role's defaults and variables, as with `-e`.

    Raises:
        subprocess.CalledProcessError: a variable is missing, or a template is invalid.
    """
    path = ROOT / "roles" / role
    shared = ROOT / "roles" / "fleet" / "vars" / "main" / "sandbox.yml"
    tasks: list[dict[str, Any]] = [
        {"include_vars": str(path / "defaults" / "main.yml")},
        {"include_vars": str(shared)},
        {"include_vars": {"dir": str(path / "vars" / "main")}},
        *(
            {"copy": {"content": content, "dest": str(folder / name), "mode": "0644"}}
            for name, content in contents.items()
        ),
    ]
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "tasks": tasks,
        "vars": {"ansible_python_interpreter": sys.executable, "ansible_managed": "Ansible"},
    }
    (folder / "play.yml").write_text(json.dumps([play]))
    subprocess.run(
        [
            *(Path(sys.executable).with_name("ansible-playbook"), folder / "play.yml"),
            *("--extra-vars", json.dumps(dict(variables))),
        ],
        env=os.environ | {"ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections")},
        check=True,
        capture_output=True,
        timeout=120,
    )
    return {name: (folder / name).read_text() for name in contents}


def template(role: str, name: str) -> str:
    """Return the text that renders a template of a role."""
    return f"{{{{ lookup('template', '{ROOT}/roles/{role}/templates/{name}.j2') }}}}"

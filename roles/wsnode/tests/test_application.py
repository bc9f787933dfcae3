"""What the role writes for an application."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.paths import ROOT
from lab.rendering import rendered, template

FLEET_SANDBOX = ROOT / "roles" / "fleet" / "vars" / "main" / "sandbox.yml"
SANDBOX = yaml.safe_load(FLEET_SANDBOX.read_text())["fleet_sandbox"].splitlines()


def written(folder: Path, variables: dict[str, Any]) -> dict[str, str]:
    """Return app.env and, as JSON, the lines of the sandbox, as the role makes them."""
    contents = {
        "app.env": template("wsnode", "app.env"),
        "sandbox": "{{ _wsnode_sandbox | to_json }}",
    }
    return rendered(folder, "wsnode", contents, variables)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what is written for an application that wants much."""
    return written(
        tmp_path_factory.mktemp("role"),
        {
            "wsnode_app": "main:app",
            "wsnode_app_environment": ENVIRONMENT,
            "wsnode_app_sandbox": {"MemoryDenyWriteExecute": False, "SystemCallFilter": "@chown"},
            "wsnode_app_writable_paths": ["/var/lib/chat"],
        },
    )


ENVIRONMENT = {
    "URL": "postgresql://chat:p%40ss@db/chat?a=1&b=2",
    "QUOTES": "a \"b\" 'c' `d` $HOME \\ \\n # é",
    "KEY": "-----BEGIN KEY-----\nx\n-----END KEY-----",
    "NUMBER": 4,
}


def test_the_environment_is_what_the_inventory_says(files: dict[str, str]) -> None:
    """Whatever is in a value: in double quotes systemd reads the file as a shell does."""
    assert files["app.env"].startswith("# Ansible\n")
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    shell = f"set -a\n{files['app.env']}\nexec {sys.executable} -c '{show}'"
    done = subprocess.run(["sh", "-c", shell], env={}, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert {name: found[name] for name in ENVIRONMENT} == {
        name: str(value) for name, value in ENVIRONMENT.items()
    }


def test_an_exception_takes_the_place_of_what_it_excepts(files: dict[str, str]) -> None:
    """Of a setting that adds up (SystemCallFilter=) nothing is left, and all others hold."""
    excepted = ("MemoryDenyWriteExecute=", "SystemCallFilter=")
    assert json.loads(files["sandbox"]) == [
        *(line for line in SANDBOX if not line.startswith(excepted)),
        "MemoryDenyWriteExecute=False",
        "SystemCallFilter=@chown",
        "ReadWritePaths=/var/lib/chat",
    ]


def test_without_an_application_the_sandbox_is_whole(tmp_path: Path) -> None:
    """By the role's defaults."""
    files = written(tmp_path, {})
    assert json.loads(files["sandbox"]) == SANDBOX

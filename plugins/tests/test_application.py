"""Mistakes in an application's variables are errors before anything is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wsfleet.wsfleet.plugins.plugin_utils.inventory_mistakes import (
    fleet_mistakes,
)

ROOT = Path(__file__).resolve().parents[2]

SOUND = {"wsnode_app": "main:app", "wsnode_app_source": "../examples/tutorial"}


def mistakes(*nodes: dict[str, Any]) -> list[str]:
    """List what is wrong with a cluster that has these variables on its nodes."""
    hosts = {f"node{number}": variables for number, variables in enumerate(nodes, 1)}
    groups = {"loadbalancers": ["lb1"], "redis": ["redis1"], "wsnodes": list(hosts)}
    hostvars: dict[str, dict[str, Any]] = {"lb1": {}, "redis1": {}, **hosts}
    everywhere = {"redis_allow_no_password": True, "inventory_dir": str(ROOT / "inventory")}
    found = {
        name: everywhere | {"fleet_address": f"10.0.0.{number}"} | variables
        for number, (name, variables) in enumerate(hostvars.items(), 1)
    }
    return fleet_mistakes(groups, found)


def test_sound_variables_are_no_mistake(tmp_path: Path) -> None:
    """All of them at once, with each kind of source."""
    wheel = tmp_path / "chat-1.0-py3-none-any.whl"
    for file in (wheel, tmp_path / "requirements.lock"):
        file.write_text("")
    more = {
        "wsnode_app_environment": {"DATABASE_URL": "postgresql://chat@db/chat", "WORKERS": 4},
        "wsnode_app_before": ["alembic", "upgrade", "head"],
        "wsnode_app_check": "/health?deep=1",
        "wsnode_app_writable_paths": ["/var/lib/chat"],
        "wsnode_app_memory_max": "1.5G",
        "wsnode_app_sandbox": {
            "MemoryDenyWriteExecute": False,
            "SystemCallFilter": "@system-service",
        },
        "wsnode_app_processes": 4,
    }
    assert mistakes({}) == []
    assert mistakes(SOUND | more, SOUND | more) == []
    for source in (
        str(wheel),
        "git+https://example.com/chat.git@v1.2",
        "git+ssh://git@example.com/team/chat.git@release/1#subdirectory=backend",
    ):
        assert mistakes(SOUND | {"wsnode_app_source": source}) == []


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("wsnode_app", "main", "'main': write MODULE:NAME, as chat.app:app"),
        ("wsnode_app", "main:", "'main:': write MODULE:NAME"),
        (
            "wsnode_app_source",
            "",
            "wsnode_app_source of the host 'node1' is empty: name the folder",
        ),
        ("wsnode_app_source", "../docs", "/docs/pyproject.toml is missing. A source is a folder"),
        ("wsnode_app_source", "chat-1.0-py3-none-any.whl", "/chat-1.0-py3-none-any.whl is missing"),
        ("wsnode_app_source", "git+https://example.com/chat.git", "write git+URL@REF"),
        ("wsnode_app_source", "git+https://me:pw@example.com/chat@v1", "has a password in its URL"),
        ("wsnode_app_environment", {"A-B": "x"}, "has 'A-B': a name has letters"),
        ("wsnode_app_environment", {"WSFLEET_PORT": 1}, "has WSFLEET_PORT, a setting of the node"),
        ("wsnode_app_environment", {"DEBUG": True}, "DEBUG in wsnode_app_environment of the host"),
        ("wsnode_app_check", "health", "is 'health': write a path, as /health"),
        ("wsnode_app_writable_paths", ["data"], "has 'data': write an absolute path"),
        ("wsnode_app_writable_paths", ["/var/../etc"], "has '/var/../etc': write an absolute"),
        ("wsnode_app_writable_paths", ["/home/chat"], "'/home/chat', which the sandbox hides"),
        ("wsnode_app_memory_max", "1 GB", "is '1 GB': write bytes, as 512M or 2G"),
        ("wsnode_app_processes", -1, "is -1: write a number from 0, where the nodes run the"),
        ("wsnode_app_processes", 65, "is 65: write a number from 0"),
        ("wsnode_app_sandbox", {"Sandbox": False}, "has 'Sandbox': exceptions are for Capability"),
        ("wsnode_app_sandbox", {"UMask": "0077\nUser=root"}, "must be true, false or one line"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(name: str, value: Any, expected: str) -> None:
    """One line says which variable of which host it is, and what to write."""
    (line,) = mistakes(SOUND | {name: value})
    assert expected in line
    assert "the host 'node1'" in line


def test_a_secret_is_not_in_the_line() -> None:
    """A wrong variable of the environment, or a wrong URL, is named without its value."""
    environment = {"KEY": ["s3cret"], "WSFLEET_KEY": "s3cret"}
    source = "git+https://me:s3cret@example.com/chat@v1"
    lines = mistakes(SOUND | {"wsnode_app_environment": environment, "wsnode_app_source": source})
    assert len(lines) == 3
    assert "s3cret" not in "".join(lines)


@pytest.mark.parametrize("missing", ["requirements.lock", "build-requirements.lock"])
def test_a_source_without_a_lock_says_how_to_make_it(tmp_path: Path, missing: str) -> None:
    """The error names the missing file, and the command that makes it."""
    for name in {"pyproject.toml", "requirements.lock", "build-requirements.lock"} - {missing}:
        (tmp_path / name).write_text("")
    (line,) = mistakes(SOUND | {"wsnode_app_source": str(tmp_path)})
    assert f"/{missing} is missing: make it by scripts/lock --app {tmp_path}" in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wsnode_app_source", "/x"),
        ("wsnode_app_check", "/x"),
        ("wsnode_app_environment", {"A": "x"}),
        ("wsnode_app_processes", 2),
    ],
)
def test_a_variable_without_an_application_is_a_mistake(name: str, value: Any) -> None:
    """It would be of no effect."""
    (line,) = mistakes({name: value})
    assert f"{name} of the host 'node1' is set, and wsnode_app is not" in line


def test_one_application_is_on_all_nodes() -> None:
    """Its release is built once."""
    assert mistakes(SOUND, {}) == [
        f"{name} is not the same on all hosts of the group 'wsnodes': set it once, for the group."
        for name in ("wsnode_app", "wsnode_app_source")
    ]


def with_keys(*patterns: str) -> list[str]:
    """List what is wrong with a cluster whose application may use these keys."""
    groups = {"loadbalancers": ["lb1"], "redis": ["redis1"], "wsnodes": ["node1"]}
    hostvars = {
        name: {"fleet_address": f"10.0.0.{number}", "redis_allow_no_password": True}
        for number, name in enumerate(("lb1", "redis1", "node1"), 1)
    }
    hostvars["redis1"]["redis_app_keys"] = list(patterns)
    return fleet_mistakes(groups, hostvars)


def test_an_application_has_keys_of_its_own() -> None:
    """Any pattern will do that the cluster's keys do not match."""
    assert with_keys("app:*", "state:*", "wsgi:*", "[ab]:*"[1:]) == []


@pytest.mark.parametrize("pattern", ["*", "ws*", "wsfleet:*", "wsfleet:node:x", "?sfleet:*", "a b"])
def test_an_application_does_not_get_the_clusters_keys(pattern: str) -> None:
    """A pattern that may match them is refused, and so is an invalid pattern."""
    (line,) = with_keys("app:*", pattern)
    assert f"redis_app_keys has '{pattern}'" in line
    assert "chat:*" in line

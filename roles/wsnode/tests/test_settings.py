"""Each setting of a node has one name and one default in the application and in the role."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from wsfleet.config.settings import Settings

ROLE = Path(__file__).resolve().parents[1]
DEFAULTS: dict[str, Any] = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
SPECS: dict[str, dict[str, Any]] = yaml.safe_load(
    (ROLE / "meta" / "argument_specs.yml").read_text()
)["argument_specs"]["main"]["options"]
ENVIRONMENT = (ROLE / "templates" / "wsnode.env.j2").read_text()
UNIT = (ROLE / "templates" / "wsnode@.service.j2").read_text()

WITH_ANOTHER_SOURCE = {
    "host": "fleet_address of the host",
    "port": "the unit's instance: wsnode_port and the ports after it",
    "internal_port": "the unit: wsnode_internal_port and the ports after it",
    "node_name": "wsnode_host_name and the port",
    "node_url": "fleet_address and the port",
    "tls_certificate": "fleet_tls",
    "tls_key": "fleet_tls",
    "app": "wsnode_app, in the unit: a check of the settings would import it",
    "app_socket": "wsnode_app_processes, in the unit beside the application",
    "config": "the path of the file with wsnode_config",
}
"""Settings whose value is not that of a variable with the same name, and where it comes from."""

WITHOUT_A_VARIABLE = {
    "app_dir": "the application is installed in the release",
    "internal_host": "both ports are on fleet_address",
    "hosts": "the role writes the file to the path that is the default",
    "redis_max_connections": "the pool's size follows from how a node uses Redis",
    "heartbeat_interval": "all nodes and the wsfleet command rely on one value",
    "node_dead_after": "all nodes and the wsfleet command rely on one value",
}
"""Settings that the role leaves at their defaults, and why."""

OF_THE_INVENTORY = ("redis_url", "trusted_proxies")
"""Settings whose default on a machine is a template, since it depends on the other hosts."""


def written(template: str) -> list[str]:
    """Return the settings that a template sets, in its order."""
    return [name.lower() for name in re.findall(r"\bWSFLEET_([A-Z_]+)=", template)]


def variables() -> list[str]:
    """Return the settings that have a variable of the role."""
    return sorted({*Settings.model_fields} - {*WITH_ANOTHER_SOURCE} - {*WITHOUT_A_VARIABLE})


def test_every_setting_is_written_once_or_left_out_for_a_reason() -> None:
    """Neither a new setting nor a misspelt one in a template goes unnoticed."""
    found = written(ENVIRONMENT) + written(UNIT)
    assert len(found) == len(set(found))
    assert set(found) == Settings.model_fields.keys() - WITHOUT_A_VARIABLE.keys()
    assert Settings.model_fields.keys() >= WITHOUT_A_VARIABLE.keys()


@pytest.mark.parametrize("name", variables())
def test_a_variable_is_named_after_its_setting(name: str) -> None:
    """The template, the defaults and the specification have it under one name."""
    (value,) = re.findall(rf"^WSFLEET_{name.upper()}=(.*)$", ENVIRONMENT, re.MULTILINE)
    assert re.search(rf"\{{\{{ _wsnode_{name}\b", value)
    assert f"wsnode_{name}" in DEFAULTS
    assert f"wsnode_{name}" in SPECS


@pytest.mark.parametrize("name", sorted({*variables()} - {*OF_THE_INVENTORY}))
def test_a_variable_has_the_default_of_its_setting(name: str) -> None:
    """A machine and a node that is started by hand behave alike."""
    default = Settings.model_fields[name].default
    variable, spec = DEFAULTS[f"wsnode_{name}"], SPECS[f"wsnode_{name}"]
    assert variable == spec["default"] == default
    assert spec["type"] == type(default).__name__


def test_a_variable_has_the_choices_of_its_setting() -> None:
    """Only the log level is one of several words."""
    (pattern,) = (part.pattern for part in Settings.model_fields["log_level"].metadata)
    assert SPECS["wsnode_log_level"]["choices"] == pattern.strip("^()$").split("|")
    assert [name for name in variables() if "choices" in SPECS[f"wsnode_{name}"]] == ["log_level"]


def test_the_node_reads_what_the_role_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of a machine without variables of its own leaves each setting at its default."""
    own = {f"_{name}": value for name, value in DEFAULTS.items()}
    machine = {"fleet_host_address": "127.0.0.1", "fleet_host_tls": False, "ansible_managed": ""}
    inventory = {
        "_wsnode_redis_url": Settings.model_fields["redis_url"].default,
        "_wsnode_trusted_proxies": ["127.0.0.1"],
    }
    text = jinja2.Template(ENVIRONMENT).render(own | machine | inventory)
    for line in text.splitlines():
        if line.startswith("WSFLEET_"):
            name, value = line.split("=", 1)
            monkeypatch.setenv(name, value.strip("'"))
    assert Settings() == Settings.model_construct()

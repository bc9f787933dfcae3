"""The conversion of roles' variables: text becomes the type that it expresses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.wsfleet.wsfleet.plugins.plugin_utils.role_variables import (
    WrongTypeError,
    defaults,
    options,
    typed,
)
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]

ROLES = sorted(path.parent.parent.name for path in ROOT.glob("roles/*/meta/argument_specs.yml"))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(("haproxy_console", text, False) for text in ("false", "False", "no", "off", "0", 0)),
        *(("haproxy_console", text, True) for text in ("true", " TRUE ", "yes", "on", "1", 1)),
        *(("haproxy_maxconn", value, 0) for value in ("0", " 0 ", 0, "0.0", 0.0)),
        ("sentinel_down_after", "10", 10),
        ("keepalived_advert_int", "0.5", 0.5),
        ("wsnode_drain_delay", "3.0", 3),
        ("wsnode_drain_delay", "1e3", 1000),
        ("redis_password", 1234567890123456789, "1234567890123456789"),
        ("redis_password", None, ""),
        ("redis_appendfsync", False, "no"),
        ("redis_appendfsync", "off", "no"),
        ("haproxy_cookie_secure", True, "true"),
        ("haproxy_cookie_secure", "yes", "true"),
        ("haproxy_cookie_secure", False, "false"),
        ("haproxy_cookie_secure", 0, "false"),
        ("haproxy_cookie_samesite", "None", "none"),
        ("haproxy_cookie_samesite", None, "none"),
        ("haproxy_cookie_samesite", "Strict", "strict"),
        ("firewall_ssh_ports", "22,2222", [22, 2222]),
        ("firewall_ssh_ports", ["22", 2222], [22, 2222]),
        ("firewall_ssh_ports", 22, [22]),
        ("firewall_ssh_ports", "", []),
        ("haproxy_tls_certificates", "a.pem, b.pem", ["a.pem", "b.pem"]),
        ("haproxy_tls_certificates", None, []),
        ("monitoring_receiver", '{"webhook_configs": []}', {"webhook_configs": []}),
        ("monitoring_receiver", None, {}),
    ],
)
def test_values_are_converted(name: str, value: Any, expected: Any) -> None:
    """Text of a boolean, a number, a list or a dictionary becomes one."""
    converted = typed(value, name)
    assert (converted, type(converted)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("haproxy_console", "ja", "haproxy_console must be true or false, and is 'ja'."),
        ("haproxy_console", "", "true or false, and is empty."),
        ("haproxy_console", None, "true or false, and is empty."),
        ("haproxy_console", 2, "true or false, and is 2."),
        ("haproxy_port", "10x", "haproxy_port must be a whole number, and is '10x'."),
        ("haproxy_port", "1.5", "a whole number, and is '1.5'."),
        ("haproxy_port", 1.5, "a whole number, and is 1.5."),
        ("haproxy_port", True, "a whole number, and is True."),
        ("haproxy_port", "1_000", "a whole number, and is '1_000'."),
        ("haproxy_port", "٣", "a whole number, and is '٣'."),
        ("haproxy_port", [80], "a whole number, and is a list."),
        ("wsnode_drain_delay", "3s", "a number, and is '3s'."),
        ("wsnode_drain_delay", "nan", "a number, and is 'nan'."),
        ("wsnode_drain_delay", "1e999", "a number, and is '1e999'."),
        ("redis_password", ["secret"], "redis_password must be text, and is a list."),
        ("redis_appendfsync", "never", "one of everysec, always, no, and is 'never'."),
        ("firewall_ssh_ports", "[22, 2222]", "a list, and is text: write its elements"),
        ("firewall_ssh_ports", "22,ssh", "a whole number, and is 'ssh'."),
        ("firewall_ssh_ports", True, "a list, and is a bool."),
        ("wsnode_config", "{secret", "a dictionary, and is text that is not JSON."),
        ("wsnode_config", ["secret"], "a dictionary, and is a list."),
    ],
)
def test_an_inconvertible_value_is_an_error(name: str, value: Any, expected: str) -> None:
    """The error names variable, value and type; the value of what may be a secret it leaves out."""
    with pytest.raises(WrongTypeError) as error:
        typed(value, name)
    assert expected in str(error.value)
    assert "secret" not in str(error.value)


@given(st.integers())
def test_a_number_and_its_text_are_the_same(number: int) -> None:
    """Of any size, and without a detour by floating point."""
    assert typed(str(number), "haproxy_maxconn") == typed(number, "haproxy_maxconn") == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_fraction_and_its_text_are_the_same(number: float) -> None:
    """Nothing is rounded."""
    assert typed(str(number), "wsnode_ping_timeout") == number


def test_roles_use_converted_variables_alone() -> None:
    """Outside of defaults and the conversion itself nothing reads a variable as it was given."""
    # A variable of a role that need not be of the play has a default, and is converted after it.
    texts = "|".join(name for name, option in options().items() if option["type"] == "str")
    others = rf"(?!(?:{texts}) \| default\()(?!\w+ \| default\(\w+\) \| wsfleet\.wsfleet\.typed)"
    raw = re.compile(rf"(?<![\w.'/-]){others}({'|'.join(options())})\b(?!\s*:)")
    expression = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\[\[.*?\]\]|\[%.*?%\]", re.DOTALL)
    condition = re.compile(r"^\s*(?:- )?(?:when|until|that|failed_when|changed_when): *(.+)$", re.M)
    found = []
    for role in ROLES:
        for path in (ROOT / "roles" / role).glob("*/**/*"):
            folder = path.relative_to(ROOT / "roles" / role).parts[0]
            if folder not in ("tasks", "templates", "handlers", "vars") or path.is_dir():
                continue
            text = "" if path.name == "typed.yml" else re.sub(" #.*", "", path.read_text())
            places = expression.findall(text) + condition.findall(text)
            found += [f"{path.name}: {name}" for place in places for name in raw.findall(place)]
    assert found == []


def run_ansible(*arguments: str, roles: Path = ROOT / "roles") -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook at the project's root."""
    environment = os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_ROLES_PATH": str(roles)}
    return subprocess.run(
        ["ansible-playbook", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


INVENTORY = """
[loadbalancers]
lb1 ansible_host=10.0.0.11 haproxy_console={console}
[wsnodes]
node1 ansible_host=10.0.0.21 wsnode_processes={processes}
[redis]
redis1 ansible_host=10.0.0.31
[all:vars]
redis_allow_no_password=yes
ansible_ssh_common_args=-o ConnectTimeout=1 -o BatchMode=yes
"""


@pytest.mark.parametrize(
    ("given_as", "arguments", "expected"),
    [
        (
            {"console": "ja"},
            (),
            "haproxy_console of the host 'lb1' must be true or false, and is 'ja'",
        ),
        ({"processes": "1.5"}, (), "wsnode_processes of the host 'node1' must be a whole number"),
        ({}, ("-e", "redis_port=10x"), "redis_port of the host 'redis1' must be a whole number"),
        ({}, ("-e", "redis_allow_no_password=false"), "redis_password is empty for the host"),
        ({}, ("-e", "haproxy_stats_port=80"), "Port 80 of the host 'lb1' is wanted twice"),
    ],
)
def test_site_stops_before_it_touches_a_host(
    tmp_path: Path, given_as: dict[str, str], arguments: tuple[str, ...], expected: str
) -> None:
    """Text of an INI inventory and of -e is converted for the check, or the variable is named."""
    inventory = tmp_path / "hosts"
    inventory.write_text(INVENTORY.format(**{"console": "false", "processes": "1"} | given_as))
    result = run_ansible("-i", str(inventory), "site.yml", *arguments)
    assert result.returncode == 2, result.stdout
    assert expected in " ".join(result.stdout.split())
    assert "UNREACHABLE" not in result.stdout


# Facts that tasks set and templates use.
FOUND_OUT = {
    "_haproxy_ipv6": {"stat": {"exists": True}},
    "fleet_machine": {
        "addresses": [
            {
                "ifname": "eth0",
                "addr_info": [
                    {"local": "10.0.0.11", "prefixlen": 24},
                    {"local": "fd00::11", "prefixlen": 64},
                ],
            }
        ],
        "ssh_ports": [22],
        "python": "3.13.5 x86_64",
    },
    "_keepalived_peers": ["10.0.0.12"],
    "_node_exporter_expiry": 0,
    "redis_acl_rights": {"node": "+@all"},
    "_wsnode_id": {"stdout": "1"},
    "wsnode_command": "rebalance",
    "wsnode_command_options": "--run",
    "wsnode_command_description": "A service",
    "wsnode_command_environment": {"WSFLEET_REDIS_URL": "redis://10.0.0.31"},
}
#: Roles whose services get their variables from a template of the role wsnode.
COMMAND_SERVICES = ("autoscale", "rebalance")


def rendering_roles(folder: Path, output: Path) -> Path:
    """The roles with a task that writes their variables and templates, instead of their tasks."""
    for role in ROLES:
        source = ROOT / "roles" / role
        (folder / role / "tasks").mkdir(parents=True)
        for part in source.iterdir():
            if part.name not in ("tasks", "handlers", "tests"):
                (folder / role / part.name).symlink_to(part)
        found = {name: f"_{name}" for name in options() if name.startswith(f"{role}_")}
        if role in COMMAND_SERVICES:
            found["environment"] = f"_{role}_environment"
        templates = [path.name for path in source.glob("templates/*.j2")]
        found |= {name: f"lookup('ansible.builtin.template', '{name}')" for name in templates}
        content = ", ".join(f"{name!r}: {value}" for name, value in sorted(found.items()))
        copy = {"content": f"{{{{ {{{content}}} | to_nice_json }}}}", "dest": str(output / role)}
        tasks: list[dict[str, Any]] = [{"ansible.builtin.copy": copy}]
        (folder / role / "tasks" / "main.yml").write_text(yaml.safe_dump(tasks))
    return folder


def rendered(
    folder: Path, variables: dict[str, Any], *, as_text: bool = False, network: str = "10.0.0."
) -> dict[str, str]:
    """Every template of every role, with variables by -e: typed, or as text."""
    output = folder / "output"
    output.mkdir(parents=True)
    (folder / "ca.pem").write_text("a CA")
    inventory: dict[str, Any] = {
        "loadbalancers": {
            "hosts": {"lb1": {"ansible_host": f"{network}11"}},
            "vars": {"keepalived_virtual_address": f"{network}10"},
        },
        "wsnodes": {"hosts": {"node1": {"ansible_host": f"{network}21"}}},
        "redis": {"hosts": {f"redis{n}": {"ansible_host": f"{network}3{n}"} for n in (1, 2, 3)}},
        "monitoring": {"hosts": {"lb1": {}}},
        "all": {
            "vars": {
                "fleet_tls_directory": str(folder),
                "ansible_connection": "local",
                "ansible_python_interpreter": sys.executable,
            }
        },
    }
    (folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
    play = {"hosts": "lb1", "gather_facts": False, "vars": FOUND_OUT, "roles": ROLES}
    (folder / "play.yml").write_text(yaml.safe_dump([play]))
    (folder / "vars.json").write_text(json.dumps(variables))
    words = [f"-e{name}={str(value).lower()}" for name, value in variables.items()]
    result = run_ansible(
        *("-i", str(folder / "hosts.yml"), str(folder / "play.yml")),
        *(words if as_text else (f"-e@{folder / 'vars.json'}",)),
        roles=rendering_roles(folder / "roles", output),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return {path.name: path.read_text().replace(str(folder), "FOLDER") for path in output.iterdir()}


@pytest.mark.parametrize("flipped", [False, True])
def test_templates_are_the_same_with_text(tmp_path: Path, flipped: bool) -> None:
    """Each boolean and number of all roles, as text by -e, makes the files that its value makes."""
    scalars = {
        name: defaults()[name]
        for name, option in options().items()
        if option["type"] in ("bool", "int", "float") and "{{" not in str(defaults()[name])
    }
    if flipped:
        scalars |= {name: not value for name, value in scalars.items() if isinstance(value, bool)}
        scalars |= {
            name: 7 for name, value in scalars.items() if value == 0 and not isinstance(value, bool)
        }
    assert len(scalars) > 90
    from_values = rendered(tmp_path / "values", scalars)
    from_text = rendered(tmp_path / "text", scalars, as_text=True)
    assert set(from_values) == {*ROLES}
    assert from_text == from_values


def test_an_ipv6_address_is_in_brackets_before_a_port(tmp_path: Path) -> None:
    """In every file of every role, since what follows it would be taken for a part of it."""
    tls = {"fleet_tls": True, "redis_password": "long enough for all", "autoscale_enabled": True}
    files = rendered(tmp_path, tls, network="fd00::")
    text = "\n".join(files.values())
    assert text.count("[fd00::") > 20
    assert re.findall(r"(?<!\[)fd00::\d\d\]?:\d+|fd00::\d\d:%i", text) == []


def test_no_port_is_joined_to_an_address_by_hand() -> None:
    """Tasks that ask a service use the filter as well."""
    by_hand = re.compile(r"(?:address|bind) \}\}:")
    files = [path for path in ROOT.glob("roles/*/*/**/*") if path.suffix in (".yml", ".j2")]
    assert [str(path) for path in files if by_hand.search(path.read_text())] == []

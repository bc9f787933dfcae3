"""The variables of all roles: their types, their defaults, and the conversion of values to types.

An INI inventory and `-e NAME=VALUE` give text where YAML gives booleans and numbers, and `-e`
overrides the facts that a task sets. So each role converts a variable where it is used: `_NAME` of
the role's file `vars/main/typed.yml` is the converted `NAME`.

Defaults are read from the roles' files, because Ansible knows the defaults of a role only while it
runs, and one role needs those of others: a node needs the port of Redis.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ansible.module_utils.common.yaml import yaml_load

ROLES = Path(__file__).resolve().parents[2] / "roles"

_BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "y", "t", "1"), True),
    **dict.fromkeys(("false", "no", "off", "n", "f", "0"), False),
}


REMOVED = {
    "haproxy_private_paths": "the nodes' own paths are on a private port, wsnode_internal_port",
    "haproxy_open_files": "the limit is computed from haproxy_maxconn",
    "wsnode_open_files": "the limit is computed from wsnode_max_connections",
    "wsnode_name": "use wsnode_host_name",
}
"""Variables of earlier versions, and their replacement."""


class WrongTypeError(ValueError):
    """A value that cannot be converted to the type of its variable."""


@cache
def options() -> dict[str, dict[str, Any]]:
    """Return the options of all roles by name, from `meta/argument_specs.yml`."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(ROLES.glob("*/meta/argument_specs.yml")):
        found |= yaml_load(path.read_text())["argument_specs"]["main"]["options"]
    return found


@cache
def defaults() -> dict[str, Any]:
    """Return the defaults of all roles by name; templates are not evaluated."""
    found: dict[str, Any] = {}
    for path in sorted(ROLES.glob("*/defaults/main.yml")):
        found |= yaml_load(path.read_text())
    return found


def typed(value: Any, name: str, host: str = "") -> Any:
    """Convert the value of a role's variable to the type that the role's specification gives it.

    `host` is the owner of the variable, for the message of an error.

    Raises:
        WrongTypeError: the value cannot be converted; the message names variable, value and type.
            The value of a text or a dictionary is left out, since it may be a secret.
    """
    option = options()[name]
    try:
        if value is None and "none" in option.get("choices", ()):
            return "none"  # as an INI inventory gives None
        converted = _CONVERSIONS[option["type"]](value)
        if option["type"] == "list":
            convert = _CONVERSIONS[option.get("elements", "raw")]
            converted = [convert(element) for element in converted]
        return _chosen(converted, option.get("choices"))
    except WrongTypeError as error:
        whose = f" of the host '{host}'" if host else ""
        raise WrongTypeError(f"{name}{whose} must be {error}") from None


def _wrong(value: Any, wanted: str, secret: bool = False) -> WrongTypeError:
    kind = "empty" if value is None or value == "" else f"a {type(value).__name__}"
    if isinstance(value, str) and value and not secret:
        kind = f"'{value}'"
    elif isinstance(value, bool | int | float) and not secret:
        kind = f"{value}"
    return WrongTypeError(f"{wanted}, and is {kind}.")


def _boolean(value: Any) -> bool:
    found = _BOOLEANS.get(str(value).strip().lower())
    if found is None:
        raise _wrong(value, "true or false")
    return found


def _integer(value: Any) -> int:
    number = _number(value, "a whole number")
    if number != int(number):
        raise _wrong(value, "a whole number")
    return int(number)


def _number(value: Any, wanted: str = "a number") -> int | float:
    """Convert to a number, a whole one to an integer: `3`, `3.0` and their texts are the same."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _wrong(value, wanted)
    if re.fullmatch(r"[+-]?\d+", text := str(value).strip(), re.ASCII):
        return int(text)
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.ASCII | re.IGNORECASE):
        raise _wrong(value, wanted)
    number = float(text)
    if not math.isfinite(number):
        raise _wrong(value, wanted)
    return int(number) if number == int(number) else number


def _text(value: Any) -> str:
    if isinstance(value, Mapping) or (isinstance(value, Sequence) and not isinstance(value, str)):
        raise _wrong(value, "text", secret=True)
    return "" if value is None else str(value)


def _list(value: Any) -> Sequence[Any]:
    """Convert to a list. Text is split at commas, as Ansible does; a number is one element."""
    if value is None:
        return []
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    if isinstance(value, str):
        if value.lstrip().startswith(("[", "{")):
            raise WrongTypeError(
                "a list, and is text: write its elements between commas, or -e as JSON: "
                "-e '{\"NAME\": [...]}'."
            )
        elements = [element.strip() for element in value.split(",")] if value.strip() else []
        if "" in elements:  # as an address it would be all addresses
            raise WrongTypeError("a list without empty elements: remove the comma too many.")
        return elements
    if isinstance(value, Mapping | bool) or not isinstance(value, Sequence):
        raise _wrong(value, "a list", secret=True)
    return value


def _dictionary(value: Any) -> Mapping[Any, Any]:
    if value is None:
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise WrongTypeError("a dictionary, and is text that is not JSON.") from None
    if not isinstance(value, Mapping):
        raise _wrong(value, "a dictionary", secret=True)
    return value


def _chosen(value: Any, choices: Sequence[str] | None) -> Any:
    """Return the matching choice; upper and lower case are the same.

    YAML reads an unquoted `no` as false, so a false value is the choice `no` or `false`.
    """
    if not choices or value in choices:
        return value
    text = value.strip().lower()
    same = [choice for choice in choices if choice.lower() == text]
    truth = _BOOLEANS.get(text)
    meant = [choice for choice in choices if truth is not None and _BOOLEANS.get(choice) is truth]
    for found in (same, meant):
        if len(found) == 1:
            return found[0]
    raise _wrong(value, f"one of {', '.join(choices)}")


_CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {
    "bool": _boolean,
    "dict": _dictionary,
    "float": _number,
    "int": _integer,
    "list": _list,
    "raw": lambda value: value,
    "str": _text,
}

# Read at import, because Ansible forks a process for each task, which inherits what is read.
options()
defaults()

#!/usr/bin/env python3
"""Make an inventory from the outputs of Terraform.

terraform output -json | scripts/terraform_inventory.py > inventory/NAME/hosts.yml

An output with the name of a group (loadbalancers, wsnodes, redis, monitoring) maps
the names of its hosts to their variables; the output `all` has the variables of all
hosts. Other outputs are ignored. docs/aws.md has the outputs to copy.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import yaml

REQUIRED = ("loadbalancers", "wsnodes", "redis")
GROUPS = (*REQUIRED, "monitoring")
FORM = '{ for host in …: NAME => { ansible_host = "…", fleet_address = "…" } }'


class OutputError(Exception):
    """The outputs make no inventory; the message names the change that corrects them."""


def inventory(outputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inventory for the output of `terraform output -json`."""
    if missing := [name for name in REQUIRED if name not in outputs]:
        raise OutputError(f"the output {', '.join(missing)} is missing: add it as {FORM}")
    addresses: dict[str, dict[str, Any]] = {}
    document: dict[str, Any] = {}
    if "all" in outputs:
        document["all"] = {"vars": _value(outputs, "all")}
    for group in GROUPS:
        if group not in outputs:
            continue
        hosts = _value(outputs, group)
        for name, variables in hosts.items():
            if not isinstance(variables, dict):
                raise OutputError(f"{group}: {name} is not a map of variables: make it {FORM}")
            known = addresses[name] = addresses.get(name) or variables
            if not variables.items() <= known.items():
                raise OutputError(
                    f"{group}: {name} has other variables than in another group: make them equal"
                )
        document[group] = {"hosts": hosts}
    if nowhere := [name for name, variables in addresses.items() if not variables]:
        raise OutputError(f"{', '.join(nowhere)}: no address in any group: add one as {FORM}")
    return document


def _value(outputs: dict[str, Any], name: str) -> dict[str, Any]:
    if outputs[name].get("sensitive"):
        raise OutputError(f"{name} is sensitive: remove it here and put secrets into vault.yml")
    value = outputs[name]["value"]
    if not isinstance(value, dict) or not value:
        # The clients' cookies contain the names, so names must not depend on places in a list.
        raise OutputError(f"{name} is not a map: make it {FORM}")
    return value


def main() -> int:
    """Convert standard input to standard output, and return the exit code."""
    try:
        document = inventory(json.load(sys.stdin))
    except (OutputError, json.JSONDecodeError) as error:
        print(f"{sys.argv[0]}: {error}", file=sys.stderr)
        return 1
    print("---\n# From `terraform output -json`, by scripts/terraform_inventory.py.")
    yaml.safe_dump(document, sys.stdout, sort_keys=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Make an inventory of hosts that Terraform made.

terraform output -json | scripts/terraform_inventory.py > inventory/NAME/hosts.yml

An output that has the name of a group (loadbalancers, wsnodes, redis, monitoring) is a map from
the names of its hosts to their variables; one that is called `all` is a map of variables of all
hosts. Other outputs are left alone. docs/aws.md has the outputs to copy.
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
    """The outputs are no inventory; the message says how to mend them."""


def inventory(outputs: dict[str, Any]) -> dict[str, Any]:
    """The inventory, from what `terraform output -json` says."""
    if missing := [name for name in REQUIRED if name not in outputs]:
        raise OutputError(f"there is no output {', '.join(missing)}: it should be {FORM}")
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
                raise OutputError(f"{group}: {name} is no map of variables: it should be {FORM}")
            known = addresses[name] = addresses.get(name) or variables
            if not variables.items() <= known.items():
                raise OutputError(f"{group}: {name} is another host in another group")
        document[group] = {"hosts": hosts}
    if nowhere := [name for name, variables in addresses.items() if not variables]:
        raise OutputError(f"{', '.join(nowhere)}: no address, in no group")
    return document


def _value(outputs: dict[str, Any], name: str) -> dict[str, Any]:
    if outputs[name].get("sensitive"):
        raise OutputError(f"{name} is sensitive: secrets belong into vault.yml, and not here")
    value = outputs[name]["value"]
    if not isinstance(value, dict) or not value:
        # Clients' cookies have the names: they must stay, so they are not made of places in a list.
        raise OutputError(f"{name} is no map: it should be {FORM}")
    return value


def main() -> int:
    """Read standard input, write standard output; gives the exit code."""
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

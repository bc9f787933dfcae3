"""The filters of the project for Ansible; each is in a module of plugin_utils."""

from __future__ import annotations

from typing import Any

from ..plugin_utils.addresses import (
    all_addresses,
    fleet_subjects,
    interface_of,
    interface_towards,
    missing_addresses,
    netloc,
)
from ..plugin_utils.cluster_members import cluster_hosts, fleet_hostnames, fleet_members
from ..plugin_utils.inventory_mistakes import fleet_mistakes
from ..plugin_utils.redis_access import redis_passwords
from ..plugin_utils.refusal import refusal
from ..plugin_utils.taken_ports import taken_ports


class FilterModule:
    """The filters of the project for Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "all_addresses": all_addresses,
            "cluster_hosts": cluster_hosts,
            "fleet_hostnames": fleet_hostnames,
            "fleet_members": fleet_members,
            "fleet_mistakes": fleet_mistakes,
            "fleet_subjects": fleet_subjects,
            "interface_of": interface_of,
            "interface_towards": interface_towards,
            "missing_addresses": missing_addresses,
            "netloc": netloc,
            "redis_passwords": redis_passwords,
            "refusal": refusal,
            "taken_ports": taken_ports,
        }

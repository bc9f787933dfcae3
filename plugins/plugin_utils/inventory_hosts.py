"""The hosts of an inventory, with the roles' defaults for variables that it does not set.

A role's default is read from its file, because Ansible knows it only while that role runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .role_variables import REMOVED, WrongTypeError, defaults, options, typed

GROUPS = {
    "loadbalancers": "HAProxy",
    "wsnodes": "the WebSocket nodes",
    "redis": "the shared state",
}
INTERNAL_PORTS = 1000
"""From `wsnode_port` to `wsnode_internal_port`, as in the defaults of the role `wsnode`."""
Groups = Mapping[str, Iterable[str]]
Variables = Mapping[str, Any]
HostVars = Mapping[str, Variables]


class ReadOnce(Mapping[str, Any]):
    """A mapping that reads each value of another one once, because Ansible evaluates it each time.

    `wrap` makes what is returned from what is read.
    """

    def __init__(
        self, source: Mapping[str, Any], wrap: Callable[[Any], Any] = lambda value: value
    ) -> None:
        self._source = source
        self._wrap = wrap
        self._read: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        """Return a value, which was read before or is read now."""
        if key not in self._read:
            self._read[key] = self._wrap(self._source[key])
        return self._read[key]

    def __contains__(self, key: object) -> bool:
        """Return whether there is a value, without reading it."""
        return key in self._source

    def __iter__(self) -> Iterator[str]:
        """Return the keys."""
        return iter(self._source)

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self._source)


class Host:
    """One host's variables, with the roles' defaults."""

    def __init__(self, name: str, variables: Variables) -> None:
        self.name = name
        self.variables = variables

    def get(self, key: str) -> Any:
        """Return the host's own value or the default, converted to its type.

        A default that is a template is None.

        Raises:
            WrongTypeError: the value cannot be converted to the variable's type.
        """
        if key in self.variables:
            value = self.variables[key]
            return typed(value, key, self.name) if key in options() else value
        value = defaults().get(key)
        return None if isinstance(value, str) and "{{" in value else value

    @property
    def type_mistakes(self) -> list[str]:
        """The mistakes in the types of its variables."""
        mistakes = []
        for name in options().keys() & set(self.variables):
            try:
                typed(self.variables[name], name, self.name)
            except WrongTypeError as error:
                mistakes.append(str(error))
            except Exception:  # noqa: S112 - a template of what is known in the role alone
                continue
        return sorted(mistakes)

    @property
    def removed_mistakes(self) -> list[str]:
        """The mistakes of variables that were removed."""
        return [
            f"The variable {name} of the host '{self.name}' does not exist any more: remove it; "
            f"{hint}."
            for name, hint in REMOVED.items()
            if name in self.variables
        ]

    @property
    def address(self) -> str:
        """Its address for the other hosts."""
        return str(self.get("fleet_address") or self.get("ansible_host") or self.name)

    def addresses(self, key: str) -> list[str]:
        """Return the addresses in a variable, without those that are templates of a role."""
        try:
            value = self.get(key) or []
            found = [value] if isinstance(value, str) else list(value)
        except WrongTypeError:
            raise
        except Exception:  # a template of what is known in the role alone
            return []
        return [address for address in found if "{{" not in address]

    @property
    def has_tls(self) -> bool:
        """Whether its HAProxy has a certificate."""
        return bool(
            self.get("haproxy_tls_certificates") or self.get("haproxy_tls_acme_certificates")
        )

    @property
    def tls_files(self) -> dict[str, Path]:
        """The files on the control machine that it needs for TLS, by name."""
        folder = self.get("fleet_tls_directory") or f"{self.variables.get('inventory_dir')}/tls"
        return {
            name: Path(folder, name) for name in ("ca.pem", f"{self.name}.pem", f"{self.name}.key")
        }

    @property
    def redis_scheme(self) -> str:
        """The scheme of the URLs of its Redis and Sentinel."""
        return "rediss" if self.get("fleet_tls") else "redis"

    @property
    def wsnode_host_name(self) -> str:
        """The first part of the names of its processes."""
        return str(self.get("wsnode_host_name") or self.name)

    @property
    def wsnode_ports(self) -> range:
        """The port of each node process."""
        first = int(self.get("wsnode_port"))
        return range(first, first + int(self.get("wsnode_processes")))

    @property
    def wsnode_internal_ports(self) -> range:
        """The private port of each node process, in the order of `wsnode_ports`."""
        given = self.get("wsnode_internal_port")
        first = int(self.get("wsnode_port")) + INTERNAL_PORTS if given is None else int(given)
        return range(first, first + int(self.get("wsnode_processes")))


def hosts_of(groups: Groups, group: str, hostvars: HostVars) -> list[Host]:
    """Return the hosts of a group."""
    return [Host(name, hostvars[name]) for name in groups.get(group, ())]


def listed(names: Iterable[str]) -> str:
    """Join names for a message: 'a', 'b' and 'c'."""
    *first, last = (f"'{name}'" for name in names)
    return f"{', '.join(first)} and {last}" if first else last

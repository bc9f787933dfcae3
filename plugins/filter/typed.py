"""The filter that converts a role's variable to its type; see plugin_utils/role_variables.py."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleFilterError

from ..plugin_utils import role_variables


def typed(value: Any, name: str) -> Any:
    """Convert the value of a role's variable to its type.

    Raises:
        AnsibleFilterError: the value cannot be converted.
    """
    try:
        return role_variables.typed(value, name)
    except role_variables.WrongTypeError as error:
        raise AnsibleFilterError(str(error)) from None


class FilterModule:
    """The filter for Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"typed": typed}

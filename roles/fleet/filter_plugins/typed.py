"""The filter that converts a role's variable to its type; see plugin_utils/role_variables.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# Ansible loads a filter by its file: modules that filters share are not found without this.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "plugin_utils"))

import role_variables
from ansible.errors import AnsibleFilterError


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

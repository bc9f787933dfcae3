"""Helpers of the scenario's tests."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml


@pytest.fixture(scope="session")
def with_node3(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what the operator adds to the inventory, as an argument."""
    extra = tmp_path_factory.mktemp("inventory") / "extra.yml"
    extra.write_text(yaml.safe_dump({"wsnodes": {"hosts": {"node3": None}}}))
    return f"-i{extra}"


@pytest.fixture(scope="session")
def example() -> Callable[..., tuple[str, str]]:
    """Return a function that gives the arguments of a playbook for an example.

    Its keywords are variables, beside the configuration; those of the inventory are for the
    tutorial.
    """

    def arguments(config: dict[str, Any], **variables: Any) -> tuple[str, str]:
        client = {"allowed_origins": ["*"], **config.get("client", {})}
        given = {"wsnode_app_before": [], "wsnode_config": config | {"client": client}}
        return "-e", json.dumps(given | variables)

    return arguments

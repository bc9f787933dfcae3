"""What the tests of the scenario share."""

import pytest
import yaml


@pytest.fixture(scope="session")
def with_node3(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what the operator adds to the inventory, as an argument."""
    extra = tmp_path_factory.mktemp("inventory") / "extra.yml"
    extra.write_text(yaml.safe_dump({"wsnodes": {"hosts": {"node3": None}}}))
    return f"-i{extra}"

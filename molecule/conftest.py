"""Lets testinfra's `ansible://` hosts have an `ansible_host` that is a template."""

import jinja2
import pytest
from testinfra.utils.ansible_runner import AnsibleRunner


def pytest_configure(config: pytest.Config) -> None:
    """Evaluate the addresses, which `ansible-inventory` prints as they are written."""
    runner = AnsibleRunner.get_runner(config.getoption("ansible_inventory"))
    for host in runner.inventory["_meta"]["hostvars"].values():
        host["ansible_host"] = jinja2.Template(host["ansible_host"]).render(host)

"""HAProxy accepts the role's configuration for tests and bench."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab.haproxy import HAPROXY_PROGRAM, haproxy_config
from lab.ports import free_port


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_the_configuration_is_valid_without_root(address: str, tmp_path: Path) -> None:
    """The configuration has no user, chroot or socket, but the role's other global settings."""
    text = haproxy_config({"node1": f"http://{address}:8001"}, free_port(), free_port())
    assert f"server node1 {address}:8001 " in text
    assert "tune.maxpollevents" in text
    assert "chroot" not in text
    config = tmp_path / "haproxy.cfg"
    config.write_text(text)
    subprocess.run([HAPROXY_PROGRAM, "-c", "-f", str(config)], check=True, capture_output=True)


def test_variables_are_those_of_the_role() -> None:
    """A given variable replaces its default."""
    text = haproxy_config({}, free_port(), free_port(), haproxy_timeout_queue=77)
    assert "timeout queue 77s" in text

"""The order of the package's folders: what importing a module loads."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import wsfleet

pytestmark = pytest.mark.usefixtures("processes")

PURE = ("protocol", "config", "channels")
"""Folders without I/O: a test or a tool that imports one must not start up a server or a client."""
MODULES = [
    module.name
    for folder in PURE
    for module in pkgutil.walk_packages(
        [str(Path(wsfleet.__file__).parent / folder)], f"wsfleet.{folder}."
    )
]


def loaded(*modules: str) -> set[str]:
    """The names in `sys.modules` of a process that imports `modules`."""
    script = f"import sys, json, {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    return set(json.loads(done.stdout))


def test_pure_folders_load_neither_uvicorn_nor_redis() -> None:
    """Protocol, configuration and channels stand alone."""
    assert len(MODULES) > 10
    assert not {"uvicorn", "redis", "fastapi", "starlette"} & loaded(*MODULES)


def test_the_hub_and_the_clients_names_load_no_uvicorn() -> None:
    """A connection knows its transport by an interface alone."""
    modules = ("wsfleet.hub.hub", "wsfleet.hub.connection", "wsfleet.cluster.client_names")
    assert not {"uvicorn", "wsfleet.transports.websocket"} & loaded(*modules)


@pytest.mark.parametrize("module", ["node_state", "autoscale_policy", "haproxy_stats"])
def test_the_cluster_s_words_load_neither_uvicorn_nor_redis(module: str) -> None:
    """The autoscaler of each balancer runs without a web server."""
    assert not {"uvicorn", "redis"} & loaded(f"wsfleet.cluster.{module}")


def test_the_package_alone_loads_nothing() -> None:
    """The public names are imported when they are used: the command line starts quickly."""
    assert {name for name in loaded("wsfleet") if name.startswith("wsfleet")} == {"wsfleet"}
    assert "pydantic" not in loaded("wsfleet")

"""The settings of Redis: a real server reads them after its own file, as the unit has it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis

from lab.rendering import rendered, template
from lab.waiting import until

#: What CONFIG REWRITE, by which a Sentinel stores who is primary, leaves of a server with replicas.
OWN = "port 0\nmin-replicas-to-write 1\n"
VARIABLES: dict[str, Any] = {
    "fleet_address": "127.0.0.1",
    "fleet_host_address": "127.0.0.1",
    "fleet_host_tls": False,
    "redis_allow_no_password": True,
    "redis_bind": ["127.0.0.1"],
    "redis_user_passwords": {},
}


@pytest.mark.parametrize(("hosts", "is_refused"), [(["redis1"], False), (["1", "2", "3"], True)])
def test_a_server_alone_waits_for_no_replica(
    tmp_path: Path, hosts: list[str], is_refused: bool
) -> None:
    """Also one that had replicas: it would refuse all writes. One that should have some does."""
    text = rendered(
        tmp_path,
        "redis",
        {"wsfleet.conf": template("redis", "wsfleet.conf")},
        VARIABLES | {"redis_hosts": hosts},
    )["wsfleet.conf"]
    (tmp_path / "role.conf").write_text(text.replace("aclfile ", "# aclfile "))
    (tmp_path / "redis.conf").write_text(OWN)
    path = tmp_path / "redis.sock"
    only_here = ["--port", "0", "--unixsocket", str(path), "--dir", str(tmp_path)]
    command = ["redis-server", "redis.conf", "--include", "role.conf", *only_here]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as server:
        try:
            until(path.exists, "the server listens")
            with redis.Redis(unix_socket_path=str(path)) as client:
                until(lambda: not client.info()["loading"], "the server is there")
                if is_refused:
                    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
                        client.set("a", "b")
                else:
                    assert client.set("a", "b")
        finally:
            server.terminate()

"""redis-check-config, with a real Redis and Sentinel: what it takes, what it refuses and why."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

CHECK = Path(__file__).resolve().parents[1] / "files" / "redis-check-config"
REDIS = "bind 127.0.0.1\nport 6379\nmaxmemory {}\n"
SENTINEL = """\
bind 127.0.0.1
port 26379
dir /var/lib/redis
pidfile {folder}/redis-sentinel.pid
sentinel resolve-hostnames yes
sentinel announce-ip 127.0.0.1
sentinel auth-user wsfleet sentinel
sentinel auth-pass wsfleet secret
sentinel down-after-milliseconds wsfleet {down_after}
sentinel failover-timeout wsfleet 30000
"""


def check(folder: Path, text: str, *master: str) -> subprocess.CompletedProcess[str]:
    """Run the check on a configuration, with the temporary folder inside `folder`."""
    (folder / "tmp").mkdir(exist_ok=True)
    (folder / "new.conf").write_text(text)
    command = ["sh", str(CHECK), str(folder / "new.conf"), *master]
    environment = os.environ | {"TMPDIR": str(folder / "tmp")}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("text", "master", "words"),
    [
        (REDIS.format("1gb"), [], ""),
        (REDIS.format("1gbb"), [], "maxmemory 1gbb"),
        (SENTINEL, ["wsfleet"], ""),
        (SENTINEL.replace("{down_after}", "0"), ["wsfleet"], "negative or zero time parameter"),
        (SENTINEL, ["other"], "No such master with specified name"),
    ],
)
def test_a_configuration_is_tried_before_it_is_written(
    tmp_path: Path, text: str, master: list[str], words: str
) -> None:
    """A wrong one is refused in the server's words; no file is left, and no pidfile is replaced."""
    result = check(tmp_path, text.format(folder=tmp_path, down_after=5000), *master)
    assert result.returncode == (1 if words else 0), result.stderr
    assert words in result.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new.conf", "tmp"]

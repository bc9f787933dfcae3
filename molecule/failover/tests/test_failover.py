"""The Redis primary dies under load and a replica goes on; site.yml leaves it at that."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import testinfra
from testinfra.host import Host

ROOT = Path(__file__).parents[3]
INVENTORY = ROOT / "molecule" / "failover" / "inventory"
FLEET = INVENTORY / ".fleet.json"
URL: str = json.loads(FLEET.read_text())["base_url"]
BIN = Path(sys.executable).parent
SERVERS = ["redis1", "redis2", "redis3"]


def machine(name: str) -> Host:
    """One of the machines, as root."""
    return testinfra.get_host(f"ansible://{name}", ansible_inventory=str(INVENTORY), sudo=True)


def info(name: str) -> dict[str, str]:
    """What a Redis server says of its replication."""
    lines = machine(name).check_output("redis-cli-auth INFO replication").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def primary() -> str:
    """The host that the Sentinels of all machines agree on."""
    ask = "redis-cli-auth -p 26379 SENTINEL GET-MASTER-ADDR-BY-NAME wsfleet"
    answers = {machine(name).check_output(ask).split()[0] for name in SERVERS}
    assert len(answers) == 1, answers
    last = answers.pop().rpartition(".")[2]
    return f"redis{int(last) - 30}"


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait until `condition()` is true, or fail with `what` did not happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen in {seconds:g} s: {what}"
        time.sleep(0.5)


def playbook(name: str, *arguments: str) -> str:
    """Run a playbook as an operator does."""
    environment = os.environ | {
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    }
    command = [str(BIN / "ansible-playbook"), name, f"-i{INVENTORY}", *arguments]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr
    return result.stdout


def changes(output: str) -> dict[str, int]:
    """How many tasks changed something, by host, from Ansible's recap."""
    return {host: int(n) for host, n in re.findall(r"^(\w+) +: .*changed=(\d+)", output, re.M)}


def replicates(name: str) -> bool:
    """Whether a server has what the primary has."""
    return info(name).get("master_link_status") == "up"


def test_one_primary_two_replicas_three_sentinels() -> None:
    """Everybody knows everybody, by the addresses of the inventory."""
    first = primary()
    assert info(first)["role"] == "master"
    assert info(first)["connected_slaves"] == "2"
    assert all(replicates(name) for name in SERVERS if name != first)
    for name in SERVERS:
        quorum = machine(name).check_output("redis-cli-auth -p 26379 SENTINEL CKQUORUM wsfleet")
        assert quorum.startswith("OK 3 usable Sentinels")


@pytest.mark.parametrize("port", [6379, 26379])
def test_nobody_enters_without_the_password(port: int) -> None:
    """Neither Redis nor Sentinel tells anything, also from the machine itself."""
    for name in SERVERS:
        assert "NOAUTH" in machine(name).check_output(f"redis-cli -p {port} PING")


def test_the_password_is_not_for_everybody() -> None:
    """Also in the files that Redis and Sentinel have written themselves."""
    readable = "find /etc/redis /var/lib/redis -type f -perm /o=rwx"
    for name in SERVERS:
        found = machine(name).check_output(f"{readable} -exec grep -l a-password {{}} +; true")
        assert found == ""


async def test_the_primary_dies_and_nothing_acknowledged_is_lost() -> None:
    """Publications that a replica has confirmed are all heard, once and in order."""
    old = primary()
    process = await asyncio.create_subprocess_exec(
        *(BIN / "wsfleet", "verify-delivery", URL, "--json", "--timeout", "120"),
        *("--publishers", "4", "--subscribers", "20", "--messages", "150", "--rate", "10"),
        stdout=subprocess.PIPE,
    )
    try:
        await asyncio.sleep(4)
        kill = "systemctl kill -s KILL redis-server; systemctl stop redis-server"
        await asyncio.to_thread(machine(old).check_output, kill)
        output, _ = await asyncio.wait_for(process.communicate(), 150)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    report = json.loads(output)
    assert process.returncode == 0, report
    faults = [report[key] for key in ("lost", "duplicated", "reordered", "recovered_wrongly")]
    assert faults == [0, 0, 0, 0]
    assert report["acknowledged"] == 600
    assert report["errors"], "the primary was away at no moment"
    new = primary()
    assert new != old
    assert info(new)["role"] == "master"

    machine(old).check_output("systemctl start redis-server")
    until(lambda: info(new)["connected_slaves"] == "2" and replicates(old), f"{old} follows {new}")


def test_site_leaves_the_new_primary_alone() -> None:
    """After a failover the inventory's first host is not primary again, and nothing changes."""
    before = primary()
    assert before != SERVERS[0]
    recap = changes(playbook("site.yml"))
    assert recap.keys() >= set(SERVERS)
    assert not any(recap.values()), recap
    assert primary() == before


def test_a_changed_setting_restarts_the_primary_last() -> None:
    """Every server is in sync before the next one is restarted, and all have the new setting."""
    playbook("site.yml", "-e", "redis_maxclients=5000", "--limit", "redis")
    for name in SERVERS:
        answer = machine(name).check_output("redis-cli-auth CONFIG GET maxclients")
        assert answer.split() == ["maxclients", "5000"]
    uptimes = {
        name: int(machine(name).check_output("stat -c %Y /run/redis/redis-server.pid"))
        for name in SERVERS
    }
    assert max(uptimes, key=lambda name: uptimes[name]) == primary()
    assert info(primary())["connected_slaves"] == "2"


def test_a_backup_can_be_restored(tmp_path: Path) -> None:
    """What was there comes back on all servers; without a confirmation nothing is touched."""
    ask = "redis-cli-auth"
    machine(primary()).check_output(f"{ask} SET backup:test before")
    dump = tmp_path / "redis.rdb"
    playbook("playbooks/backup.yml", "-e", f"redis_backup={dump}")
    assert dump.stat().st_mode & 0o077 == 0
    machine(primary()).check_output(f"{ask} SET backup:test after")
    with pytest.raises(AssertionError, match="confirm=yes"):
        playbook("playbooks/restore.yml", "-e", f"redis_backup={dump}")
    assert machine(primary()).check_output(f"{ask} GET backup:test") == "after"
    before = primary()
    playbook("playbooks/restore.yml", "-e", f"redis_backup={dump}", "-e", "confirm=yes")
    assert primary() == before
    for name in SERVERS:
        assert machine(name).check_output(f"{ask} GET backup:test") == "before"


def test_two_more_servers_join(tmp_path: Path) -> None:
    """They follow the primary of the moment, and the quorum is a majority of five."""
    more = tmp_path / "more.yml"
    more.write_text("redis: {hosts: {redis4: {}, redis5: {}}}\n")
    before = primary()
    playbook("site.yml", f"-i{more}")
    assert primary() == before
    assert info(before)["connected_slaves"] == "4"
    for name in [*SERVERS, "redis4", "redis5"]:
        view = machine(name).check_output("redis-cli-auth -p 26379 --json SENTINEL MASTER wsfleet")
        assert json.loads(view)["quorum"] == "3"
        assert json.loads(view)["num-other-sentinels"] == "4"

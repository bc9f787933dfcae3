"""A server without replicas: what it has, it has on its disk."""

from testinfra.host import Host

testinfra_hosts = ["ansible://single"]


def test_data_survives_a_crash(host: Host) -> None:
    """A write that is a second old is there after kill -9."""
    assert host.check_output("redis-cli-auth set crash survived") == "OK"
    host.check_output("sleep 1.5 && systemctl kill -s KILL redis-server && sleep 2")
    assert host.check_output("redis-cli-auth get crash") == "survived"
    host.check_output("redis-cli-auth del crash")

"""A server without replicas: what it has, it has on its disk."""

from testinfra.host import Host

testinfra_hosts = ["ansible://single"]


def test_data_survives_a_crash(host: Host) -> None:
    """A write that is a second old is there after kill -9, also one of several at once."""
    assert host.check_output("redis-cli-auth set crash survived") == "OK"
    script = "for _, k in ipairs(KEYS) do redis.call('set', k, 'survived') end"
    host.check_output("redis-cli-auth eval %s 2 crash:a crash:b", script)
    host.check_output("sleep 1.5 && systemctl kill -s KILL redis-server && sleep 2")
    assert host.check_output("redis-cli-auth mget crash crash:a crash:b") == "\n".join(
        ["survived"] * 3
    )
    host.check_output("redis-cli-auth del crash crash:a crash:b")

"""The state of a machine after the role `redis`."""

from typing import TYPE_CHECKING

from testinfra.host import Host

if TYPE_CHECKING:
    from molecule.conftest import Cluster

CONVERGE = "molecule/role-redis/converge.yml"
testinfra_hosts = ["ansible://redis"]


def ask(host: Host, command: str) -> str:
    """Ask the running server, as an operator does: the password is not typed."""
    return host.check_output(f"redis-cli-auth {command}")


def test_it_runs_and_starts_with_the_machine(host: Host) -> None:
    """The service is up, now and after a reboot, and not as root."""
    service = host.service("redis-server")
    assert service.is_running
    assert service.is_enabled
    assert host.process.get(comm="redis-server").user == "redis"


def test_it_listens_for_the_nodes_and_asks_for_the_password(host: Host) -> None:
    """It is reached at the address of the inventory, and tells nothing without the password."""
    address = host.ansible.get_variables()["ansible_host"]
    assert host.socket(f"tcp://{address}:6379").is_listening
    assert "NOAUTH" in host.check_output("redis-cli ping")
    assert ask(host, f"-h {address} ping") == "PONG"


def test_settings_hold(host: Host) -> None:
    """Nothing is evicted, and writes survive a crash."""
    settings = ask(host, "config get appendonly maxmemory-policy maxmemory").splitlines()
    values = dict(zip(settings[::2], settings[1::2], strict=True))
    assert values == {
        "appendonly": "yes",
        "maxmemory-policy": "noeviction",
        "maxmemory": str(1024**3),
    }


def test_passwords_are_not_for_everybody(host: Host) -> None:
    """Only Redis and root read its settings, root alone the password that opens everything."""
    for name in ("wsfleet.conf", "wsfleet.acl"):
        settings = host.file(f"/etc/redis/{name}")
        assert (settings.user, settings.group, settings.mode) == ("redis", "redis", 0o640)
    admin = host.file("/etc/redis/wsfleet-admin")
    assert (admin.user, admin.mode) == ("root", 0o600)
    assert admin.content_string not in host.check_output("cat /etc/redis/wsfleet*.*")


def test_nothing_that_is_needed_is_refused(host: Host) -> None:
    """Servers at work have asked each other for nothing that their users may not do."""
    assert ask(host, "acl log") == ""


def test_each_user_may_do_its_work_alone(host: Host) -> None:
    """Without a user nothing is allowed; the password that the others derive from opens nothing."""
    users = dict(line.split()[1:3] for line in ask(host, "acl list").splitlines())
    on = {"admin", "app", "cli", "exporter", "node", "proxy", "replica", "sentinel"}
    assert users == {"default": "off"} | dict.fromkeys(on, "on")
    variables = host.ansible.get_variables()
    secret = variables["redis_password"]
    for user in on:
        refused = host.run("redis-cli -p 6379 AUTH %s %s", user, secret)
        assert "WRONGPASS" in refused.stdout
        wrong = ask(host, f"acl dryrun {user} config get masterauth")
        assert (wrong == "OK") == (user == "admin")
    ask(host, "acl log reset")


def test_a_wrong_configuration_is_refused(host: Host) -> None:
    """The check that guards each write takes the real file and refuses one with a mistake."""
    check = "/usr/local/sbin/redis-check-config"
    assert host.run(f"{check} /etc/redis/wsfleet.conf").rc == 0
    host.check_output("echo 'maxmemory plenty' > /tmp/wrong.conf")
    refused = host.run(f"{check} /tmp/wrong.conf")
    assert refused.rc == 1
    assert "maxmemory" in refused.stderr


def test_a_refused_configuration_has_its_error(cluster: "Cluster") -> None:
    """Redis's own words are shown, also where no_log hides the task, and no password is."""
    output = cluster.playbook(CONVERGE, "-e", "redis_maxmemory=1gbb").stdout
    failures = cluster.failures(output)
    assert sorted(failures) == ["bookworm1", "bookworm2", "bookworm3", "trixie"], output
    for name, printed in failures.items():
        assert "maxmemory 1gbb" in printed
        assert cluster.host(name).ansible.get_variables()["redis_password"] not in output

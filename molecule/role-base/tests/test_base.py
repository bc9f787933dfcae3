"""The state of a machine after the role `base`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testinfra.host import Host

if TYPE_CHECKING:
    from molecule.conftest import Cluster

CONVERGE = "molecule/role-base/converge.yml"

testinfra_hosts = ["ansible://all"]


def test_no_unit_failed(host: Host) -> None:
    """Systemd is content with every unit."""
    assert host.check_output("systemctl list-units --failed --no-legend --plain") == ""


def test_the_clock_is_set_by_one_program(host: Host) -> None:
    """A machine that has such a program keeps it, one without gets Debian's own."""
    brings_its_own = host.ansible.get_variables()["inventory_hostname"] == "bookworm"
    assert host.package("chrony").is_installed == brings_its_own
    assert host.package("systemd-timesyncd").is_installed != brings_its_own
    assert host.service("chrony" if brings_its_own else "systemd-timesyncd").is_enabled


def test_no_package_is_removed_for_another(cluster: Cluster) -> None:
    """An installation that would remove a package fails with the reason."""
    extra = '{"base_packages": ["openntpd"]}'
    result = cluster.playbook(CONVERGE, "--limit", "bookworm", "-e", extra)
    assert result.returncode != 0
    assert "remove is disabled" in result.stdout
    assert cluster.host("bookworm").package("chrony").is_installed


def test_kernel_settings_are_valid(host: Host) -> None:
    """The kernel knows each setting that is written down for it."""
    lines = host.file("/etc/sysctl.d/60-wsfleet.conf").content_string.splitlines()
    keys = [line.split("=")[0].strip() for line in lines if "=" in line]
    files = " ".join(f"/proc/sys/{key.replace('.', '/')}" for key in keys)
    assert len(host.check_output(f"ls {files}").split()) == len(keys) > 0


def test_the_journal_survives_a_reboot(host: Host) -> None:
    """It is written to the disk, and its size there is bounded."""
    assert host.file("/var/log/journal").is_directory
    settings = host.check_output("systemd-analyze cat-config systemd/journald.conf")
    assert "\nStorage=persistent" in settings
    assert "\nSystemMaxUse=" in settings


def test_a_refused_kernel_setting_is_an_error(cluster: Cluster) -> None:
    """Files in its place stand in for a kernel of the machine's own, which knows one of two."""
    names = ("trixie", "bookworm")
    for name in names:
        cluster.on(name, "mount -t tmpfs tmpfs /proc/sys && mkdir -p /proc/sys/net/core")
        cluster.on(name, "touch /proc/sys/net/core/somaxconn")
    try:
        settings = '{"base_sysctl": {"net.core.somaxconn": 4096, "net.core.no_such_setting": 1}}'
        output = cluster.playbook(CONVERGE, "-e", settings).stdout
        assert output.count("failed=1 ") == len(names)
        told = "base_sysctl sets for net.core.no_such_setting:"
        assert " ".join(output.split()).count(told) >= len(names)
        cluster.play(CONVERGE, "-e", '{"base_sysctl": {"net.core.somaxconn": 4096}}')
        for name in names:
            assert cluster.on(name, "cat /proc/sys/net/core/somaxconn").strip() == "4096"
    finally:
        for name in names:
            cluster.on(name, "umount /proc/sys")

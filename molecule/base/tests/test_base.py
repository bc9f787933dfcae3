"""What the role `base` leaves on a machine."""

from testinfra.host import Host

testinfra_hosts = ["ansible://all"]


def test_no_unit_failed(host: Host) -> None:
    """Systemd is content with every unit."""
    assert host.check_output("systemctl list-units --failed --no-legend --plain") == ""


def test_the_clock_is_set_by_the_network(host: Host) -> None:
    """The client of a time server starts with the machine."""
    assert host.service("systemd-timesyncd").is_enabled


def test_kernel_settings_are_valid(host: Host) -> None:
    """The kernel knows each setting that is written down for it."""
    for line in host.file("/etc/sysctl.d/60-wsfleet.conf").content_string.splitlines():
        if "=" in line:
            key = line.split("=")[0].strip()
            assert host.file(f"/proc/sys/{key.replace('.', '/')}").exists, key


def test_the_journal_survives_a_reboot(host: Host) -> None:
    """It is written to the disk, and its size there is bounded."""
    assert host.file("/var/log/journal").is_directory
    settings = host.check_output("systemd-analyze cat-config systemd/journald.conf")
    assert "\nStorage=persistent" in settings
    assert "\nSystemMaxUse=" in settings

"""Errors of the scripts if podman cannot run the VMs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: The machine's own programs; a test puts a folder of replacements before them.
PATH = os.environ["PATH"]


def program(folder: Path, name: str, text: str) -> None:
    """Write a shell script that replaces a program."""
    file = folder / name
    file.write_text(f"#!/bin/bash\n{text}\n")
    file.chmod(0o755)


def bash(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the folder's programs, in a process group of its own."""
    return subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{folder}:{PATH}"},
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )


@pytest.mark.parametrize("fails", ["info", "import", "run"])
def test_the_error_is_one_line_with_podmans_reason(tmp_path: Path, fails: str) -> None:
    """For each failure of podman, the line has its reason without warnings, and a remedy."""
    program(tmp_path, "sudo", '"$@"')
    program(
        tmp_path,
        "podman",
        f"""[ "$1" != import ] || cat > /dev/null
        for word in "$@"; do
            [ "$word" != {fails} ] || {{ echo "Error: no driver"; \\
                echo 'time="now" level=warning msg="cgroups-v1"'; exit 125; }} >&2
        done""",
    )
    done = bash(tmp_path, "source scripts/lib.sh; podman_works; echo not reached")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "podman cannot run VMs on this machine: Error: no driver. Use " in line


def test_a_podman_that_works_passes(tmp_path: Path) -> None:
    """The check prints nothing and removes its image."""
    program(tmp_path, "sudo", '"$@"')
    asked = tmp_path / "asked"
    program(tmp_path, "podman", f'[ "$1" != import ] || cat > /dev/null; echo "$1" >> {asked}')
    done = bash(tmp_path, "source scripts/lib.sh; podman_works")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert asked.read_text().split() == ["ps", "info", "import", "run", "rmi"]


def test_a_running_vm_shows_that_podman_works(tmp_path: Path) -> None:
    """A second scripts/up does not try a container."""
    program(tmp_path, "sudo", '"$@"')
    asked = tmp_path / "asked"
    program(tmp_path, "podman", f'echo "$@" >> {asked}; echo 0a1b2c')
    done = bash(tmp_path, "source scripts/lib.sh; podman_works")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (line,) = asked.read_text().splitlines()
    assert line.startswith("ps --quiet --filter label=wsfleet.checkout=wsfleet-")


@pytest.mark.parametrize("command", ["scripts/up", "scripts/test lint role-base"])
def test_the_scripts_check_podman_first(tmp_path: Path, command: str) -> None:
    """Without a podman that works, no VM and no environment for it is made."""
    checkout, programs = tmp_path / "checkout", tmp_path / "programs"
    programs.mkdir()
    for name in ("scripts", "inventory"):
        shutil.copytree(ROOT / name, checkout / name)
    program(programs, "sudo", '"$@"')
    program(programs, "podman", "echo Error: no driver >&2; exit 125")
    done = bash(programs, str(checkout / command))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "podman cannot run VMs on this machine: Error: no driver. Use " in line
    assert not (checkout / ".venv").exists()


def test_a_failed_image_does_not_end_its_caller(tmp_path: Path) -> None:
    """Mmdebstrap ends its process group when it fails; its caller gets the exit code."""
    program(tmp_path, "mmdebstrap", "kill -TERM 0; sleep 60")
    done = bash(tmp_path, "playbooks/local/image.sh trixie KEY; echo it was $?")
    assert (done.returncode, done.stdout) == (0, "it was 143\n")

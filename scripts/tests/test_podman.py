"""What the scripts say where podman cannot run the VMs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: What programs are run with: those of a folder come before the machine's own.
PATH = os.environ["PATH"]


def program(folder: Path, name: str, text: str) -> None:
    """Put a shell script in the place of a program."""
    file = folder / name
    file.write_text(f"#!/bin/bash\n{text}\n")
    file.chmod(0o755)


def bash(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command, in a process group of its own, that meets the folder's programs."""
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
def test_one_line_says_why_there_can_be_no_vms(tmp_path: Path, fails: str) -> None:
    """Podman's own reason, without its warnings, and what to do; whatever it cannot do."""
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


def test_a_podman_that_works_is_not_complained_about(tmp_path: Path) -> None:
    """What was tried is removed."""
    program(tmp_path, "sudo", '"$@"')
    asked = tmp_path / "asked"
    program(tmp_path, "podman", f'[ "$1" != import ] || cat > /dev/null; echo "$1" >> {asked}')
    done = bash(tmp_path, "source scripts/lib.sh; podman_works")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert asked.read_text().split() == ["info", "import", "run", "rmi"]


@pytest.mark.parametrize("command", ["scripts/up", "scripts/test lint role-base"])
def test_the_scripts_ask_before_they_begin(tmp_path: Path, command: str) -> None:
    """Neither makes a VM, or the environment for it, where podman does not work."""
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


def test_an_image_that_cannot_be_made_ends_nobody_else(tmp_path: Path) -> None:
    """Mmdebstrap ends its process group when it fails; who called it learns that it failed."""
    program(tmp_path, "mmdebstrap", "kill -TERM 0; sleep 60")
    done = bash(tmp_path, "playbooks/local/image.sh trixie KEY; echo it was $?")
    assert (done.returncode, done.stdout) == (0, "it was 143\n")

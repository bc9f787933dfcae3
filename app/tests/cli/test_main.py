"""The common part of all commands: usage errors, exit codes, --json, and a light start."""

import json
import pkgutil
import subprocess
import sys

import pytest

from tests.support.command import wsfleet
from wsfleet.cli import commands
from wsfleet.cli.main import Check, Program

pytestmark = pytest.mark.usefixtures("processes")

URL = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "Missing command. See `wsfleet --help`"),
        (("check",), "Missing command. See `wsfleet check --help`"),
        (("load",), "Missing argument"),
        (("load", URL, "--clients", "many"), "--clients"),
        (("load", URL, "--clients", "1"), "--clients"),
        (("load", URL, "--rate", "0"), "--rate"),
        (("load", "no url"), "write http://HOST"),
        (("lod", URL), "No such command"),
        (("status", "--fleet", "/nonexistent/fleet.json"), "cannot read the fleet file"),
        (("check", "state", "--redis", "http://x"), "redis_url: there is no scheme 'http'"),
        (("check", "state", "--redis", "memory://"), "redis_url: memory:// is inside one node"),
        (("check", "state", "--redis", "redis://127.0.0.1:1/0"), "cannot read Redis"),
        (("check", "stickiness", URL), "connection refused"),
        (("load", URL), "connection refused"),
        (("monitor", URL, "--interval", "0"), "--interval"),
    ],
)
def test_a_usage_error_is_one_line(args: tuple[str, ...], words: str) -> None:
    """Exit code 2, one line on stderr that names the cause, nothing on stdout."""
    outcome = wsfleet(*args)
    assert outcome.code == 2, outcome
    assert words in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert outcome.stderr.startswith("wsfleet: ")
    assert outcome.stdout == ""


@pytest.mark.parametrize("args", [("load", URL, "--clients", "x"), ("check", "stickiness", URL)])
def test_with_json_an_error_is_an_object_too(args: tuple[str, ...]) -> None:
    """A program that reads stdout finds one object with the reason."""
    outcome = wsfleet(*args, "--json")
    assert outcome.code == 2
    assert outcome.document["ok"] is False
    assert outcome.document["error"] in outcome.stderr


@pytest.mark.parametrize("args", [(), ("check",), ("load",), ("check", "state"), ("serve",)])
def test_help_is_help(args: tuple[str, ...]) -> None:
    """Every command explains itself: exit code 0."""
    outcome = wsfleet(*args, "--help")
    assert outcome.code == 0
    assert outcome.stdout.startswith("Usage: wsfleet") or "Usage: wsfleet" in outcome.stdout


def test_a_command_is_a_module_of_its_name() -> None:
    """`check node` is `commands/check_node.py`, and each module there is a command's."""
    modules = {module.name for module in pkgutil.iter_modules(commands.__path__)}
    assert modules == {*Program.modules().values(), *Check.modules().values()}
    assert {"serve", "verify_delivery", "check_node"} <= modules


def test_the_help_of_load_explains_the_rate() -> None:
    """The rate is that of all clients together, which is easily misread."""
    assert "ALL clients together" in wsfleet("load", "--help").stdout


def test_starting_a_node_does_not_load_the_operators_libraries() -> None:
    """Each node would pay for them with memory: they are imported by the command that runs."""
    script = (
        "import sys, json, wsfleet.cli.main, wsfleet.cli.commands.serve;"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert not {"rich", "httpx", "picows", "redis", "pydantic"} & set(json.loads(done.stdout))

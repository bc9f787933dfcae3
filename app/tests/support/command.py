"""The command line in a process of its own, as an operator runs it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

COMMAND = [sys.executable, "-m", "wsfleet.cli"]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON object on stdout; anything else fails."""
        document = json.loads(self.stdout)
        assert isinstance(document, dict)
        return document


def wsfleet(*args: object, **environment: str) -> Outcome:
    """Run the command line as an operator does: in a process of its own."""
    env = {name: value for name, value in os.environ.items() if name != "WSFLEET_FLEET"}
    done = subprocess.run(
        [*COMMAND, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        env=env | environment,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)

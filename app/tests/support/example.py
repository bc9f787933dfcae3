"""An example's own tests, as a user runs them."""

import subprocess
import sys
from pathlib import Path


def check_own_tests(example: Path) -> str:
    """Run the tests of an example in its folder, and return their output; all must pass."""
    done = subprocess.run(
        [Path(sys.executable).with_name("pytest"), "-q", "-p", "no:cacheprovider"],
        cwd=example,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

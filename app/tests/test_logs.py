"""What comes out of the log."""

import json
import subprocess
import sys

CODE = """
import structlog
from wsfleet import logs

logs.configure("info", "node1")
structlog.get_logger("wsfleet.some").info("heard", data=b"bytes", number=7)
"""


def test_a_line_comes_out_whatever_is_in_it() -> None:
    """What JSON has no word for is written as Python would."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    line = json.loads(done.stdout)
    assert (line["event"], line["data"], line["number"]) == ("heard", "b'bytes'", 7)
    assert done.stderr == ""

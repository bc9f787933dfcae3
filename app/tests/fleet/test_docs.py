"""The examples of docs/clients.md, run as they are written, behind HAProxy."""

import re
import subprocess
import sys

import pytest

from lab.paths import ROOT
from tests.support.fleet import Rig
from tests.support.paths import JAVASCRIPT

TEXT = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
#: Node has a WebSocket of its own from version 22 on; the SDK's client would keep it running. What
#: was published is heard a moment before or after it is acknowledged.
NODE = """\
import WebSocket from 'ws'
globalThis.WebSocket = WebSocket
const print = console.log
const heard = new Promise((resolve) => {
  console.log = (...words) => { print(...words); if (words[1]?.text) resolve() }
})
%s
await heard
client.disconnect()
"""


def examples(language: str) -> list[str]:
    """Return the code blocks of a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert found
    return found


def run(command: list[str], text: str, fleet: Rig) -> str:
    """Run an example, which must exit with 0; return its output."""
    text = text.replace("//LB/", f"{fleet.base_url.removeprefix('http:')}/")
    done = subprocess.run(
        command, input=text, cwd=JAVASCRIPT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("text", examples("python"), ids=lambda text: text.splitlines()[-1])
def test_python(fleet: Rig, text: str) -> None:
    """A client that keeps its cookie returns to its node; the SDK gets its own message."""
    heard = run([sys.executable, "-"], text, fleet)
    assert ("centrifuge" in text) == ("'text': 'hello'" in heard)


@pytest.mark.usefixtures("modules")
def test_javascript(fleet: Rig) -> None:
    """The SDK connects, and gets its own message."""
    (text,) = examples("js")
    heard = run(["node", "--input-type=module", "-"], NODE % text, fleet)
    assert "in false false" in heard
    assert "{ text: 'hello' }" in heard

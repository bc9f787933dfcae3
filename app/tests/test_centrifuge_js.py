"""The Centrifuge protocol with the SDK for JavaScript, unmodified, on two nodes."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.harness import StartNode
from tests.test_centrifuge_endpoint import CONFIG, token

HERE = Path(__file__).parent / "js"
KEY = "a key"


@pytest.fixture(scope="session")
def modules() -> None:
    """Install what package-lock.json says, once."""
    npm = shutil.which("npm")
    assert npm, "npm is not installed; scripts/test installs it"
    if (HERE / "node_modules" / ".package-lock.json").exists():
        return
    subprocess.run([npm, "ci", "--silent"], cwd=HERE, check=True, timeout=120)


@pytest.mark.usefixtures("modules")
async def test_the_javascript_sdk(start_node: StartNode, tmp_path: Path) -> None:
    """Publish, presence, history, errors, a reconnect with recovery, the end by the server."""
    config = tmp_path / "config.yml"
    config.write_text(CONFIG + f'http_api: {{key: "{KEY}"}}\n')
    one, two = await start_node(config=config), await start_node(config=config)
    seen = await run(one.url, two.url, KEY, token("js"))
    assert seen["publications"] == [[n + 1, {"n": n}] for n in range(10)]
    assert seen["subscribed"] == [[False, False], [True, True]]
    assert sorted(seen["presence"]) == ["", "js"]
    assert seen["stats"] == {"numClients": 2, "numUsers": 2}
    assert seen["history"] == [1, 2]
    assert seen["errors"] == {"rpc": 108, "unknown": 102}
    assert seen["joins"][:2] == ["js", ""]
    assert seen["unsubscribed"] == 2000


async def run(*arguments: str) -> Any:
    """Run the script; it ends within 30 seconds, or the test fails."""
    process = await asyncio.create_subprocess_exec(
        "node", "sdk.mjs", *arguments, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 30)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, err.decode()
    return json.loads(out)

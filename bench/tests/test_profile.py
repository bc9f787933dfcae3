"""The groups of the samples of the node's stack."""

from __future__ import annotations

from collections import Counter

import pytest

from bench import profile
from bench.modes import MODES
from bench.rig import BenchError

RUN = "serve (wsfleet/cli/commands/serve.py:19);Runner.run (asyncio/runners.py:118)"


def test_a_sample_belongs_to_the_innermost_known_frame() -> None:
    """A library's time counts for its caller; the event loop and the socket write are groups."""
    raw = "\n".join(
        [
            f"{RUN} 4",
            f"{RUN};Hub._flush (wsfleet/hub/hub.py:103) 1",
            f"{RUN};Hub._flush (wsfleet/hub/hub.py:109);"
            "Connection.send (wsfleet/hub/connection.py:92) 3",
            f"{RUN};Lane.call (wsfleet/redis/primary.py:74);pack (redis/connection.py:9) 1",
            f"{RUN};Lane.call (wsfleet/redis/primary.py:74);meth (structlog/_native.py:9) 1",
            f"{RUN};Output._flush (wsfleet/telemetry/log_output.py:9) 1",
            f"{RUN};HTTP.data_received (wsfleet/transports/websocket.py:97) 1",
        ]
    )
    found = profile.shares(raw)
    assert list(found) == list(profile.GROUPS)
    samples = {"writing": 3, "event": 4, "HTTP": 1, "client": 0, "Redis:": 1, "hub": 1, "log": 2}
    wanted = {name: count / 12 for name, count in (samples | {"anything": 0}).items()}
    assert {name.split()[0]: share for name, share in found.items()} == wanted


def test_no_sample_is_an_error() -> None:
    """A profile without samples has no shares."""
    with pytest.raises(BenchError, match="took no samples"):
        profile.shares("")


def test_the_profiled_modes_exist() -> None:
    """Each profiled mode has a title, and each group has folders or a rule of its own."""
    assert set(profile.PROFILED) <= set(MODES)
    assert set(Counter(profile.GROUPS).values()) == {1}

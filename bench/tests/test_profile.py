"""Whose time a sample of the node's stack is."""

from __future__ import annotations

from collections import Counter

import pytest

from bench import profile
from bench.modes import MODES
from bench.rig import BenchError

RUN = "serve (wsfleet/cli/commands/serve.py:16);Runner.run (asyncio/runners.py:118)"


def test_samples_belong_to_the_innermost_frame_that_says_something() -> None:
    """A library's time is its caller's; the loop's own and the write to a socket are apart."""
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
    """A profile without samples would have shares of nothing."""
    with pytest.raises(BenchError, match="saw nothing"):
        profile.shares("")


def test_what_is_profiled_are_modes() -> None:
    """Each can be named in the table, and every group has modules or is written by itself."""
    assert set(profile.PROFILED) <= set(MODES)
    assert set(Counter(profile.GROUPS).values()) == {1}

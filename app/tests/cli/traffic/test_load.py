"""A load run, without a server."""

import json
import resource
from typing import Any

import pytest

from wsfleet.cli.access.endpoint import parse_url
from wsfleet.cli.errors import CannotRun
from wsfleet.cli.traffic import load as load_module
from wsfleet.cli.traffic.generator import raise_file_limit
from wsfleet.cli.traffic.load import LoadPlan, LoadRun


async def test_other_traffic_is_not_counted() -> None:
    """Broadcasts of somebody else, and nonsense, are not taken for messages of this run."""
    run = LoadRun(parse_url("http://host"), LoadPlan(clients=2, rate=1, duration=5))

    def text(**data: Any) -> bytes:
        return json.dumps({"type": "message", "data": data}).encode()

    assert run.number_of(text(run=run.id, number=4)) == 4
    assert run.number_of(text(run=run.id, number=4)) == 4
    for foreign in (
        text(run="another", number=4),
        text(run=run.id, number=5),
        text(run=run.id, number=-1),
        text(run=run.id, number="4"),
        b'{"type":"message","data":"text"}',
        b"not JSON",
    ):
        assert run.number_of(foreign) == load_module._FOREIGN
    assert run.number_of(b'{"type":"ack"}') == load_module._ANSWER
    assert run.tally.errors == {"not JSON": 1}


async def test_the_memory_of_texts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of remembered broadcasts is bounded."""
    monkeypatch.setattr(load_module, "_TEXTS", 8)
    run = LoadRun(parse_url("http://host"), LoadPlan(clients=2, rate=1000, duration=1))
    for number in range(100):
        data = {"run": run.id, "number": number}
        assert run.number_of(json.dumps({"type": "message", "data": data}).encode()) == number
    assert len(run._texts) <= 8


def test_too_few_files_are_an_error_with_the_way_to_mend_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The soft limit is raised as far as it must be; a hard limit below the need is refused."""
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 1000))
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    raise_file_limit(36)
    assert limits == []
    raise_file_limit(936)
    assert limits == [(1000, 1000)]
    with pytest.raises(CannotRun, match=r"1,001 open files.*is 1,000.*ulimit -n 1001.*--clients"):
        raise_file_limit(937)

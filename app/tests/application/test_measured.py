"""Measured calls of backends."""

from __future__ import annotations

import pytest

from wsfleet.application.measured import measured
from wsfleet.application.port import BackendError, Error
from wsfleet.telemetry.metrics import Metrics


def count(metrics: Metrics, reason: str) -> float | None:
    """Return the number of failed calls for a reason."""
    labels = {"event": "rpc", "namespace": "room", "reason": reason}
    return metrics.registry.get_sample_value("wsfleet_handler_errors_total", labels)


async def test_an_exception_is_logged_once_with_its_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whoever raises it, and whether it is a failure already, there is one line."""

    async def broken() -> None:
        raise KeyError("oops")

    async def failed() -> None:
        try:
            await broken()
        except KeyError as error:
            raise BackendError("chat.rename raised KeyError", reason="exception") from error

    metrics = Metrics()
    for number, call in enumerate((broken, failed), 1):
        with pytest.raises(BackendError):
            await measured(metrics, "rpc", "room", call())
        logged = capsys.readouterr().out
        assert logged.count("backend_failed") == 1
        assert logged.count("Traceback") == 1
        assert "in broken" in logged
        assert count(metrics, "exception") == number


async def test_a_refusal_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """It is an answer."""

    async def refuse() -> None:
        raise Error(403, "not your room")

    metrics = Metrics()
    with pytest.raises(Error, match="not your room"):
        await measured(metrics, "rpc", "room", refuse())
    assert not capsys.readouterr().out
    assert not count(metrics, "exception")


async def test_a_failure_for_a_gone_client_is_logged_and_not_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A handler that raises has a bug, whoever called it."""

    async def broken() -> None:
        raise KeyError("oops")

    metrics = Metrics()
    with pytest.raises(BackendError):
        await measured(metrics, "rpc", "room", broken(), gone=lambda: True)
    assert "Traceback" in capsys.readouterr().out
    assert not count(metrics, "exception")

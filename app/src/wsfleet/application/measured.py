"""Calls of backends: each is measured, and a failure is logged once and counted."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from wsfleet.application.port import FAILURES, BackendError, Disconnect, Error
from wsfleet.telemetry.metrics import Metrics

R = TypeVar("R")

log = structlog.get_logger(__name__)


def prepare(metrics: Metrics, event: str, namespace: str) -> None:
    """Begin the counts of an event at 0, so that its first failure is an increase."""
    metrics.handler_seconds.labels(event, namespace)
    metrics.handlers_running.labels(event, namespace)
    for reason in FAILURES:
        metrics.handler_errors.labels(event, namespace, reason)


def log_failure(failure: BackendError, event: str, namespace: str) -> None:
    """Log a failure, with the traceback of the exception that caused it."""
    log.warning(
        "backend_failed",
        backend_event=event,
        namespace=namespace,
        reason=failure.reason,
        error=str(failure),
        exc_info=failure.__cause__,
    )


async def measured(
    metrics: Metrics,
    event: str,
    namespace: str,
    call: Awaitable[R],
    gone: Callable[[], bool] = lambda: False,
) -> R:
    """Return the answer of a backend; if the client is `gone` meanwhile, nothing is counted.

    A refusal is an answer.

    Raises:
        Error, Disconnect: the backend refuses.
        BackendError: it failed, in any other way.
    """
    running = metrics.handlers_running.labels(event, namespace)
    running.inc()
    started = time.monotonic()
    try:
        try:
            return await call
        except (BackendError, Error, Disconnect):
            raise
        except Exception as error:
            raise BackendError(f"{type(error).__name__}: {error}") from error
    except BackendError as failure:
        if not gone():
            metrics.handler_errors.labels(event, namespace, failure.reason).inc()
        log_failure(failure, event, namespace)
        raise
    finally:
        running.dec()
        if not gone():
            metrics.handler_seconds.labels(event, namespace).observe(time.monotonic() - started)

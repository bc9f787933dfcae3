"""The run of ``wsfleet verify-delivery`` from the first subscription to the last delivery."""

import asyncio
import contextlib
import signal
from typing import IO

import uvloop

from wsfleet.cli.access.endpoint import FleetEndpoint
from wsfleet.cli.errors import CannotRun
from wsfleet.cli.traffic.delivery_clients import (
    DeliverySubscriber,
    Party,
    PlainPublisher,
    PlainSubscriber,
    SdkPublisher,
    SdkSubscriber,
)
from wsfleet.cli.traffic.delivery_run import RETRY_PAUSE, DeliveryPlan, DeliveryRun
from wsfleet.protocol.plain import CHANNEL

#: Seconds for all subscribers to subscribe, and at the end for the last deliveries.
ENTRY, DRAIN = 20.0, 20.0
#: The most seconds for closing all connections.
CLOSING = 2.0


def run_delivery(endpoint: FleetEndpoint, plan: DeliveryPlan) -> DeliveryRun:
    """Publish and listen until everything is delivered, and return the run with its account.

    Raises:
        CannotRun: the run is too large, a subscriber cannot subscribe, or the file for the events
            cannot be written.

    """
    if plan.protocol == "plain" and plan.channel != CHANNEL:
        raise CannotRun(f"the plain protocol has one channel, {CHANNEL}: leave --channel out")
    if plan.events is None:
        return uvloop.run(_execute(endpoint, plan, None))
    try:
        log = plan.events.open("wb")
    except OSError as error:
        raise CannotRun(f"cannot write {plan.events}: {error.strerror}") from error
    with log:
        return uvloop.run(_execute(endpoint, plan, log))


async def _execute(
    endpoint: FleetEndpoint, plan: DeliveryPlan, log: IO[bytes] | None
) -> DeliveryRun:
    run = DeliveryRun(endpoint, plan, log)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _finish_at_first, loop, run)
    plain = plan.protocol == "plain"
    subscribers: list[DeliverySubscriber] = [
        (PlainSubscriber if plain else SdkSubscriber)(run, n) for n in range(plan.subscribers)
    ]
    publishers: list[Party] = [
        (PlainPublisher if plain else SdkPublisher)(run, n) for n in range(plan.publishers)
    ]
    listening = [asyncio.create_task(subscriber.work()) for subscriber in subscribers]
    publishing = [asyncio.create_task(publisher.work()) for publisher in publishers]
    course = asyncio.create_task(_course(run, subscribers, publishing))
    try:
        ended, _ = await asyncio.wait([course, *listening], return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()  # a subscriber ends only with an error
    finally:
        run.stopping = True
        tasks = [course, *listening, *publishing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING):
                ends = (party.stop() for party in [*publishers, *subscribers])
                await asyncio.gather(*ends, return_exceptions=True)
    return run


def _finish_at_first(loop: asyncio.AbstractEventLoop, run: DeliveryRun) -> None:
    """Stop publishing at the first signal; a second one ends the process."""
    run.finish()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)


async def _course(
    run: DeliveryRun, subscribers: list[DeliverySubscriber], publishing: list[asyncio.Task[None]]
) -> None:
    timeout = run.plan.timeout
    try:
        async with asyncio.timeout(min(ENTRY, timeout)):
            await asyncio.gather(*(subscriber.ready.wait() for subscriber in subscribers))
    except TimeoutError:
        missing = sum(not subscriber.ready.is_set() for subscriber in subscribers)
        raise CannotRun(
            f"{missing:,} of {len(subscribers):,} subscribers could not subscribe "
            f"({run.last_error}). "
            "Check the URL, and the fleet with `wsfleet status`."
        ) from None
    with contextlib.suppress(TimeoutError):  # the report counts what is not acknowledged
        async with asyncio.timeout(timeout - run.at):
            run.entered.set()
            await asyncio.gather(*publishing)
            async with asyncio.timeout(DRAIN):
                while not run.complete():
                    await asyncio.sleep(RETRY_PAUSE)

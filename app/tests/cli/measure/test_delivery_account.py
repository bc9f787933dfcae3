"""The account of a delivery check: a sound log is clean, and every fault of a log is named."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfleet.cli.errors import CannotRun
from wsfleet.cli.measure.delivery_account import Account, Findings
from wsfleet.cli.measure.delivery_events import (
    Acknowledged,
    DeliveryPosition,
    Disconnected,
    Event,
    Received,
    Sent,
    Subscribed,
    Terms,
)

EPOCH = "epoch"
MESSAGES = 10
FAULTS = ("lost", "duplicated", "reordered", "recovered_wrongly")


def account_of(log: list[Event], **terms: int) -> Findings:
    """Return the account of a log."""
    account = Account(Terms(publishers=1, subscribers=1, messages=terms.get("messages", MESSAGES)))
    for event in log:
        account.enter(event)
    return account.findings()


def faults_of(findings: Findings) -> dict[str, int]:
    """The kinds that occurred, with their numbers."""
    counts = {name: getattr(findings, name).count for name in FAULTS}
    return {name: count for name, count in counts.items() if count}


def publish(sequence: int, at: float) -> list[Event]:
    """One message, acknowledged."""
    return [Sent(at, 0, sequence), Acknowledged(at, 0, sequence)]


def hear(sequence: int, at: float) -> Event:
    """The same, heard at its place in the stream."""
    return Received(at, 0, 0, sequence, sequence + 1)


def sound_log(*, away: tuple[int, int] | None = None) -> list[Event]:
    """All is published and heard; during `away` the subscriber is gone, and then recovers."""
    log: list[Event] = [Subscribed(0.0, 0, DeliveryPosition(EPOCH, 0))]
    first, last = away or (MESSAGES, MESSAGES)
    for sequence in range(MESSAGES):
        at = float(sequence + 1)
        if sequence == first:
            log.append(Disconnected(at, 0))
        if sequence == last:
            position = DeliveryPosition(EPOCH, first)
            log.append(Subscribed(at, 0, position, recovering=True, recovered=True))
            log += [hear(missed, at) for missed in range(first, last)]
        log += publish(sequence, at)
        if not first <= sequence < last:
            log.append(hear(sequence, at))
    return log


spans = st.tuples(st.integers(1, MESSAGES - 2), st.integers(1, MESSAGES - 1)).map(
    lambda pair: (min(pair), max(pair))
)


@given(away=st.none() | spans.filter(lambda span: span[0] < span[1]))
def test_a_sound_log_is_clean(away: tuple[int, int] | None) -> None:
    """With or without a reconnect that recovers."""
    findings = account_of(sound_log(away=away))
    assert faults_of(findings) == {}
    assert findings.clean
    assert (findings.acknowledged, findings.delivered) == (MESSAGES, MESSAGES)
    assert findings.reconnects == (1 if away else 0)


def indexes(log: list[Event]) -> list[int]:
    """Where something was heard."""
    return [number for number, event in enumerate(log) if isinstance(event, Received)]


@given(victim=st.integers(0, MESSAGES - 1))
def test_a_message_that_never_came_is_lost(victim: int) -> None:
    """Whichever it is; nothing else is blamed."""
    log = sound_log()
    del log[indexes(log)[victim]]
    findings = account_of(log)
    assert faults_of(findings) == {"lost": 1}
    assert findings.lost.examples[0]["sequence"] == victim


@given(victim=st.integers(0, MESSAGES - 1), later=st.integers(0, 5))
def test_a_message_that_came_twice_is_duplicated(victim: int, later: int) -> None:
    """At once or some messages later."""
    log = sound_log()
    places = indexes(log)
    copy = log[places[victim]]
    log.insert(min(places[min(victim + later, MESSAGES - 1)] + 1, len(log)), copy)
    assert faults_of(account_of(_at_their_time(log))) == {"duplicated": 1}


@given(first=st.integers(0, MESSAGES - 2))
def test_messages_that_changed_places_are_reordered(first: int) -> None:
    """Both came, in the wrong order."""
    log = sorted(sound_log(), key=lambda event: isinstance(event, Received))
    one, two = indexes(log)[first : first + 2]
    log[one], log[two] = log[two], log[one]
    faults = faults_of(account_of(_at_their_time(log)))
    assert "reordered" in faults
    assert "lost" not in faults


def _at_their_time(log: list[Event]) -> list[Event]:
    """The log with times that do not run backwards."""
    latest, straight = 0.0, []
    for event in log:
        latest = max(latest, event.at)
        straight.append(event._replace(at=latest))
    return straight


def test_a_recovery_that_left_something_out_is_wrong() -> None:
    """The server said `recovered: true`, and one of what was missed never came."""
    log = sound_log(away=(3, 6))
    log.remove(next(e for e in log if isinstance(e, Received) and e.sequence == 4))
    faults = faults_of(account_of(log))
    assert faults["lost"] == 1
    assert faults["recovered_wrongly"] == 1


def test_a_failed_recovery_is_not_a_loss() -> None:
    """`recovered: false`: counted apart."""
    log = [
        event
        for event in sound_log(away=(3, 6))
        if not (isinstance(event, Received) and 3 <= event.sequence < 6)
    ]
    told = next(n for n, e in enumerate(log) if isinstance(e, Subscribed) and e.recovering)
    log[told] = Subscribed(log[told].at, 0, DeliveryPosition(EPOCH, 6), recovering=True)
    findings = account_of(log)
    assert faults_of(findings).get("lost", 0) == 0
    assert findings.missed_while_away.count == 3


@pytest.mark.parametrize("position", [None, DeliveryPosition(EPOCH, 1)])
def test_a_later_reconnect_excuses_no_earlier_loss(position: DeliveryPosition | None) -> None:
    """A message that did not come while its subscriber was there is lost, whatever came after."""
    log: list[Event] = [
        Subscribed(0.0, 0, position and DeliveryPosition(EPOCH, 0)),
        *publish(0, 2.0),
    ]
    log += [Disconnected(50.0, 0), Subscribed(51.0, 0, position, recovering=position is not None)]
    findings = account_of(log, messages=1)
    assert findings.lost.count == 1
    assert findings.missed_while_away.count == 0


@pytest.mark.parametrize(("latency", "lost"), [(0.1, 1), (4.0, 0)])
def test_a_message_in_flight_at_a_disconnect_is_missed(latency: float, lost: int) -> None:
    """Without recovery; how long a message is on its way, the slowest of the run shows."""
    log: list[Event] = [Subscribed(0.0, 0, None), Sent(1.0, 0, 0), Acknowledged(1.0, 0, 0)]
    log += [Received(1.0 + latency, 0, 0, 0, 0), Sent(6.0, 0, 1), Acknowledged(6.0, 0, 1)]
    log += [Disconnected(9.0, 0), Subscribed(10.0, 0, None)]
    findings = account_of(log, messages=2)
    assert findings.lost.count == lost
    assert findings.missed_while_away.count == 1 - lost


def test_a_second_copy_of_a_message_that_was_sent_twice_is_a_retry() -> None:
    """Without an idempotency key a copy at another offset is not a duplicate."""
    log: list[Event] = [Subscribed(0.0, 0, DeliveryPosition(EPOCH, 0))]
    log += [Sent(1.0, 0, 0), Sent(2.0, 0, 0), Acknowledged(2.0, 0, 0)]
    log += [Received(2.0, 0, 0, 0, 1), Received(2.0, 0, 0, 0, 2)]
    findings = account_of(log, messages=1)
    assert faults_of(findings) == {}
    assert findings.retried == 1


def test_with_an_idempotency_key_a_second_copy_is_a_duplicate() -> None:
    """However often it was sent."""
    log: list[Event] = [Subscribed(0.0, 0, DeliveryPosition(EPOCH, 0))]
    log += [Sent(1.0, 0, 0, True), Sent(2.0, 0, 0, True), Acknowledged(2.0, 0, 0)]
    log += [Received(2.0, 0, 0, 0, 1), Received(2.0, 0, 0, 0, 2)]
    assert faults_of(account_of(log, messages=1)) == {"duplicated": 1}


@pytest.mark.parametrize(
    "change",
    [
        lambda log: log[:-1],  # the last was not heard
        lambda log: [*log, log[-1]],  # the last was heard twice
    ],
)
def test_the_end_of_a_log_counts_as_well(change: Callable[[list[Event]], list[Event]]) -> None:
    """A fault in the last message is a fault."""
    assert not account_of(change(sound_log())).clean


def test_a_run_that_does_not_fit_is_refused() -> None:
    """With the way to make it smaller."""
    with pytest.raises(CannotRun, match="Lower --messages"):
        Account(Terms(publishers=1000, subscribers=5000, messages=1000))


LEFT, BACK = 3, 6


def recovered_log() -> list[Event]:
    """A subscriber leaves, comes back and recovers."""
    return sound_log(away=(LEFT, BACK))


def place_of(log: list[Event], sequence: int) -> int:
    """Where a message was heard."""
    return next(n for n in indexes(log) if log[n] == hear(sequence, log[n].at))


def without(log: list[Event], sequence: int) -> list[Event]:
    """The log in which a message was never heard."""
    place = place_of(log, sequence)
    return log[:place] + log[place + 1 :]


def heard_again(log: list[Event], sequence: int) -> list[Event]:
    """The log in which a message came once more, behind the last that was recovered."""
    place = place_of(log, BACK - 1)
    return [*log[: place + 1], hear(sequence, log[place].at), *log[place + 1 :]]


def swapped(log: list[Event], one: int, two: int) -> list[Event]:
    """The log in which two messages changed places."""
    first, second = place_of(log, one), place_of(log, two)
    log[first], log[second] = hear(two, log[first].at), hear(one, log[second].at)
    return log


def answered(
    log: list[Event], position: DeliveryPosition, *, recovered: bool = True
) -> list[Event]:
    """The log in which the server said something else of the recovery."""
    place = next(n for n, e in enumerate(log) if isinstance(e, Subscribed) and e.recovering)
    log[place] = Subscribed(log[place].at, 0, position, recovering=True, recovered=recovered)
    return log


@pytest.mark.parametrize(
    ("log", "fault"),
    [
        (without(recovered_log(), LEFT - 1), "lost"),  # the last before it left
        (without(recovered_log(), LEFT), "lost"),
        (without(recovered_log(), BACK - 1), "recovered_wrongly"),
        (without(recovered_log(), BACK), "lost"),  # the first that is live again
        (heard_again(recovered_log(), LEFT - 1), "duplicated"),  # heard before, and recovered
        (heard_again(recovered_log(), LEFT), "duplicated"),
        (swapped(recovered_log(), LEFT, LEFT + 1), "reordered"),
        (  # recovered after live
            [*without(recovered_log(), BACK - 1), hear(BACK - 1, MESSAGES)],
            "reordered",
        ),
        (answered(recovered_log(), DeliveryPosition("another", LEFT)), "recovered_wrongly"),
        (answered(recovered_log(), DeliveryPosition(EPOCH, LEFT - 1)), "recovered_wrongly"),
        (
            answered(recovered_log(), DeliveryPosition(EPOCH, BACK), recovered=False),
            "recovered_wrongly",
        ),
    ],
)
def test_a_fault_across_a_reconnect_is_found(log: list[Event], fault: str) -> None:
    """Whether it was before, in or after the recovery."""
    assert fault in faults_of(account_of(_at_their_time(log)))

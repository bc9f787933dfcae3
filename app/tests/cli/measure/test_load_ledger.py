"""The books of a load run, fed with logs that have faults."""

from dataclasses import replace

import pytest

from wsfleet.cli.errors import CannotRun
from wsfleet.cli.measure.load_ledger import Ledger, Verdict

CLIENTS, MESSAGES = 4, 12
PERFECT = Verdict(
    sent=12, acknowledged=12, deliveries=36, expected=36, lost=0, duplicated=0, reordered=0,
    echoed=0,
)  # fmt: skip

Log = list[tuple[int, int]]


def perfect_log() -> Log:
    """Return (receiver, message) of a run without a fault."""
    return [(r, n) for n in range(MESSAGES) for r in range(CLIENTS) if n % CLIENTS != r]


def booked(log: Log, unacknowledged: tuple[int, ...] = ()) -> Ledger:
    """Return the ledger of a run in which everything was sent, and received as in the log."""
    ledger = Ledger(CLIENTS, MESSAGES, warmup=4)
    for number in range(MESSAGES):
        ledger.sending(number, float(number))
        if number not in unacknowledged:
            ledger.acknowledge(number, number + 0.25)
    for receiver, number in log:
        ledger.books[receiver].got(number, number + 0.5)
    return ledger


def test_a_perfect_run_has_no_faults() -> None:
    """Every other client got every message once and in order: nothing to report."""
    ledger = booked(perfect_log())
    assert ledger.verdict() == PERFECT
    assert ledger.deliveries == ledger.expected == 36


def test_a_missing_delivery_is_lost() -> None:
    """Each pair of an acknowledged message and a receiver without it is counted."""
    log = [entry for entry in perfect_log() if entry not in {(0, 1), (0, 2), (3, 9)}]
    assert booked(log).verdict() == replace(PERFECT, deliveries=33, lost=3)


def test_a_silent_receiver_lost_everything() -> None:
    """A receiver that heard nothing lost all messages but its own."""
    log = [entry for entry in perfect_log() if entry[0] != 2]
    assert booked(log).verdict() == replace(PERFECT, deliveries=27, lost=9)


def test_an_unacknowledged_message_is_not_lost() -> None:
    """Nobody promised that a message without acknowledgement arrives; arriving is fine, too."""
    log = [entry for entry in perfect_log() if entry[1] != 5 or entry[0] == 0]
    verdict = booked(log, unacknowledged=(5,)).verdict()
    assert verdict == replace(PERFECT, acknowledged=11, expected=33, deliveries=34)


def test_a_loss_is_not_hidden_by_an_unacknowledged_delivery() -> None:
    """A message that nobody counts on does not make up for one that is missing."""
    log = [entry for entry in perfect_log() if entry != (0, 1)]
    assert booked(log, unacknowledged=(5,)).verdict().lost == 1


def test_each_further_delivery_is_a_duplicate() -> None:
    """A message that came three times was duplicated twice, and does not hide a loss."""
    log = [entry for entry in perfect_log() if entry != (0, 3)] + [(0, 1), (0, 1)]
    assert booked(log).verdict() == replace(PERFECT, deliveries=35, lost=1, duplicated=2)


def test_a_senders_messages_swapped_are_reordered() -> None:
    """A message that comes after a later one of the same sender is out of order."""
    log = perfect_log()
    first, later = log.index((0, 1)), log.index((0, 9))
    log[first], log[later] = log[later], log[first]
    # 9 came first: 1, and 5 between them, are both late.
    assert booked(log).verdict() == replace(PERFECT, reordered=2)


def test_two_senders_messages_may_pass_each_other() -> None:
    """Only the order of one sender's messages is promised."""
    log = perfect_log()
    one, other = log.index((0, 1)), log.index((0, 2))
    log[one], log[other] = log[other], log[one]
    assert booked(log).verdict() == PERFECT


def test_a_message_that_comes_back_is_an_echo() -> None:
    """A message that its sender receives is a fault, and not a delivery."""
    assert booked([*perfect_log(), (1, 5)]).verdict() == replace(PERFECT, echoed=1)


def test_warm_up_messages_are_counted_but_not_timed() -> None:
    """The latencies are those of the messages after the warm-up."""
    ledger = booked(perfect_log())
    acks, deliveries = ledger.ack_latency.whole(), ledger.delivery_latency.whole()
    assert (acks.count, deliveries.count) == (8, 24)
    assert (acks.highest, deliveries.lowest) == (0.25, 0.5)


def test_too_large_a_run_is_refused() -> None:
    """A run whose books would not fit says so, and names the options that make it smaller."""
    with pytest.raises(CannotRun, match=r"MB of memory.*--clients"):
        Ledger(5_000, 1_000_000)
    Ledger(2, 1_000_000)

"""The histogram: bounded in size, and right to within 1/64."""

import random

import pytest

from wsfleet.cli.measure.histogram import Histogram, Timeline, _index, _upper


def test_percentiles_are_close_to_the_sorted_list() -> None:
    """Each percentile is at least the true one, and at most 1/64 above it."""
    generator = random.Random(7)  # noqa: S311  # a repeatable sample
    durations = sorted(generator.lognormvariate(-5, 2) for _ in range(20_000))
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    for percent in (1, 50, 95, 99, 99.9, 100):
        true = durations[max(0, -int(-len(durations) * percent // 100) - 1)]
        measured = histogram.percentile(percent)
        assert measured is not None
        assert true - 1e-6 <= measured <= true * (1 + 1 / 64) + 1e-6


@pytest.mark.parametrize("micros", [0, 1, 127, 128, 129, 255, 256, 1_000_003, 2**32 - 1])
def test_a_bucket_contains_its_values(micros: int) -> None:
    """A value's bucket ends at or above it, and the bucket before ends below it."""
    index = _index(micros)
    assert _upper(index) >= micros
    assert index == 0 or _upper(index - 1) < micros


def test_add_and_index_agree() -> None:
    """add(), which computes the bucket in its own way, agrees with _index()."""
    for exponent in range(32):
        for micros in (1 << exponent, (1 << exponent) + (1 << exponent) // 3):
            histogram = Histogram()
            histogram.add((micros + 0.5) / 1e6)
            assert histogram._counts[_index(micros)] == 1


def test_extremes_are_exact_and_odd_values_are_taken() -> None:
    """Lowest and highest are kept as they are; negative counts as 0, hours as the last bucket."""
    histogram = Histogram()
    for duration in (0.25, 100_000.0, -0.001):
        histogram.add(duration)
    assert (histogram.count, histogram.lowest, histogram.highest) == (3, 0.0, 100_000.0)
    assert histogram.summary()["max_ms"] == 100_000_000.0


def test_an_empty_histogram_has_no_percentiles() -> None:
    """Nothing measured is None, not 0."""
    assert Histogram().percentile(50) is None
    assert set(Histogram().summary().values()) == {0, None}


def test_merged_histograms_are_one_of_all() -> None:
    """Counts, extremes and percentiles are those of both together."""
    one, other, both = Histogram(), Histogram(), Histogram()
    for number in range(1, 101):
        (one if number % 3 else other).add(number / 1000)
        both.add(number / 1000)
    one.merge(other)
    assert one.summary() == both.summary()
    assert list(one.buckets()) == list(both.buckets())
    assert sum(count for _, count in one.buckets()) == 100


@pytest.mark.parametrize("seconds", [1, 29.9, 31, 1000, 100_000])
def test_a_timeline_is_bounded_and_loses_nothing(seconds: float) -> None:
    """However long it gets, each duration is in the part of the time in which it began."""
    timeline = Timeline()
    for number in range(1000):
        timeline.add(number / 1000 * seconds, number / 1000)
    parts = list(timeline.parts())
    assert len(parts) <= 120
    assert sum(part.count for _, part in parts) == timeline.whole().count == 1000
    for middle, part in parts:
        begin, end = middle - timeline.width / 2, middle + timeline.width / 2
        assert begin <= part.lowest * seconds + 1e-9
        assert part.highest * seconds < end + 1e-9


def test_a_timeline_has_gaps_where_nothing_began() -> None:
    """Parts without a duration are left out; what comes late is put where it began."""
    timeline = Timeline()
    for at in (10.0, 0.1, 20.0):
        timeline.add(at, 1.0)
    assert [middle for middle, _ in timeline.parts()] == [0.125, 10.125, 20.125]

import random

import pytest

from loadtests.common.stats import paired_ratio, percentile


def test_percentile_interpolates() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile(range(101), 95) == 95.0
    assert percentile([], 95) is None


def test_ratio_is_paired_and_the_median_of_units() -> None:
    # Units differ by a factor of 100 in speed; unpaired, that would drown the ratios.
    plain = {(0, 0): 1.0, (0, 1): 100.0, (0, 2): 10.0}
    fast = {(0, 0): 2.0, (0, 1): 150.0, (0, 2): 30.0, (0, 3): 99.0}
    ratio = paired_ratio(fast, plain)
    assert ratio is not None
    assert (ratio.median, ratio.pairs, ratio.repeats) == (2.0, 3, (2.0,))
    assert ratio.low is not None
    assert ratio.high is not None
    assert 1.5 <= ratio.low <= 2.0 <= ratio.high <= 3.0


def test_one_disturbed_repeat_moves_neither_its_unit_nor_the_whole() -> None:
    plain = dict.fromkeys(((repeat, unit) for repeat in range(3) for unit in range(4)), 10.0)
    fast = dict.fromkeys(plain, 12.0) | {(1, 2): 1.0}
    ratio = paired_ratio(fast, plain)
    assert ratio is not None
    assert ratio.median == pytest.approx(1.2)
    assert ratio.repeats == pytest.approx((1.2, 1.2, 1.2))


def test_interval_covers_the_true_ratio_about_as_often_as_it_says() -> None:
    generator, covered = random.Random(7), 0
    for trial in range(60):
        keys = [(0, unit) for unit in range(25)]
        plain = dict.fromkeys(keys, 1.0)
        ratio = paired_ratio({key: generator.gauss(1.5, 0.3) for key in keys}, plain, seed=trial)
        assert ratio is not None
        assert ratio.low is not None
        assert ratio.high is not None
        covered += ratio.low <= 1.5 <= ratio.high
    assert 50 <= covered <= 60


def test_bootstrap_is_determined_by_its_seed() -> None:
    plain = {(0, unit): 1.0 for unit in range(8)}
    fast = {(0, unit): 1.0 + unit / 7 for unit in range(8)}
    assert paired_ratio(fast, plain, seed=3) == paired_ratio(fast, plain, seed=3)
    intervals = {
        (ratio.low, ratio.high) for s in range(20) if (ratio := paired_ratio(fast, plain, seed=s))
    }
    assert len(intervals) > 1


def test_a_single_pair_has_no_interval_and_no_pair_no_ratio() -> None:
    alone = paired_ratio({(0, 0): 3.0}, {(0, 0): 2.0})
    assert alone is not None
    assert (alone.median, alone.low, alone.high) == (1.5, None, None)
    assert paired_ratio({(0, 0): 3.0}, {(0, 1): 2.0}) is None

"""Intervals: they hold the truth as often as they say."""

import doctest

import numpy as np
import pytest

from miniclip.tasks import intervals
from miniclip.tasks.intervals import accuracy_of, bootstrap, mean_interval, runs_and_images


def test_the_examples():
    assert doctest.testmod(intervals).failed == 0


def coverage(interval, draw, truth, times=400):
    rng = np.random.default_rng(1)
    ends = [interval(draw(rng)) for _ in range(times)]
    return np.mean([low <= truth <= high for low, high in ends])


def test_a_bootstrap_interval_holds_the_truth_as_often_as_it_says():
    """Right or wrong for 200 images, 70 % right: 95 of 100 intervals hold 0.7, 80 of 100 at 80."""
    def right(rng):
        return rng.random(200) < 0.7

    assert abs(coverage(lambda x: bootstrap(x, draws=300), right, 0.7) - 0.95) < 0.03
    assert abs(coverage(lambda x: bootstrap(x, level=0.8, draws=300), right, 0.7) - 0.8) < 0.06


def test_an_interval_of_any_statistic():
    def spread(rng):
        return rng.normal(0, 1, 300)

    assert abs(coverage(lambda x: bootstrap(x, np.std, draws=200), spread, 1.0, 200) - 0.95) < 0.05


@pytest.mark.parametrize("n", [2, 5, 10, 30])
def test_an_interval_of_a_few_seeds(n):
    """The bootstrap would be far too narrow for five; Student's t is not."""
    found = coverage(mean_interval, lambda rng: rng.normal(3, 2, n), 3.0, 1500)
    assert abs(found - 0.95) < 0.03
    if n == 5:
        assert coverage(lambda x: bootstrap(x, draws=200),
                        lambda rng: rng.normal(3, 2, n), 3.0) < 0.9


def test_the_same_values_give_the_same_interval():
    values = np.random.default_rng(0).random(50)
    assert bootstrap(values) == bootstrap(values) != bootstrap(values, seed=1)


def test_edges():
    assert mean_interval([4.0]) == (-np.inf, np.inf)
    assert bootstrap([1, 1, 1]) == [1, 1]
    assert accuracy_of(np.array([True] * 30)) == {"accuracy": 100.0, "interval": [100.0, 100.0]}
    for function in (bootstrap, mean_interval):
        with pytest.raises(ValueError, match="at least one value"):
            function([])


def test_an_interval_over_runs_and_images_holds_the_truth_as_often_as_it_says():
    """Five runs that differ by 4 points, on 100 images of which half are hard: 70 % right."""
    def right(rng):
        run = 0.04 * rng.standard_normal((5, 1))
        image = np.where(rng.random((1, 100)) < 0.5, 0.9, 0.5)
        return rng.random((5, 100)) < run + image

    def interval(x):
        return runs_and_images(x.mean(1), bootstrap(x.mean(0), draws=300), x.mean())

    assert 0.93 <= coverage(interval, right, 0.7) <= 1.0  # rather too wide than too narrow


def test_with_one_run_only_images_vary():
    assert runs_and_images(np.array([0.7]), [0.6, 0.9], 0.7) == (0.6, 0.9)
    low, high = runs_and_images(np.array([0.7, 0.7, 0.7]), [0.6, 0.9], 0.7)
    assert (low, high) == (0.6, 0.9), "runs that agree add nothing"

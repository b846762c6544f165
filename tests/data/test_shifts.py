"""Picture operations: what each does to a picture, counted on pictures made by hand."""

import numpy as np
import pytest

from miniclip.data import shifts
from miniclip.data.shifts import PHOTOGRAPHS, means, shifted

OPERATIONS = [shifts.sketch, shifts.posterized, shifts.textured, shifts.blurred_background,
              shifts.inverted, shifts.mosaic, shifts.stained_glass, shifts.needlework]


@pytest.fixture
def disc():
    """A red disc on blue, (64, 64, 3)."""
    y, x = np.mgrid[:64, :64] - 31.5
    return np.where((np.hypot(x, y) < 12)[..., None], (200, 20, 20), (20, 20, 200)).astype(np.uint8)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)
def test_an_operation_gives_another_picture_of_the_same_size(operation, disc):
    before = disc.copy()
    found = operation(disc, np.random.default_rng(0))
    assert found.shape == disc.shape and found.dtype == np.uint8
    assert (disc == before).all() and (found != disc).any()
    assert (operation(disc, np.random.default_rng(0)) == found).all(), "seeded"


def test_a_sketch_has_lines_where_edges_are(disc):
    found = shifts.sketch(disc, None)
    assert (found[..., 0] == found[..., 1]).all() and (found[..., 0] == found[..., 2]).all()
    assert found[2, 2, 0] > 200 and found[32, 32, 0] > 200  # paper, away from any edge
    assert found[:, 32, 0].min() < 150


def test_a_negative_twice_is_the_picture(disc):
    assert (shifts.inverted(shifts.inverted(disc, None), None) == disc).all()


def test_a_poster_has_few_colours(disc):
    assert set(np.unique(shifts.posterized(disc, None))) <= {0, 85, 170, 255}


def test_the_middle_stays_sharp():
    stripes = np.repeat((np.arange(64) % 2 * 255).astype(np.uint8)[:, None], 64, 1)
    found = shifts.blurred_background(np.stack([stripes] * 3, 2), None)
    assert (found[26:38, 26:38, 0] == stripes[26:38, 26:38]).all()
    assert np.ptp(found[10:-10, 1, 0].astype(int)) < 60


def test_tiles_have_the_mean_colour_of_what_they_cover():
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    cells = np.repeat(np.repeat([[0, 1], [2, 3]], 2, 0), 2, 1)
    found = means(image, cells)
    assert (found[:2, :2] == image[:2, :2].reshape(4, 3).mean(0).astype(int)).all()
    assert (found[2:, 2:] == found[2, 2]).all()


def test_as_they_are_means_untouched(disc):
    assert PHOTOGRAPHS["as they are"] is None
    assert (shifted(disc[None], None, seed=0) == disc).all()


def test_every_image_has_its_own_chance(disc):
    found = shifted(np.stack([disc, disc]), shifts.stained_glass, seed=0)
    assert (found[0] != found[1]).any()
    assert (shifted(disc[None], shifts.stained_glass, seed=0)[0] == found[0]).all()

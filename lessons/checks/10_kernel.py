"""Checks of exercise 10, with the log-sum-exp of the whole row beside it."""

import math

import numpy as np


def whole(S):
    """log Σ exp of each row, seen at once."""
    top = S.max(axis=1)
    shift = np.where(np.isneginf(top), 0, top)
    with np.errstate(divide="ignore"):
        return shift + np.log(np.exp(S - shift[:, None]).sum(axis=1))


def numbers(R=3, N=21, size=1.0, seed=10):
    return size * np.random.default_rng(seed).normal(size=(R, N))


def start(R):
    return np.full(R, -np.inf), np.zeros(R)


def quietly(function, *arguments):
    """NumPy's warnings are not the message: the checks look at the numbers."""
    with np.errstate(all="ignore"):
        return function(*arguments)


def pair(found, name):
    assert len(found) == 2, f"{name} returns two arrays: m and z"
    return found


def check_the_first_tile(answer):
    """update, from nothing: m is the largest of each row, z the sum of exp(x − m)"""
    tile = numbers()[:, :5]
    m, z = pair(quietly(answer.update, *start(3), tile), "update")
    assert np.shape(m) == np.shape(z) == (3,), (
        f"m and z hold one number for each of the 3 rows; their shapes are {np.shape(m)} and "
        f"{np.shape(z)}. The maximum and the sum go along axis 1")
    assert not np.isnan(z).any(), (
        "z is not a number (NaN): z was 0, but something beside it was inf − inf")
    assert np.allclose(m, tile.max(axis=1)), "m should be the largest number of each row"
    assert np.allclose(z, np.exp(tile - m[:, None]).sum(1)), "z should be Σ exp(x − m) of each row"


def check_the_next_tile(answer):
    """update, when a tile brings a larger number: the old sum is made smaller by exp(m − m′)"""
    low, high = np.array([[1.0, 2.0]]), np.array([[3.0, 5.0]])
    m, z = pair(quietly(answer.update, low[:, 1], np.array([1 + math.exp(-1)]), high), "update")
    assert np.allclose(m, 5), f"after 1, 2 | 3, 5 the largest is 5, not {m[0]:g}"
    true = np.exp(np.concatenate([low, high], 1) - 5).sum()
    forgotten = 1 + math.exp(-1) + np.exp(high - 5).sum()
    assert not np.allclose(z, forgotten), (
        "the old z still counts from the old m = 2: multiply it by exp(2 − 5) first")
    assert not np.allclose(z, (1 + math.exp(-1)) * math.exp(3) + np.exp(high - 5).sum()), (
        "turned round: the old sum becomes smaller, exp(m − m′), not exp(m′ − m)")
    assert np.allclose(z, true), f"after 1, 2 | 3, 5 z should be {true:.4f}, not {z[0]:.4f}"


def check_a_smaller_tile(answer):
    """update, when a tile brings nothing larger: m stays"""
    m, z = pair(quietly(answer.update, np.array([5.0]), np.array([2.0]), np.array([[3.0, 1.0]])),
                "update")
    assert np.allclose(m, 5), (
        f"m = 5 was the largest so far, and 3, 1 are not larger: m stays 5, not {m[0]:g}")
    true = 2 + math.exp(-2) + math.exp(-4)
    assert np.allclose(z, true), f"z should be 2 + e⁻² + e⁻⁴ = {true:.4f}, not {z[0]:.4f}"


def check_large_similarities(answer):
    """update stays finite for numbers of ±10,000"""
    rows = np.array([[1e4, -1e4, 9999.0], [-1e4, -1e4, -1e4]])
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        m, z = start(2)
        for j in order:
            m, z = pair(quietly(answer.update, m, z, rows[:, j:j + 1]), "update")
        assert np.isfinite(z).all(), "exp(10,000) overflows: no exponent may be above 0"
        assert (z > 0).all(), (
            "all terms vanished: −10,000 is small, but the largest of its row gives exp(0) = 1")
        assert np.allclose(m + np.log(z), whole(rows), atol=1e-9), (
            f"read in the order {order}, m + log z should be {whole(rows).round(4)}, "
            f"not {(m + np.log(z)).round(4)}")


def check_left_out(answer):
    """update takes −inf, even where a row has had nothing else"""
    rows = np.array([[-np.inf, -np.inf, 2.0, -np.inf], [-np.inf] * 4])
    m, z = start(2)
    for j in (0, 2):
        m, z = pair(quietly(answer.update, m, z, rows[:, j:j + 2]), "update")
        assert not np.isnan(z).any() and not np.isnan(m).any(), (
            "a row with nothing but −inf gave NaN: −inf − (−inf) is not a number. While m is −inf, "
            "take out 0 instead")
    assert m.tolist() == [2, -np.inf] and z.tolist() == [1, 0], (
        f"for {rows.tolist()} m should be [2, −inf] and z [1, 0]; they are {m.tolist()} and "
        f"{z.tolist()}")


def check_nothing_is_changed(answer):
    """update leaves the arrays that it was given alone"""
    m, z, tile = np.array([1.0]), np.array([2.0]), np.array([[3.0]])
    quietly(answer.update, m, z, tile)
    assert (m[0], z[0], tile[0, 0]) == (1, 2, 3), (
        "an array that came in was changed: z *= … and z += … do that; z = z * … does not")


def check_merge(answer):
    """merge: two halves of a row, read by two workers, in either order"""
    S = numbers(size=100.0)
    S[2, :9] = -np.inf  # one worker may have had nothing to read
    halves = [quietly(answer.update, *start(3), part) for part in (S[:, :9], S[:, 9:])]
    for a, b in (halves, halves[::-1]):
        m, z = pair(quietly(answer.merge, *a, *b), "merge")
        assert not np.isnan(z).any(), "NaN: one of the two had read nothing, its m is −inf"
        assert np.allclose(m + np.log(z), whole(S)), (
            f"merged, m + log z should be {whole(S).round(3)}, not {(m + np.log(z)).round(3)}: "
            "each z has to be brought to the common maximum before they are added")
        assert np.allclose(m, S.max(axis=1)), (
            f"m should be the largest number of each row, {S.max(axis=1).round(1)}, not "
            f"{m.round(1)}")
    nothing = quietly(answer.merge, *start(1), *start(1))
    assert (nothing[0][0], nothing[1][0]) == (-np.inf, 0), "nothing and nothing is nothing: −inf, 0"


def check_ragged_walk(answer):
    """row_logsumexp, in tiles that do not divide the row"""
    S = numbers(size=1e4)
    S[1, :], S[2, :] = -1e4, -np.inf
    for width in (1, 4, 7, 21, 50):
        found = quietly(answer.row_logsumexp, S, width)
        assert not np.isnan(found).any(), (
            "row 2 has nothing but −inf, and gave NaN: m + log z is −inf there")
        covered = 21 // width * width
        assert covered == 21 or not covered or not np.allclose(
            found, whole(S[:, :covered]), rtol=0, atol=1e-6), (
            f"the columns from {covered} on are missing: {width} does not divide 21, and the last "
            "tile is narrower")
        assert np.allclose(found, whole(S), rtol=0, atol=1e-6), (
            f"in tiles of {width} it should be {whole(S).round(2)}, not {np.round(found, 2)}")


class Tape:
    """A matrix that shows `width` columns at a time, and nothing else."""

    def __init__(self, S, width):
        self._S, self._width, self.shape, self.ndim, self.dtype = S, width, S.shape, 2, S.dtype

    def __len__(self):
        return len(self._S)

    def __getitem__(self, key):
        part = self._S[key]
        assert np.ndim(part) == 0 or part.shape[-1] <= self._width, (
            f"{part.shape[-1]} columns were read at once: a tile of {self._width} is all there is")
        return part

    def __getattr__(self, name):
        raise AssertionError(
            f"S.{name} looks at all of S at once: read S[:, a:b], one tile at a time")


def check_one_tile_at_a_time(answer):
    """row_logsumexp never looks at more than one tile"""
    S = numbers(size=10.0)
    found = quietly(answer.row_logsumexp, Tape(S, 4), 4)
    assert np.allclose(found, whole(S)), f"it should be {whole(S).round(2)}, not {found}"


# ------------------------------------------------------------------------------ known mistakes


def shifted(higher):
    return np.where(np.isneginf(higher), 0, higher)


def old_sum_kept(m, z, tile):
    higher = np.maximum(m, tile.max(axis=1))
    return higher, z + np.exp(tile - shifted(higher)[:, None]).sum(axis=1)


def turned_round(m, z, tile):
    higher = np.maximum(m, tile.max(axis=1))
    old = np.where(np.isneginf(m), 0, z * np.exp(higher - np.where(np.isneginf(m), 0, m)))
    return higher, old + np.exp(tile - shifted(higher)[:, None]).sum(axis=1)


def maximum_of_the_tile(m, z, tile):
    top = shifted(tile.max(axis=1))
    return tile.max(axis=1), z * np.exp(m - top) + np.exp(tile - top[:, None]).sum(axis=1)


def no_maximum(m, z, tile):
    return np.zeros(len(m)), z + np.exp(tile).sum(axis=1)


def trap_at_minus_infinity(m, z, tile):
    higher = np.maximum(m, tile.max(axis=1))
    return higher, z * np.exp(m - higher) + np.exp(tile - higher[:, None]).sum(axis=1)


def one_number_for_both(m_a, z_a, m_b, z_b):
    total = np.logaddexp(m_a + np.log(z_a), m_b + np.log(z_b))
    return total, np.where(np.isneginf(total), 0.0, 1.0)


def never_nothing(S, width):
    m, z = np.full(len(S), -1e30), np.zeros(len(S))
    for j in range(0, S.shape[1], width):
        higher = np.maximum(m, S[:, j:j + width].max(axis=1))
        z = z * np.exp(m - higher) + np.exp(S[:, j:j + width] - higher[:, None]).sum(axis=1)
        m = higher
    return np.where(z > 0, m + np.log(z), -1e30)


def added(m_a, z_a, m_b, z_b):
    return np.maximum(m_a, m_b), z_a + z_b


def whole_tiles_only(S, width):
    S = S[:, :max(S.shape[1] // width, 1) * width]
    return whole(S)


WRONG = {
    "the old sum keeps its old maximum": ({"update": old_sum_kept}, "multiply it by exp"),
    "m′ − m for m − m′": ({"update": turned_round}, "turned round"),
    "the tile's maximum for the running one": ({"update": maximum_of_the_tile}, "m stays 5"),
    "no maximum": ({"update": no_maximum}, "overflows"),
    "inf − inf": ({"update": trap_at_minus_infinity}, "take out 0 instead"),
    "sums added as they are": ({"merge": added}, "common maximum"),
    "the log-sum-exp for the maximum": ({"merge": one_number_for_both}, "the largest number"),
    "a very low number for −inf": ({"row_logsumexp": never_nothing}, "it should be"),
    "the ragged tile forgotten": ({"row_logsumexp": whole_tiles_only}, "last tile is narrower"),
    "the maximum in a pass of its own": (
        {"row_logsumexp": lambda S, width: whole(S)}, "looks at all of S"),
    "the whole row as one tile": ({"row_logsumexp": lambda S, width: whole(S[:, :])}, "at once"),
}

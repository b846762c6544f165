"""Checks of exercise 9: a real loop that counts what it loads."""

import math

import numpy as np

EVEN = (64, 64, 16, 8, 8)
WIDE = (64, 64, 16, 8, 32)
RAGGED = (100, 70, 5, 32, 16)


def loop(M, N, D, block_m, block_n):
    """Numbers loaded, counted one tile at a time."""
    I, T, loaded = np.zeros((M, D)), np.zeros((N, D)), 0  # noqa: E741
    for i in range(0, M, block_m):
        for j in range(0, N, block_n):
            loaded += I[i:i + block_m].size + T[j:j + block_n].size
    return loaded


def check_whole_tiles(answer):
    """traffic is what a loop over whole, square tiles loads"""
    found, true = answer.traffic(*EVEN), loop(*EVEN)
    assert found != true // 2, (
        "that is one side only: a tile loads its rows of I and its rows of T")
    assert found != true // 16, "a row has D features, and all of them are loaded"
    assert found != 64 * 64 * 16 * 2, (
        "that is the traffic without tiles: the rows of a tile are loaded once for the whole tile, "
        "not once for each of its entries")
    assert found == true, f"for M, N, D, block_m, block_n = {EVEN} a loop loads {true}, not {found}"


def check_oblong_tiles(answer):
    """traffic is right for tiles that are wider than high"""
    found, true = answer.traffic(*WIDE), loop(*WIDE)
    assert found == true, (
        f"for {WIDE} a loop loads {true}, not {found}. How often is all of I loaded? Once for each "
        "*column* of tiles")


def check_both_sizes_matter(answer):
    """traffic keeps rows and columns apart"""
    for case in ((64, 32, 4, 8, 16), (32, 64, 4, 8, 16), (8, 512, 3, 8, 64)):
        found, true = answer.traffic(*case), loop(*case)
        assert found == true, (
            f"for M, N, D, block_m, block_n = {case} a loop loads {true}, not {found}: which "
            "number belongs to the rows, which to the columns?")


def check_ragged_edges(answer):
    """traffic is right where tiles do not divide the matrix evenly"""
    for case in (RAGGED, (1, 1, 7, 32, 32), (33, 31, 2, 32, 32)):
        M, N, D, block_m, block_n = case
        found, true = answer.traffic(*case), loop(*case)
        assert found != M // block_m * N * D + N // block_n * M * D, (
            "// rounds down, and the tiles that are cut off at the edge are forgotten: round up")
        rows, columns = -(-M // block_m), -(-N // block_n)
        assert found == true or found != rows * columns * (block_m + block_n) * D, (
            "tiles at the edge are counted as whole ones; they load only the rows that are there")
        assert found == true, f"for {case} a loop loads {true}, not {found}"
        assert isinstance(found, int), f"a count is an int, not {type(found).__name__}"


def check_a_formula(answer):
    """traffic answers for a million pairs, exactly"""
    found = answer.traffic(2**20, 2**20, 512, 128, 128)
    assert found == 2**43, f"for N = 2²⁰, D = 512 and tiles of 128 it should be 2⁴³, not {found}"


def check_intensity(answer):
    """intensity is operations over bytes"""
    found = answer.intensity(512, 512, 96, 128, 128)  # with D = 64 S would be as large as that
    assert not math.isclose(found, 1 / 64), (
        "turned round: operations per byte are asked for, not bytes per operation")
    assert not math.isclose(found, 32), "a multiplication and an addition are two operations"
    assert not math.isclose(found, 128), "that is per number; a number takes `itemsize` bytes"
    assert math.isclose(found, 64), f"square tiles of 128 in 16 bits give 64, not {found:g}"
    assert math.isclose(answer.intensity(512, 512, 64, 128, 128, 4), 32), "in 32 bits it is half"
    true = 2 * 100 * 70 * 5 / (2 * loop(*RAGGED))
    assert math.isclose(answer.intensity(*RAGGED), true), f"for {RAGGED} it should be {true:.3f}"


def check_roofline(answer):
    """least_time is the larger of the two times"""
    found = answer.least_time(1e12, 1e9, 1e15, 1e12)
    assert not math.isclose(found, 2e-3), (
        "that is the sum: computing and moving go on at the same time, so the slower one decides")
    for case, true in (((4e12, 1e9, 1e15, 1e12), 4e-3), ((1e12, 6e9, 1e15, 1e12), 6e-3)):
        found = answer.least_time(*case)
        given = ", ".join(f"{x:g}" for x in case)
        assert math.isclose(found, true), (
            f"least_time({given}) should be {true} s, the slower of the two, not {found:g}")


# ------------------------------------------------------------------------------ known mistakes


def rounded_down(M, N, D, block_m, block_n):
    return N // block_n * M * D + M // block_m * N * D


def whole_at_the_edge(M, N, D, block_m, block_n):
    return -(-M // block_m) * -(-N // block_n) * (block_m + block_n) * D


def exchanged(M, N, D, block_m, block_n):
    return -(-M // block_m) * M * D + -(-N // block_n) * N * D


def one_side(M, N, D, block_m, block_n):
    return -(-N // block_n) * M * D


WRONG = {
    "edges forgotten": ({"traffic": rounded_down}, "rounds down"),
    "edges counted as whole": ({"traffic": whole_at_the_edge}, "only the rows that are there"),
    "rows and columns exchanged": ({"traffic": exchanged}, "rows, which to the columns"),
    "one side only": ({"traffic": one_side}, "one side only"),
    "without tiles": ({"traffic": lambda M, N, D, *_: 2 * M * N * D}, "without tiles"),
    "bytes per operation": ({"intensity": lambda *_: 1 / 64}, "turned round"),
    "the times added up": ({"least_time": lambda a, b, c, d: a / c + b / d}, "the sum"),
    "the smaller of the two": ({"least_time": lambda a, b, c, d: min(a / c, b / d)}, "slower"),
}

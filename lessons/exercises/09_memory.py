"""Exercise 9: counting before running. `make check N=09` tells at once what is right."""


def traffic(M: int, N: int, D: int, block_m: int, block_n: int) -> int:
    """How many numbers a tiled loop loads for S = I Tᵀ, with I (M, D) and T (N, D).

    The loop goes over tiles of block_m rows and block_n columns of S. For each tile it loads the
    tile's rows of I and its rows of T, all D features of them, even if the tile before had some of
    them too. At the edges tiles are cut off: they load only what is there. Nothing is counted for
    S itself. A formula, please, not a loop over the tiles: M may be a million.
    """
    raise NotImplementedError


def intensity(M: int, N: int, D: int, block_m: int, block_n: int, itemsize: int = 2) -> float:
    """Operations per byte loaded, of the same loop; a number takes `itemsize` bytes.

    A multiplication is one operation, an addition another: S_ij costs 2D.
    """
    raise NotImplementedError


def least_time(operations: float, moved: float, peak: float, bandwidth: float) -> float:
    """The roofline, in seconds: what a program takes at least that moves `moved` bytes.

    peak: operations per second; bandwidth: bytes per second. Computing and moving go on at the
    same time.
    """
    raise NotImplementedError

"""Solution 9: counting before running."""


def traffic(M: int, N: int, D: int, block_m: int, block_n: int) -> int:
    """Each column of tiles loads all of I once, each row of tiles all of T."""
    tile_rows, tile_columns = -(-M // block_m), -(-N // block_n)  # rounded up
    return tile_columns * M * D + tile_rows * N * D


def intensity(M: int, N: int, D: int, block_m: int, block_n: int, itemsize: int = 2) -> float:
    """With whole tiles D, M and N cancel out: what is left are the tile's own sides."""
    return 2 * M * N * D / (traffic(M, N, D, block_m, block_n) * itemsize)


def least_time(operations: float, moved: float, peak: float, bandwidth: float) -> float:
    """The slower of the two decides; the other is hidden behind it."""
    return max(operations / peak, moved / bandwidth)

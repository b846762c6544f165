"""Exercise 3: near means a small angle. `make check N=03` tells at once what is right."""

import numpy as np


def cosines(query: np.ndarray, items: np.ndarray) -> np.ndarray:
    """The cosine of the angle between one vector and each of many → (N,).

    query (D,), items (N, D): of any length but 0.
    """
    raise NotImplementedError


def ranking(query: np.ndarray, items: np.ndarray) -> np.ndarray:
    """The numbers of the items, that with the smallest angle to the query first → (N,) integers.

    ranking(...)[0] is the nearest item's row in `items`, ranking(...)[-1] the farthest one's.
    """
    raise NotImplementedError

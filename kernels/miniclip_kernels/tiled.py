"""The loss tile by tile in plain PyTorch: any device, any float, memory linear in M + N.

A tile of S (TILE × TILE, at most 1 MiB in float32: it stays in a core's cache) is computed, used
and discarded. There are two passes over the tiles:

    forward    r_i, c_j   log-sum-exps of rows and columns, merged tile by tile      1 product
    backward   G = P + Q − 2δ from S, r and c;  dI += G T,  dT += Gᵀ I               3 products

(P, Q and δ as in `reference`; with direction "rows" G = P − δ.) That is 4 matrix products where
plain PyTorch needs 3. From about two thousand pairs on it is still faster: plain PyTorch moves
M × N numbers to memory and back a dozen times. Where only one side wants a gradient, the backward
pass has 2 products.
"""

import math

import torch
import torch.nn.functional as F

from .backends import EVERY_GRADIENT
from .products import add_product, boost, product

TILE = 512
BASE = math.e  # of r and c


def forward(I, T, scale, labels, tile=None):  # noqa: E741
    """→ loss (), r (M,), c (N,) (or (0,) if not `both`), in float32, or float64 for float64.

    tile: rows and columns of a tile; TILE if None. `chunked` has its own.
    """
    r, c, positives = pass_over_tiles(I, T, scale, labels, tile or TILE)
    loss = (r - positives).mean()
    if labels.both:
        loss = (loss + (c - positives).mean()) / 2
    return loss, r, c


def logsumexps(I, T, scale, labels, tile=None):  # noqa: E741
    """→ r (M,), c (N,) of these rows alone, of any M and N, as `forward`."""
    r, c, _ = pass_over_tiles(I, T, scale, labels, tile or TILE)
    return r, c


def pass_over_tiles(I, T, scale, labels, tile):  # noqa: E741
    """→ r (M,), c (N,) or (0,), and S at the labelled pairs (M,), where they are columns of T."""
    label_offset, both = labels.label_offset, labels.both
    wide, M, N = scale.dtype, len(I), len(T)
    r = I.new_full((M,), -torch.inf, dtype=wide)
    c = I.new_full((N if both else 0,), -torch.inf, dtype=wide)
    positives = I.new_empty(M, dtype=wide)
    for rows, columns in tiles(M, N, tile):
        S = similarities(I, T, scale, rows, columns, labels)
        r[rows] = torch.logaddexp(r[rows], S.logsumexp(1))
        if both:
            c[columns] = torch.logaddexp(c[columns], S.logsumexp(0))
        found = S.diagonal(diagonal(rows, columns, label_offset))
        first = max(rows.start, columns.start - label_offset)  # the first image with its text here
        positives[first:first + len(found)] = found
    for sums in (r, c):  # an infinite similarity leaves no probabilities
        sums.masked_fill_(sums == torch.inf, torch.nan)
    return r, c, positives


def backward(upstream, I, T, scale, r, c, labels, needs=EVERY_GRADIENT, tile=None):  # noqa: E741
    """upstream (): the gradient with respect to the loss → dI (M, D), dT (N, D), ds ().

    What `needs` leaves out is None, and costs nothing. ds comes from either side.
    """
    tile, directions = tile or TILE, 2 if labels.both else 1
    sum_I = empty_sums(I, scale) if needs.images or not needs.texts else None
    sum_T = empty_sums(T, scale) if needs.texts else None
    for rows, columns in tiles(len(I), len(T), tile):
        S = similarities(I, T, scale, rows, columns, labels)
        G = (S - r[rows, None]).exp_()  # P
        if labels.both:
            G += S.sub_(c[columns]).exp_()  # + Q
        G.diagonal(diagonal(rows, columns, labels.label_offset)).sub_(directions)
        add_products(sum_I, sum_T, G, I, T, rows, columns)
    factor = upstream / (len(I) * directions) / boost(factor_type(I, scale))
    ds = None
    if needs.scale:
        side = (sum_T, T) if sum_I is None else (sum_I, I)
        ds = share_of_scale(*side, tile) * factor
    dI = sum_I.mul_(scale * factor).to(I.dtype) if needs.images else None
    dT = sum_T.mul_(scale * factor).to(T.dtype) if needs.texts else None
    return dI, dT, ds


def factor_type(I, scale):  # noqa: E741
    """The dtype of the products' factors: 16 bits where a device multiplies them faster."""
    return scale.dtype if I.device.type == "cpu" else I.dtype


def empty_sums(x, scale):
    """Zeros like x, in float32 (or float64), contiguous."""
    return torch.zeros_like(x, dtype=scale.dtype, memory_format=torch.contiguous_format)


def add_products(sum_I, sum_T, G, I, T, rows, columns):  # noqa: E741
    """Add a tile's `boost` · G T and Gᵀ I to the sums that there are. G may be overwritten."""
    narrow = factor_type(I, G)
    if narrow != G.dtype:
        G = G.mul_(boost(narrow)).to(narrow)
    if sum_I is not None:
        add_product(sum_I[rows], G, T[columns].to(narrow))
    if sum_T is not None:
        add_product(sum_T[columns], G.T, I[rows].to(narrow))


def share_of_scale(sums, A, tile):
    """Σ G ∘ I Tᵀ = Σ_i ⟨(G T)_i, I_i⟩, or the same of the texts: sums (M, D), A (M, D) → ()."""
    total = sums.new_zeros(())
    for i in range(0, len(A), tile):  # some rows at a time: vecdot stores all its products
        total += torch.linalg.vecdot(sums[i:i + tile], A[i:i + tile].to(sums.dtype)).sum()
    return total


def sigmoid(I, T, scale, bias, labels, needs, tile=None):  # noqa: E741
    """One pass of the sigmoid loss → Σ of it (), Σ G (), G T (M, D), Gᵀ I (N, D), in `wide`.

    G = σ(S + b) − δ. There is no sum to wait for: each tile's share of all four is known at once.
    The factors 1/M and s are left to the caller. What `needs` leaves out is None.
    """
    loss, total = scale.new_zeros(()), scale.new_zeros(())
    sum_I = empty_sums(I, scale) if needs.images else None
    sum_T = empty_sums(T, scale) if needs.texts else None
    for rows, columns in tiles(len(I), len(T), tile or TILE):
        Z = similarities(I, T, scale, rows, columns, labels.without_ids()).add_(bias)
        loss += F.softplus(Z).sum()
        if labels.image_ids is None:
            pairs = Z.diagonal(diagonal(rows, columns, labels.label_offset))
            loss -= pairs.sum()  # softplus(−z) = softplus(z) − z
            G = Z.sigmoid_()
            pairs.sub_(1)
        else:
            belong = belonging(labels, rows, columns)
            loss -= Z.where(belong, 0).sum()
            G = Z.sigmoid_().sub_(belong.to(Z.dtype))
        total += G.sum()
        add_products(sum_I, sum_T, G, I, T, rows, columns)
    boosted = boost(factor_type(I, scale))
    for sums in (sum_I, sum_T):
        if sums is not None and boosted != 1:
            sums /= boosted
    return loss, total, sum_I, sum_T


def belonging(labels, rows, columns):
    """Which entries of a tile are texts of the row's image: bool."""
    found = labels.image_ids[rows, None] == labels.text_ids[None, columns]
    found.diagonal(diagonal(rows, columns, labels.label_offset)).fill_(True)
    return found


def tiles(M, N, tile):
    """(rows, columns) of every tile, as slices; row by row."""
    for i in range(0, M, tile):
        for j in range(0, N, tile):
            yield slice(i, min(i + tile, M)), slice(j, min(j + tile, N))


def diagonal(rows, columns, label_offset):
    """Which diagonal of the tile holds labelled pairs: column i + label_offset for row i."""
    return rows.start + label_offset - columns.start


def similarities(I, T, scale, rows, columns, labels):  # noqa: E741
    """One tile of S, with −inf where an entry is left out."""
    wide = scale.dtype
    if I.dtype == wide or I.device.type == "cpu":  # scale the smaller matrix
        S = (I[rows].to(wide) * scale) @ T[columns].to(wide).T
    else:
        S = product(I[rows], T[columns].T, wide).mul_(scale)
    if labels.image_ids is not None:
        same = labels.image_ids[rows, None] == labels.text_ids[None, columns]
        same.diagonal(diagonal(rows, columns, labels.label_offset)).fill_(False)
        S.masked_fill_(same, -torch.inf)
    return S

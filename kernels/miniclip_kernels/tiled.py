"""The loss tile by tile in plain PyTorch: any device, any float, memory linear in M + N.

A tile of S (TILE × TILE, at most 1 MiB in float32: it stays in a core's cache) is computed, used
and discarded. There are two passes over the tiles:

    forward    r_i, c_j   log-sum-exps of rows and columns, merged tile by tile      1 product
    backward   G = P + Q − 2δ from S, r and c;  dI += G T,  dT += Gᵀ I               3 products

(P, Q and δ as in `reference`; with direction "rows" G = P − δ.) That is 4 matrix products where
plain PyTorch needs 3. From about two thousand pairs on it is still faster: plain PyTorch moves
M × N numbers to memory and back a dozen times.
"""

import torch

TILE = 512


def forward(I, T, scale, labels):  # noqa: E741
    """→ loss (), r (M,), c (N,) (or (0,) if not `both`), in float32, or float64 for float64."""
    label_offset, both = labels.label_offset, labels.both
    wide, M, N = scale.dtype, len(I), len(T)
    r = I.new_full((M,), -torch.inf, dtype=wide)
    c = I.new_full((N if both else 0,), -torch.inf, dtype=wide)
    positives = I.new_empty(M, dtype=wide)  # S at the labelled pairs
    for rows, columns in tiles(M, N):
        S = similarities(I, T, scale, rows, columns, labels)
        r[rows] = torch.logaddexp(r[rows], S.logsumexp(1))
        if both:
            c[columns] = torch.logaddexp(c[columns], S.logsumexp(0))
        found = S.diagonal(diagonal(rows, columns, label_offset))
        first = max(rows.start, columns.start - label_offset)  # the first image with its text here
        positives[first:first + len(found)] = found
    loss = (r - positives).mean()
    if both:
        loss = (loss + (c - positives).mean()) / 2
    return loss, r, c


def backward(upstream, I, T, scale, r, c, labels):  # noqa: E741
    """upstream (): the gradient with respect to the loss → dI (M, D), dT (N, D), ds ()."""
    label_offset, both = labels.label_offset, labels.both
    directions = 2 if both else 1
    dI, dT = (torch.zeros_like(x, dtype=scale.dtype, memory_format=torch.contiguous_format)
              for x in (I, T))
    for rows, columns in tiles(len(I), len(T)):
        S = similarities(I, T, scale, rows, columns, labels)
        G = (S - r[rows, None]).exp_()  # P
        if both:
            G += S.sub_(c[columns]).exp_()  # + Q
        G.diagonal(diagonal(rows, columns, label_offset)).sub_(directions)
        dI[rows].addmm_(G, T[columns].to(G.dtype))
        dT[columns].addmm_(G.T, I[rows].to(G.dtype))
    factor = upstream / (len(I) * directions)
    ds = torch.zeros_like(scale)  # Σ G ∘ I Tᵀ = Σ_i ⟨(G T)_i, I_i⟩
    for i in range(0, len(I), TILE):  # some rows at a time: vecdot stores all its products
        ds += torch.linalg.vecdot(dI[i:i + TILE], I[i:i + TILE].to(dI.dtype)).sum()
    ds *= factor
    return dI.mul_(scale * factor).to(I.dtype), dT.mul_(scale * factor).to(T.dtype), ds


def tiles(M, N):
    """(rows, columns) of every tile, as slices; row by row."""
    for i in range(0, M, TILE):
        for j in range(0, N, TILE):
            yield slice(i, min(i + TILE, M)), slice(j, min(j + TILE, N))


def diagonal(rows, columns, label_offset):
    """Which diagonal of the tile holds labelled pairs: column i + label_offset for row i."""
    return rows.start + label_offset - columns.start


def similarities(I, T, scale, rows, columns, labels):  # noqa: E741
    """One tile of S, with −inf where an entry is left out."""
    S = (I[rows].to(scale.dtype) * scale) @ T[columns].to(scale.dtype).T
    if labels.image_ids is not None:
        same = labels.image_ids[rows, None] == labels.text_ids[None, columns]
        same.diagonal(diagonal(rows, columns, labels.label_offset)).fill_(False)
        S.masked_fill_(same, -torch.inf)
    return S

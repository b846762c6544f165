"""The reference: loss and gradients in float64 NumPy, written to be read beside the equations.

The code is neither fast nor clever. S, both softmaxes and ∂L/∂S are whole matrices, as in the
equations. Every other backend is compared with it. Notation as in `clip_loss`; δ_ij is 1 where
text j belongs to image i, that is where j = i + label_offset.

    L = ½ (1/M Σ_i [r_i − S_il(i)] + 1/N Σ_j [c_j − S_jj])        direction "both" (M = N, l(i) = i)
    L =    1/M Σ_i [r_i − S_il(i)]                                 direction "rows"

with r_i = log Σ_j exp S_ij and c_j = log Σ_i exp S_ij. Both sums skip the entries left out by ids.
"""

import numpy as np


def labels(M: int, N: int, label_offset: int) -> np.ndarray:
    """δ (M, N), bool: true where column i + label_offset holds the text of image i."""
    return np.arange(M)[:, None] + label_offset == np.arange(N)[None, :]


def logsumexp(S: np.ndarray, axis: int) -> np.ndarray:
    """log Σ exp S along one axis. The maximum is subtracted first, so exp never exceeds 1."""
    top = S.max(axis=axis, keepdims=True)
    return (top + np.log(np.exp(S - top).sum(axis=axis, keepdims=True))).squeeze(axis)


def loss_and_gradients(image_features, text_features, logit_scale, label_offset=0,
                       direction="both", image_ids=None, text_ids=None):
    """(M, D), (N, D), s → L, ∂L/∂I (M, D), ∂L/∂T (N, D), ∂L/∂s, all float64.

    The arguments are those of `clip_loss`, as arrays; image_ids (M,) and text_ids (N,) come
    together or not at all.
    """
    I, T = (np.asarray(x, np.float64) for x in (image_features, text_features))  # noqa: E741
    s, M, N = float(logit_scale), len(I), len(T)
    C = I @ T.T  # similarities of the features, (M, N)
    S = s * C
    δ = labels(M, N, label_offset)
    if image_ids is not None:  # another caption of the same image is no wrong answer
        S[(np.asarray(image_ids)[:, None] == np.asarray(text_ids)[None, :]) & ~δ] = -np.inf
    r = logsumexp(S, axis=1)  # (M,)
    P = np.exp(S - r[:, None])  # each row sums to 1: which text, given the image?
    L = np.mean(r - S[δ])
    G = (P - δ) / M  # ∂L/∂S: softmax minus truth, over the number of questions
    if direction == "both":
        c = logsumexp(S, axis=0)  # (N,)
        Q = np.exp(S - c[None, :])  # each column sums to 1: which image, given the text?
        L = (L + np.mean(c - S[δ])) / 2
        G = (G + (Q - δ) / N) / 2
    # S = s · I Tᵀ, by the chain rule:
    dI = s * G @ T
    dT = s * G.T @ I
    ds = np.sum(G * C)
    return L, dI, dT, ds


def sigmoid_loss_and_gradients(image_features, text_features, logit_scale, logit_bias,
                               label_offset=0, image_ids=None, text_ids=None):
    """(M, D), (N, D), s, b → L, ∂L/∂I (M, D), ∂L/∂T (N, D), ∂L/∂s, ∂L/∂b, all float64.

    Each entry is a question of its own: do this image and this text belong together?

        Z = S + b        L = 1/M Σ_ij log(1 + exp(∓Z_ij)), − where they do, + where they don't

    (Zhai et al. 2023, arXiv 2303.15343, section 3.2.) With ids, every text of the same image
    belongs to it.
    """
    I, T = (np.asarray(x, np.float64) for x in (image_features, text_features))  # noqa: E741
    s, b, M, N = float(logit_scale), float(logit_bias), len(I), len(T)
    C = I @ T.T
    Z = s * C + b
    δ = labels(M, N, label_offset)
    if image_ids is not None:
        δ = δ | (np.asarray(image_ids)[:, None] == np.asarray(text_ids)[None, :])
    L = np.where(δ, np.logaddexp(0, -Z), np.logaddexp(0, Z)).sum() / M
    G = (1 / (1 + np.exp(-Z)) - δ) / M  # ∂L/∂Z: sigmoid minus truth
    return L, s * G @ T, s * G.T @ I, np.sum(G * C), G.sum()

"""Checks of exercise 6."""

import torch
import torch.nn.functional as F


def draw(T=6, d=16, seed=0):
    return torch.randn(3, T, d, generator=torch.Generator().manual_seed(seed)).unbind()


def attended(answer, q, k, v):
    """(y, A) of the answer, with shapes checked."""
    found = answer.causal_attention(q, k, v)
    assert isinstance(found, tuple) and len(found) == 2, (
        "causal_attention should return two tensors, (y, A): does it end with `return y, A`?")
    y, A = found
    T = len(q)
    assert tuple(A.shape) == (T, T), f"A should be ({T}, {T}), not {tuple(A.shape)}"
    assert y.shape == v.shape, f"y should be {tuple(v.shape)}, as v is, not {tuple(y.shape)}"
    return y, A


def check_the_first_token_sees_itself(answer):
    """the first token can only look at itself: its y is its own value"""
    q, k, v = draw()
    y, A = attended(answer, q, k, v)
    assert not A[0].isnan().any(), (
        "the first row is nan: nothing is left for its softmax. A token may look at itself, so "
        "the diagonal must not be masked: triu(1), not triu(0)")
    assert A[0, 0] > 0, (
        "the first token should look at itself, with weight 1: is the mask turned round (tril "
        "for triu), or the diagonal masked?")
    assert torch.allclose(y[0], v[0], atol=1e-5), (
        f"the first token sees only itself, so y[0] should be v[0] and A[0, 0] be 1, not "
        f"{A[0, 0]:.3f}")


def check_rows_sum_to_one(answer):
    """every row of A sums to 1"""
    _, A = attended(answer, *draw(seed=1))
    sums = A.sum(dim=1)
    assert torch.allclose(sums, torch.ones(len(A)), atol=1e-5), (
        f"the rows sum to {[round(x, 2) for x in sums.tolist()]}, not to 1: mask the scores "
        "before the softmax (with −inf), not the weights after it; and softmax over the last "
        "axis")


def check_nobody_looks_ahead(answer):
    """no weight falls on a later token"""
    _, A = attended(answer, *draw(seed=2))
    ahead = A.triu(1)
    assert not ahead.any(), (
        f"token 0 gives weight {A[0, 1]:.2f} to token 1, which comes later: A should be 0 above "
        "the diagonal. A score of 0 is no mask, since exp(0) is 1; −inf is")


def check_later_tokens_change_nothing(answer):
    """what stands later changes no y before it"""
    q, k, v = draw(T=8, seed=3)
    y, _ = attended(answer, q, k, v)
    q2, k2, v2 = (torch.cat([x[:5], 50 * torch.ones(3, 16)]) for x in (q, k, v))
    changed, _ = attended(answer, q2, k2, v2)
    far = (changed[:5] - y[:5]).abs().max()
    assert far < 1e-5, (
        f"tokens 5 to 7 were changed, and a y before them moved by {far:.2g}: y[t] should depend "
        "only on tokens 0 to t")


def check_it_is_torchs_attention(answer):
    """y equals PyTorch's own causal attention, for any T and d"""
    for T, d in ((1, 4), (6, 16), (9, 64)):
        q, k, v = draw(T, d, seed=T)
        y, _ = attended(answer, q, k, v)
        expected = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
        unscaled = F.scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, scale=1.0)[0]
        if T > 1:
            assert not torch.allclose(y, unscaled, atol=1e-4), (
                "the scores should be divided by the square root of d")
        assert torch.allclose(y, expected, atol=1e-4), (
            f"T = {T}, d = {d}: y differs from PyTorch's causal attention by "
            f"{(y - expected).abs().max():.2g}; scores should be q @ k.T / d ** 0.5, and y = A @ v")


def check_read_sentence(answer):
    """read_sentence takes each sentence's vector at its own end token"""
    tokens = torch.tensor([[8, 3, 9, 0, 0], [8, 1, 5, 2, 9], [8, 9, 0, 0, 0]])
    x = torch.arange(3 * 5 * 2.0).view(3, 5, 2)
    found = answer.read_sentence(x, tokens)
    expected = torch.stack([x[0, 2], x[1, 4], x[2, 1]])
    assert isinstance(found, torch.Tensor), "read_sentence returns no tensor: is `return` missing?"
    assert tuple(found.shape) != (3, 3, 2), (
        "x[:, ends] takes every end from every sentence, (B, B, C); sentence b should give only "
        "its own: x[torch.arange(B), ends]")
    assert tuple(found.shape) == (3, 2), f"the shape should be (3, 2), not {tuple(found.shape)}"
    assert not torch.equal(found, x[:, -1]), (
        "that is the last place of each row, which is padding in a short sentence; the vector "
        "should be read where the end token stands: tokens.argmax(dim=1)")
    assert not torch.equal(found, x.mean(dim=1)), (
        "that is the mean of all places; the vector should be read at the end token alone")
    assert torch.equal(found, expected), (
        f"for tokens {tokens.tolist()} the places should be 2, 4 and 1")


def check_padding_changes_nothing(answer):
    """what stands behind the end token changes no sentence's vector"""
    generator = torch.Generator().manual_seed(4)
    embedding = torch.randn(10, 16, generator=generator)  # ids 0 to 9; 9 is the end
    sentences = torch.tensor([[8, 3, 1, 9, 0, 0, 0], [8, 3, 1, 9, 5, 7, 2], [8, 3, 1, 9, 9, 9, 9]])
    x = torch.stack([attended(answer, e, e, e)[0] for e in embedding[sentences]])
    found = answer.read_sentence(x, sentences)
    for row in (1, 2):
        assert torch.allclose(found[row], found[0], atol=1e-5), (
            f"{sentences[row].tolist()} should give the vector of {sentences[0].tolist()}: they "
            "are the same up to the first end token, 9")


def attend(q, k, v, mask, value=-torch.inf, scale=None):
    scores = q @ k.T * (q.shape[1] ** -0.5 if scale is None else scale)
    A = scores.masked_fill(mask(torch.ones(len(q), len(q), dtype=torch.bool)), value).softmax(1)
    return A @ v, A


def masked_afterwards(q, k, v):
    A = (q @ k.T / q.shape[1] ** 0.5).softmax(dim=1).tril()
    return A @ v, A


def later(ones):
    return ones.triu(1)


WRONG = {
    "no mask": (
        {"causal_attention": lambda q, k, v: attend(q, k, v, torch.zeros_like)}, "comes later"),
    "a score of 0 for a mask": (
        {"causal_attention": lambda q, k, v: attend(q, k, v, later, 0.0)}, "no mask, since exp"),
    "the mask after the softmax": ({"causal_attention": masked_afterwards}, "before the softmax"),
    "oneself masked too": (
        {"causal_attention": lambda q, k, v: attend(q, k, v, torch.triu)}, "triu(1)"),
    "no square root of d": (
        {"causal_attention": lambda q, k, v: attend(q, k, v, later, scale=1.0)}, "square root"),
    "the last place": ({"read_sentence": lambda x, tokens: x[:, -1]}, "last place"),
    "every end from every sentence": (
        {"read_sentence": lambda x, tokens: x[:, tokens.argmax(dim=1)]}, "every end"),
}

"""Checks of exercise 16."""

import torch
import torch.nn.functional as F

K, M, D, SCALE = 3, 4, 5, 8.0


def features():
    generator = torch.Generator().manual_seed(0)
    return [F.normalize(torch.randn(K * M, D, generator=generator, dtype=torch.float64))
            .requires_grad_() for _ in range(2)]


def whole(I, T):  # noqa: E741
    """The loss of all pairs in one process."""
    S, truth = SCALE * I @ T.T, torch.arange(len(I))
    return (F.cross_entropy(S, truth) + F.cross_entropy(S.T, truth)) / 2


def check_merged(answer):
    """the columns of three processes, merged"""
    S = torch.randn(12, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parts, true = [part.logsumexp(0) for part in S.split(4)], S.logsumexp(0)
    found = answer.merged(parts)
    assert found.shape == true.shape, (
        f"one number for each column, {tuple(true.shape)}, not {tuple(found.shape)}: the sum is "
        "over the processes")
    assert not torch.allclose(found, sum(parts)), (
        "that adds logarithms, which multiplies the sums: back to sums first, exp, then add")
    assert not torch.allclose(found, torch.stack(parts).amax(0)), (
        "that is the largest part only: the others count as well")
    assert torch.allclose(found, true), "log Σ_k exp(parts[k]) is what whole columns give"


def check_merged_far_from_zero(answer):
    """parts of 1,000, and of −1,000"""
    for level in (1000.0, -1000.0):
        found = answer.merged([torch.full((2,), level), torch.full((2,), level)])
        assert torch.isfinite(found).all() and torch.allclose(
            found, torch.full((2,), level + 0.6931), atol=1e-3), (
            f"two parts of {level:g} give {level + 0.693:.3f}, not {found[0]:.3f}: exp of 1,000 "
            "overflows, and of −1,000 is 0, so take the largest of each column out first")


def check_the_mean_is_the_loss(answer):
    """the mean over processes is the loss of all pairs"""
    I, T = features()  # noqa: E741
    parts = [answer.local_loss(I, T, SCALE, rank, K) for rank in range(K)]
    found, true = sum(parts) / K, whole(I, T)
    assert not torch.isclose(sum(parts), true), (
        "the *sum* over processes is right, but DDP takes the mean: divide by M, not by N")
    alone = sum(whole(I[k * M:(k + 1) * M], T[k * M:(k + 1) * M]) for k in range(K)) / K
    assert not torch.isclose(found, alone), (
        f"{found:.3f} is the loss of {M} pairs among themselves: each image has to be compared "
        "with the texts of *all* processes")
    assert not all(torch.isclose(part, true) for part in parts), (
        "each process computes the loss of all pairs, which is K times the same work: the rows of "
        "its own images and the columns of its own texts are enough")
    rows = F.cross_entropy(SCALE * I @ T.T, torch.arange(len(I)))
    assert not torch.isclose(found, rows), "that is one direction: texts look for images, too"
    assert not torch.isclose(found, 2 * true), (
        "that is twice the loss: it is the mean of both directions")
    assert torch.isclose(found, true), (
        f"{true:.4f} is the loss of all pairs, not {found:.4f}; which column is the pair of "
        "row 0 of process 1?")


def check_the_gradient_is_that_of_one_process(answer):
    """and so is the gradient"""
    I, T = features()  # noqa: E741
    sum(answer.local_loss(I, T, SCALE, rank, K) for rank in range(K)).div(K).backward()
    expected = torch.autograd.grad(whole(*(others := features())), others)
    for x, true, name in ((I, expected[0], "images"), (T, expected[1], "texts")):
        assert x.grad is not None and torch.allclose(x.grad, true), (
            f"the gradient of the {name} differs from that of one process: features of other "
            "processes must keep their gradients, no detach()")


class Tower(torch.nn.Linear):
    """Counts rows whose activations are kept, from the forward pass to the backward pass."""

    def __init__(self):
        super().__init__(6, D, dtype=torch.float64)
        torch.nn.init.normal_(self.weight, generator=torch.Generator().manual_seed(2))
        torch.nn.init.zeros_(self.bias)
        self.most, self.kept = 0, 0

    def forward(self, x):
        found = super().forward(x).tanh()
        if torch.is_grad_enabled():
            self.kept += len(x)
            self.most = max(self.most, self.kept)
            found.register_hook(lambda gradient: self.let_go(len(x)))
        return found

    def let_go(self, rows):
        self.kept -= rows


def loss_of(found):
    return whole(F.normalize(found), features()[1].detach())


def check_cached(answer):
    """cached gradients are those of the whole batch"""
    x = torch.randn(K * M, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for size in (5, 1, 12):
        tower, plain = Tower(), Tower()
        true = loss_of(plain(x))
        true.backward()
        loss = answer.cached(tower, x, loss_of, size)
        assert tower.weight.grad is not None, "no gradient arrived at the tower's weights"
        assert tower.most <= size, (
            f"the activations of {tower.most} rows were kept at once, not of {size} at most: the "
            "first pass needs torch.no_grad()")
        assert torch.isclose(loss, true), (
            f"the loss is {true:.4f}, not {loss:.4f}: it needs the features of all rows at once")
        assert torch.allclose(tower.weight.grad, plain.weight.grad), (
            "the gradient differs from that of the whole batch: push features.grad of the same "
            "rows through the tower, in the second pass, and add up")


def added_logarithms(parts):
    return sum(parts)


def overflowing(parts):
    return torch.stack(parts).exp().sum(0).log()


def largest(parts):
    return torch.stack(parts).amax(0)


def own_pairs(I, T, s, rank, K):  # noqa: E741
    own = slice(rank * M, (rank + 1) * M)
    return whole(I[own], T[own])


def forgot_the_offset(I, T, s, rank, K):  # noqa: E741
    own, truth = slice(rank * M, (rank + 1) * M), torch.arange(M)
    return (F.cross_entropy(s * I[own] @ T.T, truth)
            + F.cross_entropy(s * T[own] @ I.T, truth)) / 2


def detached(I, T, s, rank, K):  # noqa: E741
    own, truth = slice(rank * M, (rank + 1) * M), torch.arange(M) + rank * M
    return (F.cross_entropy(s * I[own] @ T.detach().T, truth)
            + F.cross_entropy(s * T[own] @ I.detach().T, truth)) / 2


def summed(I, T, s, rank, K):  # noqa: E741
    own, truth = slice(rank * M, (rank + 1) * M), torch.arange(M) + rank * M
    return (F.cross_entropy(s * I[own] @ T.T, truth, reduction="sum")
            + F.cross_entropy(s * T[own] @ I.T, truth, reduction="sum")) / (2 * len(I))


def everything(I, T, s, rank, K):  # noqa: E741
    return whole(I, T)


def one_direction(I, T, s, rank, K):  # noqa: E741
    own, truth = slice(rank * M, (rank + 1) * M), torch.arange(M) + rank * M
    return F.cross_entropy(s * I[own] @ T.T, truth)


def all_at_once(tower, x, loss_of, size):
    loss = loss_of(tower(x))
    loss.backward()
    return loss.detach()


def all_kept(tower, x, loss_of, size):
    loss = loss_of(torch.cat([tower(few) for few in x.split(size)]))
    loss.backward()
    return loss.detach()


def small_losses(tower, x, loss_of, size):
    with torch.no_grad():
        found = torch.cat([tower(few) for few in x.split(size)])
    loss = loss_of(found)
    for few in x.split(size):
        tower(few).pow(2).mean().backward()
    return loss


WRONG = {
    "logarithms are added": ({"merged": added_logarithms}, "which multiplies the sums"),
    "exp of a thousand": ({"merged": overflowing}, "take the largest of each column out first"),
    "the largest part alone": ({"merged": largest}, "the others count as well"),
    "own pairs only": ({"local_loss": own_pairs}, "the texts of *all* processes"),
    "the pair is not on the diagonal": ({"local_loss": forgot_the_offset}, "row 0 of process 1"),
    "gathered without gradients": ({"local_loss": detached}, "no detach()"),
    "a sum for a mean": ({"local_loss": summed}, "divide by M"),
    "one direction": ({"local_loss": one_direction}, "texts look for images"),
    "the whole batch at once": ({"cached": all_at_once}, "torch.no_grad()"),
    "in pieces, but all are kept": ({"cached": all_kept}, "torch.no_grad()"),
    "everybody does everything": ({"local_loss": everything}, "K times the same work"),
    "another loss for each few": ({"cached": small_losses}, "features.grad of the same rows"),
}

"""Tests of distributed.py: several processes of gloo have the loss and gradients of one process.

What is said of ranks: the mean over them of loss and gradients is that of all pairs, as
DistributedDataParallel takes it.
"""

import importlib
import sys

import mutation
import pytest
import torch
import torch.nn.functional as F
from kernel_truth import DEVICE, TRITON
from miniclip_kernels import ClipLoss, clip_loss
from processes import together

if not torch.distributed.is_available():
    pytest.skip("PyTorch without distributed", allow_module_level=True)

M, D = 6, 5  # pairs of each process, features
RANKS = pytest.mark.parametrize("count", [1, 2, 3, 4])
WAYS = pytest.mark.parametrize("ring", [False, True], ids=["slab", "ring"])
X = torch.eye(4)


def batch(count, dtype=torch.float64):
    """Leaves: images, texts of all processes, and a scale; which image each pair is of."""
    generator = torch.Generator().manual_seed(count)
    leaves = [F.normalize(torch.randn(count * M, D, generator=generator, dtype=torch.float64))
              .to(dtype) for _ in range(2)]
    wide = torch.promote_types(dtype, torch.float32)
    ids = torch.randint(count * M // 2, (count * M,), generator=generator)
    return [x.requires_grad_() for x in (*leaves, torch.tensor(9.0, dtype=wide))], ids


def alone(count, dtype, with_ids=False, weights=None, wanted=(True, True, True)):
    """Loss and gradients in one process, by PyTorch's own autograd.

    weights: what each rank's loss is multiplied by, before they are averaged.
    """
    (I, T, scale), ids = batch(count, dtype)  # noqa: E741
    S = scale * I @ T.T
    if with_ids:
        same = (ids[:, None] == ids[None]).fill_diagonal_(False)
        S = S.masked_fill(same, -torch.inf)
    truth = torch.arange(len(I))
    each = (F.cross_entropy(S, truth, reduction="none")
            + F.cross_entropy(S.T, truth, reduction="none")) / 2
    weights = torch.ones(count) if weights is None else torch.tensor(weights)
    loss = (each * weights.to(each.dtype).repeat_interleave(M)).mean()
    leaves = [x for x, asked in zip((I, T, scale), wanted) if asked]
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def share(rank, count, dtype, with_ids=False, weights=None, wanted=(True, True, True),
          compiled=False, **options):
    """A process's own share → the mean of the losses and of the gradients of all."""
    leaves, ids = batch(count, dtype)
    own = slice(rank * M, (rank + 1) * M)
    asked = [x for x, wants in zip(leaves, wanted) if wants]
    I, T, scale = (x if wants else x.detach() for x, wants in zip(leaves, wanted))  # noqa: E741
    options |= {"group": torch.distributed.group.WORLD}
    if with_ids:
        options |= {"image_ids": ids[own]}

    def loss_of(I, T, scale):  # noqa: E741
        return clip_loss(I, T, scale, **options)

    if compiled:
        loss_of = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    loss = loss_of(I[own], T[own], scale)
    if weights is not None:
        loss = loss * weights[rank]
    found = [loss.detach(), *torch.autograd.grad(loss, asked)]
    for x in found:
        torch.distributed.all_reduce(x)
        x /= count
    return found


def check(count, tmp_path, tolerance=1e-12, dtype=torch.float64, compare=None, **options):
    told = {name: options[name] for name in ("with_ids", "weights", "wanted") if name in options}
    expected = alone(count, compare or dtype, **told)
    for found in together(count, tmp_path, several, [(dtype, options)]):
        for x, y in zip(found[0], expected, strict=True):
            torch.testing.assert_close(x.to(y.dtype), y, rtol=tolerance, atol=tolerance)


def several(rank, count, cases):
    """`share` of each case, in one start of the processes."""
    return [share(rank, count, dtype, **options) for dtype, options in cases]


OPTIONS = {"plain": {}, "with ids": {"with_ids": True}, "chunked": {"backend": "chunked"},
           "images frozen": {"wanted": (False, True, True)},
           "texts frozen": {"wanted": (True, False, True)},
           "images only": {"wanted": (True, False, False), "with_ids": True},
           "scale only": {"wanted": (False, False, True)},
           "weighted": {"weights": [2.5] * 4}, "times 0": {"weights": [0.0] * 4}}


@pytest.mark.slow
@RANKS
def test_several_processes_are_one(count, tmp_path):
    """In float64, both ways, with every option, to the last digits."""
    cases = [(name, ring) for name in OPTIONS for ring in (False, True)]
    found = together(count, tmp_path, several, [
        (torch.float64, {"ring": ring, "backend": "tiled", **limited(OPTIONS[name], count)})
        for name, ring in cases])
    for i, (name, ring) in enumerate(cases):
        told = {key: x for key, x in limited(OPTIONS[name], count).items() if key != "backend"}
        expected = alone(count, torch.float64, **told)
        for rank in range(count):
            for x, y in zip(found[rank][i], expected, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12, msg=f"{name}, {ring}")


def limited(options, count):
    """Weights of so many ranks."""
    return options | {"weights": options["weights"][:count]} if "weights" in options else options


@pytest.mark.slow
def test_different_factors_are_no_number(tmp_path):
    """A process can't know what another will multiply its loss by: NaN, and not silently wrong."""
    cases = [(torch.float64, {"weights": [1.0, 2.0], "ring": ring}) for ring in (False, True)]
    for found in together(2, tmp_path, several, cases):
        for _, *gradients in found:
            assert all(x.isnan().all() for x in gradients)


def compiled_module(rank, count):
    """`ClipLoss` itself, compiled: loss and gradients."""
    (I, T, scale), _ = batch(count, torch.float64)  # noqa: E741
    own = slice(rank * M, (rank + 1) * M)
    found = []
    for ours in (ClipLoss(rank=rank, world_size=count),
                 torch.compile(ClipLoss(rank=rank, world_size=count), backend="aot_eager")):
        loss = ours(I[own], T[own], scale)
        found.append([loss.detach(), *torch.autograd.grad(loss, [I, T, scale])])
    return found


@pytest.mark.slow
def test_the_module_compiles(tmp_path):
    for eager, compiled in together(2, tmp_path, compiled_module):
        assert all(x.allclose(y, rtol=1e-12) for x, y in zip(eager, compiled, strict=True))


@pytest.mark.slow
@WAYS
@pytest.mark.parametrize("backend", [TRITON, pytest.param("blocks", marks=TRITON.marks)])
@pytest.mark.skipif(DEVICE != "cpu", reason="gloo's processes are on the CPU")
def test_tritons_logarithms_are_merged_in_their_own_base(backend, ring, tmp_path):
    check(3, tmp_path, 2e-6, torch.float32, torch.float64, ring=ring, backend=backend,
          with_ids=True)


@pytest.mark.slow
@WAYS
def test_16_bits(ring, tmp_path):
    """bfloat16 features travel as they are; their gradients are summed in bfloat16."""
    check(3, tmp_path, 0.03, torch.bfloat16, torch.float64, ring=ring)


@pytest.mark.slow
@WAYS
def test_compiled_in_one_graph(ring, tmp_path):
    check(2, tmp_path, ring=ring, compiled=True, with_ids=True)


def as_open_clip(rank, count):
    """`ClipLoss`, as open_clip's factory makes it."""
    (I, T, scale), _ = batch(count, torch.float64)  # noqa: E741
    own = slice(rank * M, (rank + 1) * M)
    ours = ClipLoss(local_loss=True, gather_with_grad=True, cache_labels=True, rank=rank,
                    world_size=count, use_horovod=False)
    loss = ours(I[own], T[own], scale, output_dict=True)["contrastive_loss"]
    found = [loss.detach(), *torch.autograd.grad(loss, [I, T, scale])]
    for x in found:
        torch.distributed.all_reduce(x)
        x /= count
    return found


@pytest.mark.slow
def test_the_module_takes_all_processes(tmp_path):
    expected = alone(2, torch.float64)
    for found in together(2, tmp_path, as_open_clip):
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------ mistakes


MISTAKES = {  # in the slab, in the ring, or in both
    "columns are not merged": (False, "dist.all_reduce(total, dist.ReduceOp.SUM, together.group)",
                               "None"),
    "columns are merged without a maximum in common": (
        False, "dist.all_reduce(top, dist.ReduceOp.MAX, together.group)", "None"),
    "another rank's labels": (False, "Labels(together.rank * len(I), True, *ids[:1], *every_id)\n"
                              "    r, c = run", "Labels(0, True, *ids[:1], *every_id)\n"
                              "    r, c = run"),
    "every block has labelled pairs": (True, "(together.rank - owner) * M", "0 * M"),
    "texts bring no gradients": (True, "dT.take(parts[1].to(scale.dtype))",
                                 "dT.take(0 * parts[1].to(scale.dtype))"),
    "sums don't meet": (True, "self.add(self.home(), part)", "(self.home(), part)[1]")}


def share_of_copy(rank, count, folder, name, ring):
    """`share` with a copy of the package in its place."""
    sys.path.insert(0, folder)
    globals()["clip_loss"] = importlib.import_module(name).clip_loss
    return share(rank, count, torch.float64, with_ids=True, ring=ring)


@pytest.mark.slow
@WAYS
def test_a_copy_without_mistakes_passes(ring, tmp_path, monkeypatch):
    package = mutation.copied_package(tmp_path, monkeypatch)
    try:
        found = together(3, tmp_path, share_of_copy, str(tmp_path), package.__name__, ring)
    finally:
        mutation.forget(package)
    for x, y in zip(found[0], alone(3, torch.float64, with_ids=True), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(name, tmp_path, monkeypatch):
    ring, right, wrong = MISTAKES[name]
    package = mutation.copied_package(tmp_path, monkeypatch, "distributed.py", right, wrong)
    try:
        found = together(3, tmp_path, share_of_copy, str(tmp_path), package.__name__, ring)
    finally:
        mutation.forget(package)
    expected = alone(3, torch.float64, with_ids=True)
    worst = max((x - y).abs().max() for x, y in zip(found[0], expected, strict=True))
    assert not worst < 1e-6  # NaN is no right answer either


# ------------------------------------------------------------------------------ nobody waits


def unlike(rank, count):
    """Every process gets an error in every case, and can go on."""
    told, group = [], torch.distributed.group.WORLD
    last = rank == count - 1
    ids = torch.arange(4)
    for arguments, options in [
            ((X[:3 + last], X[:3 + last], 9.0), {}),
            ((X.double() if last else X,) * 2 + (9.0,), {}),
            ((X, X, 9.0), {"image_ids": ids} if last else {}),
            ((X, X[:3] if last else X, 9.0), {}),
            ((X, X, -1.0 if last else 9.0), {}),
            ((X, X if not last else None, 9.0), {}),
            ((X, X, 9.0), {"direction": "rows"}), ((X, X, 9.0), {"backend": "dense"})]:
        try:
            clip_loss(*arguments, group=group, **options)
            told.append("")
        except ValueError as error:
            told.append(str(error))
    for options in ({"ring": last}, {"backend": "chunked" if last else "tiled"}, {}):
        texts = X if options else X.clone().requires_grad_(last)  # frozen on one rank only
        try:
            clip_loss(X, texts, 9.0, group=group, **options)
            told.append("")
        except ValueError as error:
            told.append(str(error))
    wrong = ClipLoss(rank=rank, world_size=count + 1)
    try:
        wrong(X, X, 9.0)
    except ValueError as error:
        told.append(str(error))
    return told, clip_loss(X, X, 9.0, group=group).item()


@pytest.mark.slow
def test_what_is_not_alike_is_an_error_everywhere(tmp_path):
    """One process with fewer pairs, another type, or bad input: all are told, and none waits."""
    first, last = together(2, tmp_path, unlike)
    assert first[1] == last[1] > 0
    alike = "all ranks must bring as many pairs of the same kind; "
    expected = [
        (alike + "rank 0: 3 pairs of 4 features, torch.float32; "
         "rank 1: 4 pairs of 4 features, torch.float32",) * 2,
        (alike + "rank 0: 4 pairs of 4 features, torch.float32; "
         "rank 1: 4 pairs of 4 features, torch.float64",) * 2,
        (alike + "rank 0: 4 pairs of 4 features, torch.float32; "
         "rank 1: 4 pairs of 4 features, torch.float32, with ids",) * 2,
        ("rank 1 refused its input", "direction 'both' needs as many texts as images"),
        ("rank 1 refused its input", "logit_scale is the multiplier: finite and positive; got -1"),
        ("rank 1 refused its input", "text_features must be a tensor, not NoneType"),
        ("direction 'rows' has no group",) * 2, ("backend 'dense' is for one process",) * 2,
        ("all ranks must call the loss alike",) * 2, ("",) * 2,  # both of these are in base e
        ("all ranks must call the loss alike",) * 2,
        ("rank 0 of 3 was said, but this is rank 0 of 2",
         "rank 1 of 3 was said, but this is rank 1 of 2")]
    for told, words in zip(zip(first[0], last[0], strict=True), expected, strict=True):
        assert told[0].startswith(words[0]) and told[1].startswith(words[1]), told


def test_a_group_is_asked_for_what_it_is():
    with pytest.raises(ValueError, match="group must be a torch.distributed.ProcessGroup"):
        clip_loss(X, X, 9.0, group="WORLD")
    with pytest.raises(ValueError, match=r"world_size 2 needs torch.distributed.init_process"):
        ClipLoss(rank=1, world_size=2)(X, X, 9.0)
    with pytest.raises(ValueError, match="use_horovod: Horovod is not supported"):
        ClipLoss(use_horovod=True)

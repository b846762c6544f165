"""The loss in other people's trainers: what both READMEs show runs, and open_clip agrees."""

import doctest
import importlib.util
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from miniclip_kernels import ClipLoss
from processes import together

ROOT = Path(__file__).parents[2]


def examples(page: str) -> str:
    """Every block of a page that has a prompt, and whose packages are installed."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    missing = [name for name in ("pytorch_lightning", "transformers")
               if importlib.util.find_spec(name) is None]
    return "\n".join(block for block in blocks if block.startswith(">>> ")
                     and not any(name in block for name in missing))


@pytest.mark.parametrize("page, at_least", [("README.md", 10), ("kernels/README.md", 50)])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_readmes_examples_print_what_they_say(page, at_least):
    test = doctest.DocTestParser().get_doctest(examples(page), {}, page, None, 0)
    assert len(test.examples) >= at_least
    assert doctest.DocTestRunner().run(test).failed == 0


def test_the_kernels_readmes_first_lines_run():
    text = (ROOT / "kernels/README.md").read_text()
    names = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], names)
    assert names["loss"].isfinite()
    assert all(names[name].grad.abs().sum() > 0 for name in ("images", "texts", "scale"))


def open_clips_loss():
    """open_clip's class, without its package, which needs torchvision; None if not installed."""
    package = importlib.util.find_spec("open_clip")  # finds a package without importing it
    if package is None:
        return None
    spec = importlib.util.spec_from_file_location(
        "open_clip_loss", Path(package.origin).with_name("loss.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ClipLoss


def both_losses(rank, count, bias):
    """Loss and gradients averaged over the processes, of theirs and of ours."""
    generator = torch.Generator().manual_seed(rank)
    found = []
    for kind in (open_clips_loss(), ClipLoss):
        generator.manual_seed(rank)
        leaves = [F.normalize(torch.randn(6, 5, generator=generator, dtype=torch.float64))
                  .requires_grad_() for _ in range(2)]
        leaves.append(torch.tensor(9.0, dtype=torch.float64, requires_grad=True))
        loss_of = kind(local_loss=True, gather_with_grad=True, cache_labels=True, rank=rank,
                       world_size=count, use_horovod=False)
        loss = loss_of(*leaves, logit_bias=bias, output_dict=True)["contrastive_loss"]
        results = [loss.detach(), *torch.autograd.grad(loss, leaves)]
        for x in (results[0], results[3]):  # features and their gradients are each process's own
            torch.distributed.all_reduce(x)
        found.append(results)
    return found


@pytest.mark.slow
@pytest.mark.skipif(open_clips_loss() is None, reason="open_clip is not installed")
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("bias", [None, -10.0])
def test_open_clips_class_gives_the_same(bias, count, tmp_path):
    for theirs, ours in together(count, tmp_path, both_losses, bias):
        for x, y in zip(theirs, ours, strict=True):
            torch.testing.assert_close(y, x, rtol=1e-12, atol=1e-12)

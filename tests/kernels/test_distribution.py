"""The kernels as a distribution of their own: its wheel, a vendored copy, and both wheels' files.

Each import happens in a process that knows the installed packages but nothing of this repository,
not even its editable install.
"""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USE = """
import torch
import torch.nn.functional as F
torch.manual_seed(0)
images, texts = (F.normalize(torch.randn(30, 16)).requires_grad_() for _ in range(2))
loss = kernels.clip_loss(images, texts, 14.3)
loss.backward()
assert loss.equal(kernels.ClipLoss()(images, texts, 14.3)) and images.grad.abs().sum() > 0
compiled = torch.compile(kernels.clip_loss, backend="eager", fullgraph=True)
assert compiled(images, texts, 14.3).equal(loss)
assert kernels.clip_loss(images, texts, 14.3, backend="numpy").isclose(loss)
try:
    import miniclip
except ImportError:
    print(kernels.__name__, kernels.__version__, kernels.__file__)
"""


def build(project: str, folder: Path) -> Path:
    """The wheel of a copy of the project: nothing is built in the repository."""
    copy = folder / "copy"
    for name in ("pyproject.toml", "README.md", "LICENSE", "miniclip", "kernels"):
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=ignore)
        else:
            copy.mkdir(exist_ok=True)
            shutil.copy(source, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
               "--wheel-dir", str(folder), str(copy / project)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    wheel, = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build("kernels", tmp_path_factory.mktemp("kernels"))


def metadata(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        name, = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def used_alone(path: Path, name: str) -> str:
    """Use the package of that name from a folder, with only the installed packages beside it."""
    installed = [sysconfig.get_path(kind) for kind in ("purelib", "platlib")]
    code = (f"import sys; sys.path += {[str(path), *installed]!r}\n"
            f"import importlib; kernels = importlib.import_module({name!r})\n{USE}")
    # -S: no .pth file of the environment is read, so no editable install is known.
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd="/", text=True,
                         capture_output=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


@pytest.mark.slow
def test_the_wheel_needs_torch_numpy_and_triton_alone(wheel):
    found = metadata(wheel)
    assert found["Name"] == "miniclip-kernels"
    names = {line.split(";")[0].split(">")[0].strip() for line in found.get_all("Requires-Dist")}
    assert names == {"torch", "numpy", "triton"}
    triton, = (line for line in found.get_all("Requires-Dist") if line.startswith("triton"))
    assert "platform_system == 'Linux'" in triton.replace('"', "'")
    with zipfile.ZipFile(wheel) as archive:
        folders = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"miniclip_kernels"}


@pytest.mark.slow
def test_the_wheel_works_alone(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    name, version, file = used_alone(tmp_path, "miniclip_kernels").split()
    assert name == "miniclip_kernels" and Path(file).is_relative_to(tmp_path)
    assert version == metadata(wheel)["Version"]


@pytest.mark.slow
def test_a_vendored_copy_works_under_another_name(tmp_path):
    shutil.copytree(ROOT / "kernels/miniclip_kernels", tmp_path / "somebody/miniclip_kernels")
    name, _, file = used_alone(tmp_path, "somebody.miniclip_kernels").split()
    assert name == "somebody.miniclip_kernels" and Path(file).is_relative_to(tmp_path)


@pytest.mark.slow
def test_the_projects_wheel_has_both_and_every_file(tmp_path):
    wheel = build(".", tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.endswith(".py")}
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "miniclip").rglob("*.py")}
    expected |= {f"miniclip_kernels/{path.name}"
                 for path in (ROOT / "kernels/miniclip_kernels").glob("*.py")}
    assert names == expected

"""Which device computes, and in which precision it is fast."""

import platform
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def pick_device(name: str = "auto") -> torch.device:
    """auto | cpu | cuda | mps → an available device; ValueError for one that is not available."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
             "cpu": True}
    there = [device for device, here in found.items() if here]
    if name not in ("auto", *there):
        raise ValueError(f"device {name!r} is not here; found: {', '.join(there)}")
    return torch.device(there[0] if name == "auto" else name)


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware (for a CPU: AMX, AVX512-BF16)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (
        torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def described(device: torch.device) -> dict:
    """What belongs to every recorded figure: processors and releases differ in the last digits."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type}, {platform.machine()}"
    return {"device": name, "threads": torch.get_num_threads(), "bf16": bf16_is_fast(device),
            "torch": torch.__version__}


def uses_bf16(device: torch.device, precision: str = "auto") -> bool:
    """precision: "auto" (where it is fast), or "bf16" or "float32", whether it is fast or not."""
    return bf16_is_fast(device) if precision == "auto" else precision == "bf16"


@contextmanager
def fast_math(device: torch.device, precision: str = "auto"):
    """Run the forward pass in bfloat16 where `uses_bf16`, with the device's fastest attention."""
    bf16 = uses_bf16(device, precision)
    attention = nullcontext()
    if bf16 and device.type == "cpu":
        # On sequences this short, PyTorch's flash attention for CPUs takes four times as long in
        # bfloat16 as plain matrix products: half of a training step. (In float32 it takes half as
        # long.) This switch keeps the plain products in bfloat16: on CPUs too, despite its name.
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        attention = sdpa_kernel(SDPBackend.MATH)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16), attention:
        yield

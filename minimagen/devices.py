"""Where to compute, and in which precision. Fixed rules decide this; nothing is timed."""

from __future__ import annotations

import errno
import re
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def choose_device(name: DeviceName = "auto") -> torch.device:
    """The device called ``name``; "auto" takes CUDA, else MPS, else the CPU.

    Raises ValueError if this machine has no such device.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    here = [kind for kind, available in there.items() if available]
    if name == "auto":
        name = here[0]  # type: ignore[assignment]
    if name not in here:
        raise ValueError(f"`device` is {name!r}, here it should be one of auto, {', '.join(here)}")
    return torch.device(name)


def choose_precision(name: Precision, device: torch.device) -> Precision:
    """The precision to use on a device: "fp32", "bf16" or "fp16".

    "auto" takes bf16 where the hardware supports it: CUDA with compute capability 8.0 (Ampere) or
    higher, and CPUs with AMX or AVX512-BF16. The rule is fixed, so that the same seed gives the
    same training. Raises ValueError for fp16 on the CPU: torch has no kernels for it there.
    """
    if name == "fp16" and device.type == "cpu":
        raise ValueError("`precision` is 'fp16', on the CPU it should be auto, fp32 or bf16")
    if name != "auto":
        return name
    return "bf16" if _has_bf16(device) else "fp32"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # from torch 2.10 on
        found = torch.cpu.get_capabilities()
        return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
    return False


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Mixed precision for the code inside; "fp32" changes nothing."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


# What torch says: on CPUs (Linux, Windows), in C++, on CUDA, in CUDA's libraries, on MPS.
NO_MEMORY = r"can't allocate memory|not enough memory|bad_alloc|out of memory|ALLOC_FAILED"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory, of the CPU or of a GPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search(NO_MEMORY, str(error)) is not None
    )

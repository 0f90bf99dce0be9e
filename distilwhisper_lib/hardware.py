"""This machine: the device, the precision that it multiplies fast, the memory that a run took."""

from __future__ import annotations

import os
import resource
from functools import cache

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def best_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def precision_here(precision: str) -> str:
    """What this machine trains in: "fp32", or autocast to "bf16" or, with loss scaling, "fp16".

    "auto" is bf16 where the hardware multiplies it, else fp16 on a GPU and fp32 on a CPU. A choice
    is honoured, but for fp16 on a CPU, which has no loss scaling to go with it: that is fp32, so
    that the public LoRA recipe, which asks for fp16, runs everywhere. Records tell the result.
    """
    on_gpu = torch.cuda.is_available()
    if precision == "auto":
        if multiplies_bf16():
            return "bf16"
        return "fp16" if on_gpu else "fp32"
    return "fp32" if precision == "fp16" and not on_gpu else precision


def multiplies_bf16() -> bool:
    """Whether bfloat16 is fast here, and not emulated as on a T4 or an older CPU."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    can = torch.cpu.get_capabilities()
    return bool(can.get("amx_bf16", False) or can.get("avx512_bf16", False))


@cache
def profile_here() -> tuple[str, bool]:
    """The profile of presets.py for this machine, and whether its memory is short for training
    whisper-small with eight clips of 30 s at once: 12 GiB hold that."""
    if not torch.cuda.is_available():
        return "cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 12 * 2**30
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    name = "t4" if memory < 20 else "l4" if memory < 36 else "a100"
    return name, memory < 12


def peak_memory() -> int:
    """Bytes: the GPU's peak where there is one, else this process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

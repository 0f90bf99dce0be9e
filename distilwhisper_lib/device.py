"""What this machine trains and transcribes on, and what that took."""

from __future__ import annotations

import resource

import torch

from .config import RunConfig


def best_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def precision_here(config: RunConfig) -> str:
    """The precision that this machine trains in: half precision needs a GPU here."""
    if not torch.cuda.is_available() or config.precision == "fp32":
        return "fp32"
    if config.precision == "auto":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return config.precision


def peak_memory() -> int:
    """Bytes: the GPU's peak where there is one, else this process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

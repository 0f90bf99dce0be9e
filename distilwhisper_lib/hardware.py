"""Profiles of machines: how many rows at once, and in which precision.

A profile never changes the batch that the optimiser sees: ``batch_size`` is the paper's, and
gradients of several micro-batches are accumulated to it. What a user overrides wins.
"""

from __future__ import annotations

from typing import Any

# Sized for whisper-small, 30 s clips and a large-v2 teacher beside it in float32. What a training
# step of experts keeps was measured on a CPU under bf16 autocast: 0.7 GiB a row, 0.2 GiB with
# activation checkpointing (a fifth slower). Memory on GPUs is estimated from that, not measured.
PROFILES: dict[str, dict[str, Any]] = {
    "none": {},  # as the preset says
    "cpu": {
        "micro_batch": 4,
        "eval_batch_size": 8,
        "precision": "auto",
        "activation_checkpointing": False,
    },
    "t4": {  # 16 GB, no bfloat16; with cached teacher targets it may do without checkpointing
        "micro_batch": 8,
        "eval_batch_size": 16,
        "precision": "fp16",
        "activation_checkpointing": True,
    },
    "l4": {  # 24 GB
        "micro_batch": 8,
        "eval_batch_size": 32,
        "precision": "bf16",
        "activation_checkpointing": False,
    },
    "a100": {  # 40 GB
        "micro_batch": 16,
        "eval_batch_size": 64,
        "precision": "bf16",
        "activation_checkpointing": False,
    },
}


def settings_for(hardware: str, batch_size: int) -> dict[str, Any]:
    """A profile's settings, its micro-batch cut down to one that divides ``batch_size``."""
    profile = dict(PROFILES[hardware])
    if profile and batch_size > 0:
        limit = min(profile["micro_batch"], batch_size)
        profile["micro_batch"] = next(n for n in range(limit, 0, -1) if batch_size % n == 0)
    return profile

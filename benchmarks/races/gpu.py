"""What a GPU gains: samples a second and memory at batch 8, with a teacher of large-v2's size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.races.harness import Row, Samples, check, milliseconds, row
from benchmarks.races.models import routed
from benchmarks.races.setting import Setting
from benchmarks.races.steps import Trainee, prepared, tolerance
from distilwhisper_lib.losses.teacher import Teacher

ROWS = 8
T4_BYTES = 15e9  # of the 16 GB of a T4, what is left beside the driver and CUDA itself


def gpu_training(setting: Setting) -> Iterator[Row]:
    """Online in float32 as the public code has it, cached in bfloat16, and cached in float16.

    One after the other, not in turn: accelerate holds one precision a process at a time, and each
    side's memory is to be its own.
    """
    table, stored, _ = prepared(setting)
    setting.drop("teacher")
    bf16 = _run(setting, table, stored, "bf16")
    fp16 = _run(setting, table, stored, "fp16")
    same = _run(setting, table, Teacher(setting.teacher), "bf16", rounds=0)
    online = _run(setting, table, Teacher(setting.teacher), "fp32")
    setting.drop("teacher")
    apart = abs(same["loss"] - bf16["loss"]) / same["loss"]
    limit = tolerance(setting)
    checks = [check("distillation loss, online and cached: relative difference", apart, limit)]
    about = {"checks": checks, "rows": ROWS}
    samples: Samples = {"online fp32": online["ms"], "cached bf16": bf16["ms"]}
    yield row(
        "training at batch 8, online fp32 / cached bf16", samples, goal=">= 10",
        clips_per_second={k: round(1000 * ROWS / min(v), 1) for k, v in samples.items()}, **about,
    )  # fmt: skip
    peaks: Samples = {"cached bf16": [bf16["bytes"] / 1e6], "online fp32": [online["bytes"] / 1e6]}
    title = "memory at batch 8, cached bf16 / online fp32"
    yield row(title, peaks, goal="<= 0.4", unit="MB", **about)
    peaks = {"cached fp16": [fp16["bytes"] / 1e6], "a T4's": [T4_BYTES / 1e6]}
    yield row("memory at batch 8, cached fp16 / a T4's", peaks, goal="<= 1", unit="MB", **about)


def _run(
    setting: Setting, table: Any, teacher: Any, precision: str, rounds: int = 10
) -> dict[str, Any]:
    """The first step's distillation loss, milliseconds of the steps after it, and the peak of all
    that is allocated."""
    student = routed(setting.student_dimensions)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    trainee = Trainee(setting, "js", student, table, teacher, precision, ROWS)
    trainee.step()
    loss = trainee.parts["loss_distil"]
    ms = [milliseconds(trainee.step, setting.device) for _ in range(setting.rounds(rounds))]
    return {"loss": loss, "ms": ms, "bytes": torch.cuda.max_memory_allocated()}

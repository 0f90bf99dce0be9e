"""Every race by the name that --only takes, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.races.files import expert_file, load_time, log_mel
from benchmarks.races.gpu import gpu_training
from benchmarks.races.harness import Row
from benchmarks.races.inference import forward, generate, low_rank, mixed_batch, routing
from benchmarks.races.loss import loss_block
from benchmarks.races.setting import Setting
from benchmarks.races.steps import distillation, packing, step_memory, steps

Race = Callable[[Setting], Iterator[Row]]

_ANYWHERE = (
    routing, forward, generate, low_rank, mixed_batch, loss_block, step_memory, distillation, steps,
    packing,
)  # fmt: skip
_HERE_ALONE = {"cpu": (log_mel, expert_file, load_time), "cuda": (gpu_training,)}


def races(device: str) -> dict[str, Race]:
    """Those that a device has: files and features are the CPU's business."""
    return {race.__name__: race for race in (*_ANYWHERE, *_HERE_ALONE[device])}

"""The processes of one run: what torchrun or `accelerate launch` started together.

Process 0, the first, is the one that writes and decides; the others compute their share of every
step. Without a launcher there is one process, the first, and nothing here does anything.

Gradients go over NCCL on GPUs. Words between processes go over the CPU (gloo) on any machine: the
first one may build teacher targets for hours, and who waits for it keeps no GPU busy and gives up
late, while a process that hangs in the middle of a step is noticed as early as torch does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from distilwhisper_lib.hardware import best_device

PATIENCE = timedelta(hours=24)  # with which the others wait for the first one's word

T = TypeVar("T")
_words: dist.ProcessGroup | None = None


def join() -> None:
    """Take this process's place among those of its launcher, and its GPU; once is enough."""
    global _words
    if not _launched() or _words is not None:
        return
    on_gpu = best_device() == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        # Else accelerate names it "cpu:0", where transformers 5.15 cannot load an optimiser.
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    if not _joined():
        dist.init_process_group("nccl" if on_gpu else "gloo")
    _words = dist.new_group(backend="gloo", timeout=PATIENCE)


def leave() -> None:
    """Part from the other processes: from here on each is on its own."""
    global _words
    _words = None
    if _joined():
        dist.destroy_process_group()


def _launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def count() -> int:
    """How many processes run this run."""
    return dist.get_world_size() if _joined() else 1


def place() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if _joined() else 0


def is_first() -> bool:
    """Whether this is the process that writes and decides; known before it joins the others."""
    return not _launched() or int(os.environ.get("RANK", 0)) == 0


def wait() -> None:
    """Come back when every process is here."""
    total(torch.zeros(1))


def told_by_first(work: Callable[[], T]) -> T:
    """What ``work`` returns in the first process, which alone does it; the others wait for it."""
    answer: list[Any] = [work() if is_first() else None]
    if count() > 1:
        dist.broadcast_object_list(answer, src=0, group=_words)
    return answer[0]


def found_by_any(found: T | None) -> T | None:
    """The first that is not None of what the processes found, in each of them."""
    everyone = [found] * count()
    if count() > 1:
        dist.all_gather_object(everyone, found, group=_words)
    return next((item for item in everyone if item is not None), None)


@contextmanager
def first_before_others() -> Iterator[None]:
    """The block in the first process, and after it in the others, who find what it left."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def total(values: Tensor) -> Tensor:
    """The sum of every process's ``values``, on the CPU."""
    return _reduced(values, "SUM")


def largest(value: int) -> int:
    """The largest of every process's ``value``."""
    return int(_reduced(torch.tensor(value), "MAX"))


def _reduced(values: Tensor, how: str) -> Tensor:
    values = values.cpu().clone()
    if count() > 1:
        dist.all_reduce(values, getattr(dist.ReduceOp, how), group=_words)
    return values

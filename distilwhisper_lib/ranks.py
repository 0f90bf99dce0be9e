"""The processes of one run: what torchrun or `accelerate launch` started together.

Process 0, the first, is the one that writes and decides; the others compute their share of every
step. Without a launcher there is one process, the first, and nothing here does anything.

Words between processes go over the CPU (gloo) on any machine, so that waiting for the first one,
which may build teacher targets for hours, keeps no GPU busy; gradients go over NCCL on GPUs.
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

from .device import best_device

# How long the others wait for the first before they give up. A launcher ends all processes of a
# run when one of them dies, so this is no limit on how long a crash goes unnoticed.
PATIENCE = timedelta(hours=24)

T = TypeVar("T")


def join() -> None:
    """Take this process's place among those of its launcher, and its GPU."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    on_gpu = best_device() == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)


def leave() -> None:
    """Part from the other processes: from here on each is on its own."""
    if _joined():
        dist.destroy_process_group()


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def count() -> int:
    """How many processes run this run."""
    return dist.get_world_size() if _joined() else 1


def place() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if _joined() else 0


def is_first() -> bool:
    """Whether this is the process that writes and decides."""
    return place() == 0


def wait() -> None:
    """Come back when every process is here."""
    total(torch.zeros(1))


def told_by_first(work: Callable[[], T]) -> T:
    """What ``work`` returns in the first process, which alone does it; the others wait for it."""
    answer: list[Any] = [work() if is_first() else None]
    if count() > 1:
        dist.broadcast_object_list(answer, src=0, device=torch.device("cpu"))
    return answer[0]


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
        dist.all_reduce(values, getattr(dist.ReduceOp, how))
    return values

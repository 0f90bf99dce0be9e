"""How the processes of a run share its steps, so that any number of them trains the same.

A step is ``batch_size`` clips in micro-batches, and its loss the mean over these of what is a mean
over each. One process takes them one after another; W processes take W at a time, each its own,
and average the gradients: the same sum in another order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import Sampler

from distilwhisper_lib import ranks
from distilwhisper_lib.config.settings import RunConfig
from distilwhisper_lib.errors import UserError

STRETCH = 8  # micro-batches


class MicroBatches(Sampler[list[int]]):
    """The micro-batches of an epoch, in one order whatever the number of processes.

    As many for every process: where they do not divide, the last one is said again. What is said
    again has weight 0 in its step (see Share), so that no clip counts twice. ``seconds``: of each
    clip; of every STRETCH micro-batches in their random order, those of like length come together.
    """

    def __init__(
        self,
        sampler: Sampler[int],
        size: int,
        processes: int,
        seconds: Sequence[float] | None = None,
    ) -> None:
        self.sampler, self.size, self.processes, self.seconds = sampler, size, processes, seconds

    def __len__(self) -> int:
        real = math.ceil(len(self.sampler) / self.size)
        return math.ceil(real / self.processes) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        if self.seconds is not None:
            order = self._alike(order)
        batches = [order[i : i + self.size] for i in range(0, len(order), self.size)]
        return iter(batches + batches[-1:] * (len(self) - len(batches)))

    def _alike(self, order: list[int]) -> list[int]:
        """The order with clips of like length side by side, micro-batch by micro-batch.

        These stand where one of their clips stood, so that long and short ones take turns by
        chance. What is left at the end, less than a micro-batch, is whatever chance put there.
        """
        whole = len(order) - len(order) % self.size
        stretch, made = STRETCH * self.size, []
        for first in range(0, whole, stretch):
            near = order[first : min(first + stretch, whole)]
            place = {clip: i for i, clip in enumerate(near)}
            near.sort(key=self.seconds.__getitem__)
            batches = [near[i : i + self.size] for i in range(0, len(near), self.size)]
            made += sorted(batches, key=lambda batch, place=place: place[batch[0]])
        return [clip for batch in made for clip in batch] + order[whole:]


@dataclass(frozen=True)
class Share:
    """The sizes by which a process knows its part of each step."""

    clips: int  # of an epoch
    size: int  # clips of a micro-batch
    each: int  # micro-batches of a whole step that each process takes
    processes: int

    def weight(self, step: int, place: int, taken: int) -> float:
        """How the micro-batch at ``place`` of a step counts in it: those said again not at all.

        ``step`` counts from the beginning of training. The Trainer divides by the ``taken``
        micro-batches of each process, those said again included: where there are such, the
        others weigh more than 1. Else 1.
        """
        in_epoch, whole_step = math.ceil(self.clips / self.size), self.each * self.processes
        before = step % math.ceil(in_epoch / whole_step) * whole_step
        in_step = min(whole_step, in_epoch - before)
        return taken * self.processes / in_step if place < in_step else 0.0


def seed_of(*what: int) -> int:
    """A seed that no other numbers give, but by chance."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:4])


def micro_batches_each(config: RunConfig) -> int:
    """How many micro-batches of a step each process takes.

    A process's micro-batch is the run's: losses are means over it. Raises UserError when the
    processes cannot take equally many.
    """
    micro, processes = min(config.micro_batch, config.batch_size), ranks.count()
    in_step = config.batch_size // micro
    if in_step % processes == 0:
        return in_step // processes
    usable = [str(n) for n in range(1, in_step + 1) if in_step % n == 0]
    largest = config.batch_size // processes
    smaller = (
        f"set micro_batch to {largest}, which is another run"
        if largest * processes == config.batch_size
        else "choose another batch_size, which is another run"
    )
    raise UserError(
        f"batch_size={config.batch_size} in micro-batches of {micro} clips is {in_step} a step, "
        f"which {processes} processes cannot share equally: start {' or '.join(usable)}, or "
        f"{smaller}"
    )

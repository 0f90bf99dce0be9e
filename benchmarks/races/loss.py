"""The losses over the vocabulary: a chunk of labelled positions at a time, against all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.races import memory
from benchmarks.races.harness import Row, check, interleaved, row
from benchmarks.races.setting import Setting
from distilwhisper_lib.losses.chunked import States, token_losses
from distilwhisper_lib.losses.divergences import cross_entropy, divergence
from distilwhisper_lib.speech.features import IGNORE


class _Case:
    """A batch of 8 texts of 12 to 48 labels, padded to the longest, and both ways to its loss."""

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(3)
        rows, longest = (2, 8) if setting.small else (8, 48)
        lengths = torch.linspace(longest // 4, longest, rows).long()
        vocabulary = setting.student_dimensions["vocab_size"]

        def states(width: int) -> States:
            whisper = torch.randn(rows, longest, width), 0.02 * torch.randn(vocabulary, width)
            return States(*(tensor.to(setting.device) for tensor in whisper))

        self.student = states(setting.student_dimensions["d_model"])
        self.teacher = states(setting.teacher_dimensions["d_model"])
        self.student.states.requires_grad_()
        labels = torch.randint(1000, 20_000, (rows, longest))
        labels[torch.arange(longest) >= lengths[:, None]] = IGNORE
        self.labels = labels.to(setting.device)
        self.keep = self.labels != IGNORE

    def chunked(self) -> Tensor:
        ce, distil = token_losses(
            self.student, self.labels, self.teacher, "js", keep=self.keep, smoothing=0.1
        )
        return self._finish(ce + 2 * distil)

    def whole(self) -> Tensor:
        logits = F.linear(*self.student)  # (B, T, V), padding and all
        said = F.linear(*self.teacher)
        ce = cross_entropy(logits, self.labels, smoothing=0.1)
        return self._finish(ce + 2 * divergence(logits, said, "js", keep=self.keep))

    def _finish(self, loss: Tensor) -> Tensor:
        self.student.states.grad = None
        loss.backward()
        return loss.detach()


def loss_block(setting: Setting) -> Iterator[Row]:
    """Cross entropy and JS with their gradients, of a batch of 8."""
    case = _Case(setting)
    losses, gradients = {}, {}
    for name in ("chunked", "whole"):
        losses[name] = getattr(case, name)().item()
        gradients[name] = case.student.states.grad.clone()
    apart = abs(losses["chunked"] - losses["whole"]) / losses["whole"]
    slope = (gradients["chunked"] - gradients["whole"]).norm() / gradients["whole"].norm()
    checks = [
        check("loss: relative difference", apart, 1e-5),
        check("gradient: relative difference", slope, 1e-4),
    ]
    ways = {"chunked": case.chunked, "whole": case.whole}
    samples = interleaved(ways, setting.rounds(5), setting.device)
    yield row("loss block's time, chunked / whole", samples, checks=checks)
    del case, ways, gradients
    found, sides = memory.peaks(setting, "loss"), [("chunked", "whole")]
    title = "loss block's memory"
    yield from memory.rows(found, title, sides, "of which the call", checks=checks)


def sides_of_memory(setting: Setting) -> dict[str, Any]:
    def ready(name: str) -> Callable[[], Callable[[], Tensor]]:
        return lambda: getattr(_Case(setting), name)

    return {name: ready(name) for name in ("chunked", "whole")}

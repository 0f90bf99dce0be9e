"""The losses of the paper: cross entropy, KL or JS distillation, and the gate budget.

Two conventions, one path. "corrected" (the default) looks at labelled positions and at the frames
that hold audio, exactly and in float32. "authors" is what the public code computes: every
position counts, padding included, and the mixture of JS gets 1e-10 inside its logarithm. Both are
settings of the same functions: a mask that may be None, and an epsilon that may be 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from distilwhisper_lib.speech.features import IGNORE

AUTHORS_EPSILON = 1e-10


class LossParts(NamedTuple):
    """Every part by name, unweighted, as float32 scalars, and their weighted sum."""

    ce: Tensor
    gate: Tensor
    distil: Tensor
    total: Tensor


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Label-smoothed cross entropy, averaged over labelled positions.

    ``logits`` (..., V), ``labels`` (...) with -100 where there is none. A batch without any label
    gives 0, not NaN.
    """
    kept = labels != IGNORE
    if not kept.any():
        return logits.sum() * 0.0
    return cross_entropy_sum(logits[kept], labels[kept], smoothing) / kept.sum()


def cross_entropy_sum(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The same, (N, V) and (N,), summed: positions labelled -100 add nothing."""
    return F.cross_entropy(
        logits.float(), labels, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing
    )


def divergence(
    student: Tensor,
    teacher: Tensor,
    kind: Literal["kl", "js"],
    temperature: float = 1.0,
    keep: Tensor | None = None,
    epsilon: float = 0.0,
) -> Tensor:
    """Divergence of the student's from the teacher's next-token distribution.

    ``student`` and ``teacher`` are logits (..., V); ``keep`` (...) marks the positions that count
    (None: all of them). kl: KL(teacher || student). js: the mean of KL(teacher || M) and
    KL(student || M), M the mean of both, with ``epsilon`` added inside M's logarithm. Sums over
    the vocabulary, averages over positions, times temperature squared; always float32.
    """
    if keep is not None:
        if not keep.any():
            return student.sum() * 0.0
        student, teacher = student[keep], teacher[keep]
    p, q = (log_probs(logits, temperature).flatten(0, -2) for logits in (student, teacher))
    return divergence_sum(p, q, kind, temperature, epsilon) / len(p)


def log_probs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of softened logits (..., V), always float32."""
    return F.log_softmax(logits.float() / temperature, -1)


def divergence_sum(
    p: Tensor, q: Tensor, kind: Literal["kl", "js"], temperature: float = 1.0, epsilon: float = 0.0
) -> Tensor:
    """The same of the log-probabilities (N, V) of student p and teacher q, summed over N.

    Both were softened with ``temperature``, which only scales here.
    """
    if kind == "kl":
        return _kl(q, p) * temperature**2
    mixture = torch.logaddexp(p, q) - math.log(2)
    if epsilon:
        mixture = torch.logaddexp(mixture, mixture.new_tensor(math.log(epsilon)))
    return (_kl(q, mixture) + _kl(p, mixture)) / 2 * temperature**2


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities (N, V), summed over N."""
    return F.kl_div(q, p, reduction="sum", log_target=True)


def gate_mean(gates: Sequence[Tensor], masks: Sequence[Tensor | None]) -> Tensor:
    """Mean gate over all layers and positions pooled, so that long sides weigh more.

    ``gates``: (B, T) per layer; ``masks``: (B, T) bool of the positions that count, or None.
    """
    total = sum((g if m is None else g * m).sum() for g, m in zip(gates, masks, strict=True))
    count = sum(g.numel() if m is None else m.sum() for g, m in zip(gates, masks, strict=True))
    return total / count


def gate_budget(means: Tensor, budget: float) -> Tensor:
    """|mean gate - budget|, averaged over several means where there are several, (N,) or ()."""
    return (means - budget).abs().mean()


def combine(
    ce: Tensor,
    gate: Tensor | None = None,
    distil: Tensor | None = None,
    *,
    task_weight: float = 1.0,
    gate_weight: float = 1.0,
    distil_weight: float = 2.0,
) -> LossParts:
    """Weigh the parts: the paper's sum with a teacher, CE + gate without (no weights).

    The public code's 0.5/sigma^2 weights keep the paper's ratio at a smaller scale.
    """
    zero = ce.new_zeros(())
    gate = zero if gate is None else gate
    task = ce + gate_weight * gate
    if distil is None:
        return LossParts(ce, gate, zero, task)
    return LossParts(ce, gate, distil, task_weight * task + distil_weight * distil)

"""The losses over the vocabulary, from hidden states, a few positions at a time.

A Whisper's logits are its final hidden states times its tied head: 51,865 numbers for each token.
Here they exist for one chunk of positions at a time, and again when gradients are taken, so that
memory does not grow with batch x vocabulary. The formulas are those of divergences.py.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from distilwhisper_lib.losses.divergences import cross_entropy_sum, divergence_sum, log_probs
from distilwhisper_lib.speech.features import IGNORE

# Positions x vocabulary of one chunk: 40 MiB a float32 tensor, of which some ten live at once.
# (glibc gives what is above 32 MiB straight back; smaller ones leave holes, and the heap grows.)
CHUNK_ELEMENTS = 10 * 2**20


class States(NamedTuple):
    """Final decoder hidden states, after the last layer norm, and the head that reads them."""

    states: Tensor  # (..., D)
    head: Tensor  # (V, D)


class TopK(NamedTuple):
    """A teacher's likeliest next tokens, at the temperature of the run."""

    log_probs: Tensor  # (..., K + 1), the last one of all other tokens together
    tokens: Tensor  # (..., K)


def token_losses(
    student: States,
    labels: Tensor,
    teacher: States | TopK | None = None,
    kind: Literal["kl", "js"] = "js",
    *,
    keep: Tensor | None = None,
    smoothing: float = 0.0,
    temperature: float = 1.0,
    epsilon: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(cross entropy, divergence) as losses.cross_entropy and losses.divergence define them.

    ``labels`` (...) with -100 where there is none; ``keep`` (...) marks the positions that the
    divergence counts, all labelled ones among them (None: all). Without a teacher the divergence
    is 0, as both are where nothing counts. Gradients reach the states and the head. TopK is read as
    a distribution that spreads what is left evenly over all other tokens.
    """
    kept = torch.ones_like(labels, dtype=torch.bool) if keep is None else keep
    rows = kept.flatten().nonzero().squeeze(-1)
    labels = labels.flatten()[rows]
    labelled = (labels != IGNORE).sum()
    states = student.states.flatten(0, -2)[rows]  # (N, D)
    head = _in_working_precision(student.head)
    target = _rows_of(teacher, rows)

    def losses_of(part: slice) -> tuple[Tensor, Tensor]:
        logits = F.linear(states[part].to(head.dtype), head)  # (n, V)
        ce = cross_entropy_sum(logits, labels[part], smoothing)
        if target is None:
            return ce, ce.new_zeros(())
        p, q = log_probs(logits, temperature), _log_probs_of(target, part, temperature, len(head))
        return ce, divergence_sum(p, q, kind, temperature, epsilon)

    ce = distil = states[:0].float().sum()  # 0 with a gradient of 0, where nothing counts
    step = max(1, CHUNK_ELEMENTS // len(head))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        if start + step >= len(rows):  # gradients begin with the last chunk: it may as well stay
            parts = losses_of(part)
        else:  # nothing in there is random, so no random state has to be put back
            parts = checkpoint(losses_of, part, use_reentrant=False, preserve_rng_state=False)
        ce, distil = ce + parts[0], distil + parts[1]
    return ce / labelled.clamp(min=1), distil / max(len(rows), 1)


def _in_working_precision(head: Tensor) -> Tensor:
    """The head as autocast would have it in every product: turned over once, not in each chunk."""
    kind = head.device.type
    return head.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else head


def _rows_of(teacher: States | TopK | None, rows: Tensor) -> States | TopK | None:
    if teacher is None:
        return None
    first = teacher[0].flatten(0, -2)[rows]
    if isinstance(teacher, States):
        return States(first, _in_working_precision(teacher.head))
    return TopK(first, teacher.tokens.flatten(0, -2)[rows])


def _log_probs_of(target: States | TopK, part: slice, temperature: float, size: int) -> Tensor:
    """A teacher's log-probabilities (n, V) of some positions."""
    if isinstance(target, States):
        states = target.states[part].to(target.head.dtype)
        return log_probs(F.linear(states, target.head), temperature)
    tokens = target.tokens[part].long()
    kept = log_probs(target.log_probs[part])  # sums to 1 again: half precision rounded each of them
    others = kept[:, -1:] - math.log(size - tokens.shape[-1])
    return others.expand(-1, size).scatter(-1, tokens, kept[:, :-1])


def top_k(states: States, k: int, temperature: float) -> TopK:
    """The k likeliest tokens of each position, and the mass of all others."""
    everything = log_probs(F.linear(states.states, states.head), temperature)
    k = min(k, everything.shape[-1] - 1)
    found, tokens = everything.topk(k, -1)
    others = everything.scatter(-1, tokens, float("-inf")).logsumexp(-1, keepdim=True)
    return TopK(torch.cat([found, others], -1), tokens)

"""What a training step minimises: one forward pass and a run's configuration -> loss parts.

Both conventions go through these functions. "authors" differs from "corrected" by what it counts
(no masks), by one epsilon, by the noise of the very first step, and by the weights that
config/settings.py chose; no formula is written twice.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from distilwhisper_lib.config.settings import WITH_EXPERTS, RunConfig
from distilwhisper_lib.losses.chunked import States, TopK, token_losses
from distilwhisper_lib.losses.divergences import (
    AUTHORS_EPSILON,
    LossParts,
    combine,
    gate_budget,
    gate_mean,
)
from distilwhisper_lib.model.clsr import GateTrace
from distilwhisper_lib.speech.features import IGNORE


class Counted(NamedTuple):
    """Masks (B, T) of the positions whose gates count; None: all of them."""

    heard: Tensor | None  # encoder positions
    said: Tensor | None  # decoder inputs


class GateMeans(NamedTuple):
    """Mean gates of one pass, under the names of the training log."""

    gate_mean: Tensor  # both sides, pooled by position count
    gate_mean_encoder: Tensor
    gate_mean_decoder: Tensor


def budgeted(run: RunConfig, gates: GateTrace, masks: Counted, means: GateMeans) -> Tensor:
    """The means that the budget holds for, by ``budget_scope``: (), (2,) or (layers,).

    ``means``: gate_means() of the same gates.
    """
    if run.budget_scope == "pooled":
        return means.gate_mean
    if run.budget_scope == "side":
        return torch.stack([means.gate_mean_encoder, means.gate_mean_decoder])
    sides = ((gates.encoder, masks.heard), (gates.decoder, masks.said))
    return torch.stack([gate_mean([x.values], [mask]) for layers, mask in sides for x in layers])


def gate_noise(run: RunConfig, progress: float) -> float:
    """alpha(t) of the gates' noise: grows linearly with training, to its end value.

    Differs: conventions "authors" start with the end value at progress 0, as the public code does.
    """
    progress = min(progress, 1.0)
    if run.conventions == "authors" and progress == 0.0:
        progress = 1.0
    return run.gate_noise * progress


def counted(
    run: RunConfig, encoder_length: int, inputs: dict[str, Tensor], end_token: int
) -> Counted:
    """The frames that hold audio and the decoder inputs that are text (authors: everything).

    ``inputs`` is a batch of features.Collator, ``encoder_length`` its encoder positions.
    """
    if run.conventions == "authors":
        return Counted(None, None)
    filled = inputs["audio_positions"]
    frames = torch.arange(encoder_length, device=filled.device)
    # The end token pads: it is never an input before the end.
    return Counted(frames < filled[:, None], inputs["decoder_input_ids"] != end_token)


def gate_means(gates: GateTrace, masks: Counted) -> GateMeans:
    """Means over the positions that count. Skipped layers count: the budget must reach them."""
    encoder = [layer.values for layer in gates.encoder]
    decoder = [layer.values for layer in gates.decoder]
    heard, said = [masks.heard] * len(encoder), [masks.said] * len(decoder)
    return GateMeans(
        gate_mean([*encoder, *decoder], [*heard, *said]),
        gate_mean(encoder, heard),
        gate_mean(decoder, said),
    )


def loss_parts(
    run: RunConfig,
    student: States,  # (B, T, D) and (V, D)
    labels: Tensor,  # (B, T), -100 where there is none
    means: Tensor | None = None,  # of gates, see budgeted(); None where they do not train
    teacher: States | TopK | None = None,  # of the same (B, T), where there is one
) -> LossParts:
    """Every part of the loss and their sum, as the run's method and conventions have it."""
    authors = run.conventions == "authors"
    ce, distil = token_losses(
        student,
        labels,
        teacher,
        run.divergence or "js",
        keep=None if authors else labels != IGNORE,
        smoothing=run.label_smoothing,
        temperature=run.temperature,
        epsilon=AUTHORS_EPSILON if authors else 0.0,
    )
    if run.method not in WITH_EXPERTS and teacher is None:
        return combine(ce)
    return combine(
        ce,
        None if means is None else gate_budget(means, run.budget),
        None if teacher is None else distil,
        task_weight=run.task_weight,
        gate_weight=run.gate_weight,
        distil_weight=run.distil_weight,
    )

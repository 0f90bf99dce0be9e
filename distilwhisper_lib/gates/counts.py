"""What the gates did in one batch of transcripts, counted utterance by utterance.

Counts, because everything that is shown of a test set is a ratio of their sums, and intervals
need them by speaker. Made while decoding, from what a GateRecorder heard.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distilwhisper_lib.gates.token_classes import TOKEN_CLASSES

SIDES = ("encoder", "decoder")
FRAME_CLASSES = ("audio", "padding")  # encoder positions of 20 ms: heard, or filling the window
CLASSES = {"encoder": FRAME_CLASSES, "decoder": TOKEN_CLASSES}
# A side's headline is the share over these; padding frames are counted apart.
COUNTED = {"encoder": ("audio",), "decoder": TOKEN_CLASSES}

# Scores are binned by their size, five bins a tenfold, because nothing says how large they are.
# A score of 0 or more sends the token to the expert, and 0 is an edge: the bins from there on
# hold exactly the tokens that the expert got.
_SIZES = [float(f"{0.01 * 10 ** (step / 5):.3g}") for step in range(21)]  # 0.01 to 100
SCORE_EDGES = (*(-size for size in reversed(_SIZES)), 0.0, *_SIZES)
BINS = len(SCORE_EDGES) + 1  # below the first edge, between edges, from the last one on

Histograms = dict[str, list[list[int]]]  # side -> (layers, BINS)


def count_gates(
    heard: dict[str, Tensor], audio: Tensor, classes: Sequence[Sequence[str]]
) -> tuple[list[dict[str, Any]], Histograms]:
    """The gates of each utterance of a batch, and how often each score came up in all of it.

    ``heard`` as GateRecorder.take() gives it; ``audio`` (B,): encoder positions that hold audio;
    ``classes``: of each row's decoder inputs, prompt and all, see token_classes(). The last token
    may be there, though it never went through the layers. Returns for each row

    - "encoder", "decoder": share of positions that took the expert, by layer; padding left out
    - "positions": {class: how many positions there are}
    - "expert": {class: of these, how many took the expert, by layer}; empty classes left out
    - "soft": {"encoder", "decoder": mean of sigmoid(score) by layer}, what the gates would be in
      training, without its noise; None where no gate was asked

    and histograms by side and layer over SCORE_EDGES, padding left out.
    """
    masks = {"encoder": _frames(heard["encoder"], audio), "decoder": _tokens(heard, classes)}
    rows: list[dict[str, Any]] = [{"positions": {}, "expert": {}, "soft": {}} for _ in classes]
    histograms: Histograms = {}
    for side in SIDES:
        for name, mask in masks[side].items():
            hits = (heard[side] & mask).sum(2).T.tolist()  # (B, layers)
            for row, units, layers in zip(rows, mask.sum(1).tolist(), hits, strict=True):
                row["positions"][name] = units
                if units:
                    row["expert"][name] = layers
        counted = torch.stack([masks[side][name] for name in COUNTED[side]]).any(0)  # (B, T)
        shares = _means(heard[side].float(), counted)
        scores = heard[f"{side}_scores"]
        soft = _means(scores.sigmoid(), counted)
        for row, share, mean in zip(rows, shares.tolist(), soft.tolist(), strict=True):
            row[side] = _rounded(share)
            row["soft"][side] = None if np.isnan(mean).any() else _rounded(mean)
        histograms[side] = _histograms(scores, counted)
    return rows, histograms


def add_histograms(parts: Iterable[Histograms]) -> Histograms:
    """The sum of several batches' histograms."""
    total: dict[str, np.ndarray | int] = dict.fromkeys(SIDES, 0)
    for part in parts:
        total = {side: total[side] + np.asarray(part[side]) for side in SIDES}
    return {side: counts.tolist() for side, counts in total.items()}


def _frames(gates: Tensor, audio: Tensor) -> dict[str, Tensor]:
    """Class -> bool (B, positions)."""
    heard = torch.arange(gates.shape[2]) < audio[:, None]
    return {"audio": heard, "padding": ~heard}


def _tokens(heard: dict[str, Tensor], classes: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    codes = torch.full(heard["decoder"].shape[1:], -1)
    for row, names in zip(codes, classes, strict=True):
        known = torch.tensor([TOKEN_CLASSES.index(name) for name in names])[: len(row)]
        row[: len(known)] = known
    return {name: codes == code for code, name in enumerate(TOKEN_CLASSES)}


def _means(values: Tensor, counted: Tensor) -> Tensor:
    """(layers, B, T), (B, T) -> (B, layers): mean over the positions that count."""
    total = values.masked_fill(~counted, 0.0).sum(2).T
    return total / counted.sum(1, keepdim=True).clamp(min=1)


def _histograms(scores: Tensor, counted: Tensor) -> list[list[int]]:
    """(layers, B, T) -> (layers, BINS); NaN is nowhere."""
    bins = torch.bucketize(scores, torch.tensor(SCORE_EDGES), right=True)
    known = counted & ~scores.isnan()
    return [
        torch.bincount(layer[mask], minlength=BINS).tolist()
        for layer, mask in zip(bins, known, strict=True)
    ]


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), 4) for value in values]

"""Conditional language-specific routing (CLSR): expert, gate, and the blend of both branches.

Multilingual DistilWhisper (arXiv 2311.01070); after Zhang et al., "Share or Not?", ICLR 2021. Every
feed-forward network (FFN) of Whisper stays as the *shared* branch; each language adds one
*expert*, a copy of that FFN, and a small *gate* that decides, token by token, who speaks:

    CLSR(x) = g * FFN_expert(x) + (1 - g) * FFN_shared(x)

In training g is soft and noisy, and both branches are computed. At inference g is 0 or 1, and
each token goes through the one branch that its gate picked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GATE_MODES = ("learned", "open", "closed")  # open: expert everywhere; closed: shared everywhere
SHARED = -1  # the row of a batch that has no expert


class Gates(NamedTuple):
    """What one layer's gates did in one forward pass."""

    values: Tensor  # (B, T) float32, in [0, 1]; 0 in rows without an expert
    skipped: bool  # the expert was left out of this pass (training only)


@dataclass
class GateTrace:
    """The gates of one forward pass, layer by layer."""

    encoder: list[Gates] = field(default_factory=list)
    decoder: list[Gates] = field(default_factory=list)


class Gate(nn.Module):
    """score = w2 . ReLU(W1 x + b1), one number a token."""

    def __init__(self, d_model: int, gate_dim: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(d_model, gate_dim)
        self.outer = nn.Linear(gate_dim, 1, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (...), always float32: half precision would flip tokens near zero."""
        with torch.autocast(x.device.type, enabled=False):
            x = F.dropout(x.float(), self.dropout, self.training)
            hidden = F.relu(F.linear(x, self.inner.weight.float(), self.inner.bias.float()))
            return F.linear(hidden, self.outer.weight.float()).squeeze(-1)


class Expert(nn.Module):
    """One language's FFN and gate for one layer."""

    def __init__(
        self, d_model: int, ffn_dim: int, gate_dim: int, gate_dropout: float, dropout: float
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, d_model)
        self.gate = Gate(d_model, gate_dim, gate_dropout)
        self.dropout = dropout

    def forward(
        self, x: Tensor, activation: Callable[[Tensor], Tensor], inner_dropout: float
    ) -> Tensor:
        """(..., D) -> (..., D)."""
        hidden = F.dropout(activation(self.fc1(x)), inner_dropout, self.training)
        return F.dropout(self.fc2(hidden), self.dropout, self.training)


class CLSR(nn.ModuleDict):
    """The experts of one layer by Whisper language code; empty, it is the shared branch alone."""

    def forward(
        self,
        x: Tensor,  # (B, T, D), the layer-normed input of the FFN
        shared: Callable[[Tensor], Tensor],
        activation: Callable[[Tensor], Tensor],
        inner_dropout: float,
        expert_ids: Tensor | None,  # (B,) on the CPU: index into this dict's languages, or SHARED
        mode: str = "learned",
        noise: float = 0.0,
        skip: float = 0.0,
    ) -> tuple[Tensor, Gates]:
        """Blend the branches. Returns the FFN's output (B, T, D) and the gates."""
        groups = list(self._groups(expert_ids, x.shape[0]))
        gates = torch.zeros(x.shape[:2], device=x.device)
        if not self.training:
            for language, rows in groups:
                gates = _put(gates, rows, hard_gate(self[language].gate, _take(x, rows), mode))
            return self._route(x, shared, activation, gates, groups), Gates(gates, False)

        soft = [
            soft_gate(self[language].gate, _take(x, rows), mode, noise) for language, rows in groups
        ]
        for (_, rows), values in zip(groups, soft, strict=True):
            gates = _put(gates, rows, values)
        y = shared(x)
        # One draw a layer and pass. The gates stay in the trace: the budget must reach them.
        skipped = bool(groups) and skip > 0 and torch.rand(()).item() < skip
        if not skipped:
            for (language, rows), values in zip(groups, soft, strict=True):
                g = values.unsqueeze(-1).to(y.dtype)
                expert = self[language](_take(x, rows), activation, inner_dropout)
                y = _put(y, rows, g * expert + (1 - g) * _take(y, rows))
        return y, Gates(gates, skipped)

    def _groups(self, expert_ids: Tensor | None, batch: int) -> Iterator[tuple[str, Tensor | None]]:
        """(language, its rows) for each language of the batch; rows None = all of them."""
        if expert_ids is None or not len(self):
            return
        languages = list(self)
        for index in sorted(set(expert_ids.tolist()) - {SHARED}):
            rows = (expert_ids == index).nonzero().squeeze(-1)
            yield languages[index], None if len(rows) == batch else rows

    def _route(
        self,
        x: Tensor,
        shared: Callable[[Tensor], Tensor],
        activation: Callable[[Tensor], Tensor],
        gates: Tensor,
        groups: list[tuple[str, Tensor | None]],
    ) -> Tensor:
        """Send each token through the one branch its hard gate picked."""
        picked = gates.bool()  # (B, T)
        if not groups or not picked.any():
            return shared(x)  # stock Whisper's own arithmetic, bit for bit
        y = torch.empty_like(x)
        if not picked.all():
            y[~picked] = shared(x[~picked]).to(y.dtype)
        for language, rows in groups:
            mine = picked
            if rows is not None:
                mine = torch.zeros_like(picked)
                mine[rows] = picked[rows]
            y[mine] = self[language](x[mine], activation, 0.0).to(y.dtype)
        return y


def hard_gate(gate: Gate, x: Tensor, mode: str = "learned") -> Tensor:
    """(B, T, D) -> (B, T) of 0 and 1: the expert speaks where the score is not negative."""
    if mode == "learned":
        return (gate(x) >= 0).float()
    return torch.full(x.shape[:2], float(mode == "open"), device=x.device)


def soft_gate(gate: Gate, x: Tensor, mode: str, noise: float) -> Tensor:
    """(B, T, D) -> (B, T) in (0, 1): sigmoid(score + noise * N(0, 1))."""
    score = gate(x)
    if mode != "learned":
        return torch.full_like(score, float(mode == "open"))
    return torch.sigmoid(score + noise * torch.randn_like(score))


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows.to(x.device)]


def _put(x: Tensor, rows: Tensor | None, values: Tensor) -> Tensor:
    if rows is None:
        return values.to(x.dtype)
    return x.index_copy(0, rows.to(x.device), values.to(x.dtype))

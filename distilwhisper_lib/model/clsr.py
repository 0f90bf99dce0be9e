"""Conditional language-specific routing (CLSR): expert, gate, and the blend of both branches.

Multilingual DistilWhisper (arXiv 2311.01070); after Zhang et al., "Share or Not?", ICLR 2021. Every
feed-forward network (FFN) of Whisper stays as the *shared* branch; each language adds one
*expert*, a copy of that FFN, and a small *gate* that decides, token by token, who speaks:

    CLSR(x) = g * FFN_expert(x) + (1 - g) * FFN_shared(x)

In training g is soft and noisy, and both branches are computed. At inference g is 0 or 1, and
each token goes through the one branch that its gate picked; where a compiler or a captured graph
needs shapes that do not depend on the gates, both are computed there too. What the model would say
if inference were as soft as training, without its noise, mode "soft" tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distilwhisper_lib.errors import UserError

# Each token through one branch: the gate's, the expert everywhere, the shared network everywhere.
HARD_MODES = ("learned", "open", "closed")
GATE_MODES = (*HARD_MODES, "soft")  # soft: both branches, weighed as in training
# One of these for all layers, or by layer name ("encoder.1"): layers not named are "learned".
GateMode = str | Mapping[str, str]
SHARED = -1  # the row of a batch that has no expert

Branch = Callable[[Tensor], Tensor]
Rows = Tensor | None  # indices of some rows of a batch; None: all of them


class Gates(NamedTuple):
    """What one layer's gates did in one forward pass."""

    values: Tensor  # (B, T) float32, in [0, 1]; 0 in rows without an expert
    skipped: bool  # the expert was left out of this pass (training only)


@dataclass
class GateTrace:
    """The gates of one forward pass, layer by layer."""

    encoder: list[Gates] = field(default_factory=list)
    decoder: list[Gates] = field(default_factory=list)
    complete: bool = False  # the pass is over: a layer that runs again adds nothing

    def add(self, side: str, gates: Gates) -> None:
        """Note the gates of the next layer of "encoder" or "decoder".

        With activation checkpointing each layer runs a second time in the backward pass. The
        gates of its first run stay: they carry the gradients.
        """
        if not self.complete:
            getattr(self, side).append(gates)


class Gate(nn.Module):
    """score = w2 . ReLU(W1 x + b1), one number a token."""

    def __init__(self, d_model: int, gate_dim: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(d_model, gate_dim)
        self.outer = nn.Linear(gate_dim, 1, bias=False)
        self.dropout = dropout

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Gate:
        """Moved as any module, but its weights stay float32 when a model is cast to half."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (...), always float32: half precision would flip tokens near zero."""
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self._score(x)
        return self._score(x)

    def _score(self, x: Tensor) -> Tensor:
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

    dense = False  # True asks for the dense form at inference, whatever runs

    def forward(
        self,
        x: Tensor,  # (B, T, D), the layer-normed input of the FFN
        shared: Branch,
        activation: Branch,
        inner_dropout: float,
        expert_ids: Tensor | None,  # (B,) on the CPU: index into this dict's languages, or SHARED
        mode: str = "learned",
        noise: float = 0.0,
        skip: float = 0.0,
    ) -> tuple[Tensor, Gates]:
        """Blend the branches. Returns the FFN's output (B, T, D) and the gates."""
        if expert_ids is None or not len(self):
            return shared(x), Gates(torch.zeros(x.shape[:2], device=x.device), False)
        if self.training:
            return self._blend(x, shared, activation, inner_dropout, expert_ids, mode, noise, skip)
        if mode == "soft":
            return self._blend(x, shared, activation, 0.0, expert_ids, mode)
        route = self._route_densely if self._shapes_are_static(x) else self._route
        y, picked = route(x, shared, activation, expert_ids, mode)
        return y, Gates(picked.float(), False)

    def _shapes_are_static(self, x: Tensor) -> bool:
        """Whether what runs now must not look at values: the one place that chooses the form."""
        return (
            self.dense
            or torch.compiler.is_compiling()
            or (x.is_cuda and torch.cuda.is_current_stream_capturing())
        )

    def _groups(self, expert_ids: Tensor, device: torch.device) -> list[tuple[Expert, Rows]]:
        """(expert, its rows) for each language of the batch."""
        experts = list(self.values())
        ids = tuple(expert_ids.tolist())
        return [(experts[i], rows) for i, rows in rows_by_expert(ids, device)]

    def _blend(
        self,
        x: Tensor,
        shared: Branch,
        activation: Branch,
        inner_dropout: float,
        expert_ids: Tensor,
        mode: str,
        noise: float = 0.0,
        skip: float = 0.0,
    ) -> tuple[Tensor, Gates]:
        """Training, and mode "soft": soft gates weigh both branches, token by token."""
        groups = self._groups(expert_ids, x.device)
        soft = [soft_gate(expert.gate, _take(x, rows), mode, noise) for expert, rows in groups]
        gates = torch.zeros(x.shape[:2], device=x.device)
        for (_, rows), values in zip(groups, soft, strict=True):
            gates = _put(gates, rows, values)
        y = shared(x)
        # One draw a layer and pass. The gates stay in the trace: the budget must reach them.
        skipped = bool(groups) and skip > 0 and torch.rand(()).item() < skip
        if not skipped:
            for (expert, rows), values in zip(groups, soft, strict=True):
                g = values.unsqueeze(-1).to(y.dtype)
                said = expert(_take(x, rows), activation, inner_dropout)
                y = _put(y, rows, g * said + (1 - g) * _take(y, rows))
        return y, Gates(gates, skipped)

    def _route(
        self, x: Tensor, shared: Branch, activation: Branch, expert_ids: Tensor, mode: str
    ) -> tuple[Tensor, Tensor]:
        """Send each token through the one branch that its hard gate picked."""
        picked, branches = self._choose(x, activation, expert_ids, mode)
        tokens = picked.numel()
        left = tokens - sum(len(index) for _, index in branches)
        if left == tokens:
            return shared(x), picked  # stock Whisper's own arithmetic, bit for bit
        if left:
            branches.append((shared, (~picked).view(-1).nonzero().squeeze(1)))
        elif len(branches) == 1:
            return branches[0][0](x), picked
        flat = x.reshape(tokens, -1)
        parts = [branch(flat.index_select(0, index)) for branch, index in branches]
        y = torch.empty_like(flat, dtype=parts[0].dtype)
        for (_, index), part in zip(branches, parts, strict=True):
            y.index_copy_(0, index, part)
        return y.view_as(x), picked

    def _choose(
        self, x: Tensor, activation: Branch, expert_ids: Tensor, mode: str
    ) -> tuple[Tensor, list[tuple[Branch, Tensor]]]:
        """Tokens (B, T) that an expert speaks for; each such expert with their flat indices."""
        chosen = []
        picked = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        for expert, rows in self._groups(expert_ids, x.device):
            mine = hard_gate(expert.gate, _take(x, rows), mode)
            if rows is not None:
                mine = torch.zeros_like(picked).index_copy_(0, rows, mine)
            picked = picked | mine
            index = mine.view(-1).nonzero().squeeze(1)
            if len(index):
                chosen.append((partial(expert, activation=activation, inner_dropout=0.0), index))
        return picked, chosen

    def _route_densely(
        self, x: Tensor, shared: Branch, activation: Branch, expert_ids: Tensor, mode: str
    ) -> tuple[Tensor, Tensor]:
        """The same from every branch for every token, by operations of fixed shape alone.

        All resident experts speak, in the batch or not, so that one graph serves any batch.
        """
        ids = expert_ids.to(x.device)
        picked = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        y = shared(x)
        for index, expert in enumerate(self.values()):
            mine = hard_gate(expert.gate, x, mode) & (ids == index).unsqueeze(1)
            y = torch.where(mine.unsqueeze(-1), expert(x, activation, 0.0), y)
            picked = picked | mine
        return y, picked


def check_gate_mode(mode: GateMode, layers: Sequence[str]) -> None:
    """Raise UserError for a mode that is none, or for a layer that is not among ``layers``."""
    if not isinstance(mode, str) and (strangers := [name for name in mode if name not in layers]):
        raise UserError(
            f"gate_mode names layer {strangers[0]!r}: expected one of {', '.join(layers)}"
        )
    for wanted in (mode,) if isinstance(mode, str) else mode.values():
        if wanted not in GATE_MODES:
            raise UserError(
                f"gate_mode {wanted!r} is unknown: expected one of {', '.join(GATE_MODES)}"
            )


def mode_of(mode: GateMode, layer: str) -> str:
    """What a mode means for one layer."""
    return mode if isinstance(mode, str) else mode.get(layer, "learned")


def hard_gate(gate: Gate, x: Tensor, mode: str = "learned") -> Tensor:
    """(B, T, D) -> (B, T) bool: the expert speaks where the score is not negative."""
    if mode == "learned":
        return gate(x) >= 0
    return torch.full(x.shape[:2], mode == "open", device=x.device)


def soft_gate(gate: Gate, x: Tensor, mode: str, noise: float) -> Tensor:
    """(B, T, D) -> (B, T) in (0, 1): sigmoid(score + noise * N(0, 1)); mode "soft": without it."""
    score = gate(x)
    if mode == "soft":
        return score.sigmoid()
    if mode != "learned":
        return torch.full_like(score, float(mode == "open"))
    return torch.sigmoid(score + noise * torch.randn_like(score))


@lru_cache(maxsize=32)
def rows_by_expert(ids: tuple[int, ...], device: torch.device) -> list[tuple[int, Rows]]:
    """(index of an expert, its rows) for each expert of a batch; rows None: all of them.

    Remembered, so that a batch is sorted into languages once and not in every layer and step.
    """
    found = sorted(set(ids) - {SHARED})
    if len(found) == 1 and SHARED not in ids:
        return [(found[0], None)]
    with torch.inference_mode(False):  # a later training step may meet the same batch
        return [
            (index, torch.tensor([row for row, i in enumerate(ids) if i == index], device=device))
            for index in found
        ]


def _take(x: Tensor, rows: Rows) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _put(x: Tensor, rows: Rows, values: Tensor) -> Tensor:
    if rows is None:
        return values.to(x.dtype)
    return x.index_copy(0, rows, values.to(x.dtype))

"""Conditional language-specific routing (CLSR): expert, gate, and the blend of both branches.

Multilingual DistilWhisper (arXiv 2311.01070); after Zhang et al., "Share or Not?", ICLR 2021. Every
feed-forward network (FFN) of Whisper stays as the *shared* branch; each language adds one
*expert*, a copy of that FFN, and a small *gate* that decides, token by token, who speaks:

    CLSR(x) = g * FFN_expert(x) + (1 - g) * FFN_shared(x)

In training g is soft and noisy, and both branches are computed. At inference g is 0 or 1, and
each token goes through the one branch that its gate picked; where a compiler or a captured graph
needs shapes that do not depend on the gates, both are computed there too. What the model would say
if inference were as soft as training, without its noise, mode "soft" tells.

Two things differ where a run asks for it. An expert may be a small change of the shared network,
and speak within it: low_rank.py. And training may be *straight-through* (Bengio et al., 2013): g is
0 or 1 as at inference, and its gradient is the soft gate's,

    g = hard + sigmoid(score) - stop_gradient(sigmoid(score))
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
from distilwhisper_lib.model.low_rank import LowRankExpert, Update

# Each token through one branch: the gate's, the expert everywhere, the shared network everywhere.
HARD_MODES = ("learned", "open", "closed")
GATE_MODES = (*HARD_MODES, "soft")  # soft: both branches, weighed as in training
# A number from 0 to 1: at inference, that share of tokens through the expert, drawn at random.
LayerMode = str | float
# One for all layers, or by layer name ("encoder.1"): layers not named are "learned".
GateMode = LayerMode | Mapping[str, LayerMode]
SHARED = -1  # the row of a batch that has no expert

Branch = Callable[..., Tensor]  # the shared one also takes updates
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


AnyExpert = Expert | LowRankExpert


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
        mode: LayerMode = "learned",
        noise: float = 0.0,
        skip: float = 0.0,
        straight_through: bool = False,
    ) -> tuple[Tensor, Gates]:
        """Blend the branches. Returns the FFN's output (B, T, D) and the gates.

        ``noise``, ``skip`` and ``straight_through`` are of training alone.
        """
        if expert_ids is None or not len(self):
            return shared(x), Gates(torch.zeros(x.shape[:2], device=x.device), False)
        if self.training:
            return self._blend(
                x, shared, activation, inner_dropout, expert_ids, mode, noise, skip,
                straight_through,
            )  # fmt: skip
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

    def _groups(self, expert_ids: Tensor, device: torch.device) -> list[tuple[AnyExpert, Rows]]:
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
        mode: LayerMode,
        noise: float = 0.0,
        skip: float = 0.0,
        straight_through: bool = False,
    ) -> tuple[Tensor, Gates]:
        """Training, and mode "soft": gates weigh both branches, token by token."""
        groups = self._groups(expert_ids, x.device)
        drawn = [
            soft_gate(expert.gate, _take(x, rows), mode, noise, straight_through)
            for expert, rows in groups
        ]
        gates = torch.zeros(x.shape[:2], device=x.device)
        for (_, rows), values in zip(groups, drawn, strict=True):
            gates = _put(gates, rows, values)

        said_by = partial(
            _said_by, shared=shared, activation=activation, inner_dropout=inner_dropout
        )
        if mode == "open" and not skip and len(groups) == 1 and groups[0][1] is None:
            return said_by(groups[0][0], x), Gates(gates, False)
        y = shared(x)
        # One draw a layer and pass. The gates stay in the trace: the budget must reach them.
        skipped = bool(groups) and skip > 0 and torch.rand(()).item() < skip
        if not skipped:
            for (expert, rows), values in zip(groups, drawn, strict=True):
                g = values.unsqueeze(-1).to(y.dtype)
                said = said_by(expert, _take(x, rows))
                y = _put(y, rows, g * said + (1 - g) * _take(y, rows))
        return y, Gates(gates, skipped)

    def _route(
        self, x: Tensor, shared: Branch, activation: Branch, expert_ids: Tensor, mode: LayerMode
    ) -> tuple[Tensor, Tensor]:
        """Send each token through the one branch that its hard gate picked.

        Low-rank experts speak within the shared branch, which takes their tokens along.
        """
        chosen = self._choose(x, expert_ids, mode)
        picked = torch.stack([mine for _, mine in chosen]).any(0) if chosen else _nowhere(x)
        small = [(e, mine) for e, mine in chosen if isinstance(e, LowRankExpert)]
        # One token a row: masks never wait for a GPU, and are less work for one expert.
        if small and x.shape[1] == 1 and len(small) == len(chosen) and (x.is_cuda or not small[1:]):
            return shared(x, [Update(e, where=mine.unsqueeze(-1)) for e, mine in small]), picked
        heard = [(e, index) for e, mine in chosen if len(index := _places(mine))]
        tokens, flat = picked.numel(), x.reshape(picked.numel(), -1)
        if not heard:
            return shared(x), picked  # stock Whisper's own arithmetic, bit for bit
        if len(heard[0][1]) == tokens:
            return _said_by(heard[0][0], x, shared, activation, 0.0), picked
        branches: list[tuple[Branch, Tensor]] = [
            (partial(expert, activation=activation, inner_dropout=0.0), index)
            for expert, index in heard
            if isinstance(expert, Expert)
        ]
        rest, updates = _for_the_shared(heard, tokens)
        if len(rest):
            branches.append((partial(shared, updates=updates) if updates else shared, rest))
        parts = [branch(flat.index_select(0, index)) for branch, index in branches]
        y = torch.empty_like(flat, dtype=parts[0].dtype)
        for (_, index), part in zip(branches, parts, strict=True):
            y.index_copy_(0, index, part)
        return y.view_as(x), picked

    def _choose(
        self, x: Tensor, expert_ids: Tensor, mode: LayerMode
    ) -> list[tuple[AnyExpert, Tensor]]:
        """Each expert of the batch, with the tokens (B, T) that it speaks for."""
        chosen = []
        for expert, rows in self._groups(expert_ids, x.device):
            mine = hard_gate(expert.gate, _take(x, rows), mode)
            if rows is not None:
                mine = _nowhere(x).index_copy_(0, rows, mine)
            chosen.append((expert, mine))
        return chosen

    def _route_densely(
        self, x: Tensor, shared: Branch, activation: Branch, expert_ids: Tensor, mode: LayerMode
    ) -> tuple[Tensor, Tensor]:
        """The same from every branch for every token, by operations of fixed shape alone.

        All resident experts speak, in the batch or not, so that one graph serves any batch.
        """
        ids = expert_ids.to(x.device)
        heard = [
            (expert, hard_gate(expert.gate, x, mode) & (ids == index).unsqueeze(1))
            for index, expert in enumerate(self.values())
        ]
        picked = _nowhere(x)
        small = [(e, m) for e, m in heard if isinstance(e, LowRankExpert)]
        updates = [Update(expert, where=mine.unsqueeze(-1)) for expert, mine in small]
        y = shared(x, updates) if updates else shared(x)
        for expert, mine in heard:
            if isinstance(expert, Expert):
                y = torch.where(mine.unsqueeze(-1), expert(x, activation, 0.0), y)
            picked = picked | mine
        return y, picked


def check_gate_mode(mode: GateMode, layers: Sequence[str]) -> None:
    """Raise UserError for a mode that is none, or for a layer that is not among ``layers``."""
    if isinstance(mode, Mapping) and (strangers := [name for name in mode if name not in layers]):
        raise UserError(
            f"gate_mode names layer {strangers[0]!r}: expected one of {', '.join(layers)}"
        )
    for wanted in mode.values() if isinstance(mode, Mapping) else (mode,):
        share = isinstance(wanted, (int, float)) and not isinstance(wanted, bool)
        if not (0 <= wanted <= 1 if share else wanted in GATE_MODES):
            raise UserError(
                f"gate_mode {wanted!r} is unknown: expected one of {', '.join(GATE_MODES)}, or a "
                "share from 0 to 1"
            )


def mode_of(mode: GateMode, layer: str) -> LayerMode:
    """What a mode means for one layer."""
    return mode.get(layer, "learned") if isinstance(mode, Mapping) else mode


def hard_gate(gate: Gate, x: Tensor, mode: LayerMode = "learned") -> Tensor:
    """(B, T, D) -> (B, T) bool: the expert speaks where the score is not negative.

    Of a share: where torch's generator says so, whatever the gate.
    """
    if mode == "learned":
        return gate(x) >= 0
    if isinstance(mode, str):
        return torch.full(x.shape[:2], mode == "open", device=x.device)
    return torch.rand(x.shape[:2], device=x.device) < mode


def soft_gate(
    gate: Gate, x: Tensor, mode: LayerMode, noise: float, straight_through: bool = False
) -> Tensor:
    """(B, T, D) -> (B, T) in (0, 1): sigmoid(score + noise * N(0, 1)); mode "soft": without it.

    ``straight_through``: 0 or 1, the gradient as if it were not.
    """
    score = gate(x)
    if mode == "soft":
        return score.sigmoid()
    if mode != "learned":
        return torch.full_like(score, float(mode == "open"))
    score = score + noise * torch.randn_like(score)
    soft = torch.sigmoid(score)
    return (score >= 0).float() + (soft - soft.detach()) if straight_through else soft


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


def _nowhere(x: Tensor) -> Tensor:
    """(B, T, D) -> no token of them: a mask (B, T)."""
    return torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)


def _said_by(
    expert: AnyExpert, x: Tensor, shared: Branch, activation: Branch, inner_dropout: float
) -> Tensor:
    """(..., D) -> (..., D), every token through one expert."""
    if isinstance(expert, LowRankExpert):
        return shared(x, [Update(expert)])
    return expert(x, activation, inner_dropout)


def _for_the_shared(
    heard: Sequence[tuple[AnyExpert, Tensor]], tokens: int
) -> tuple[Tensor, list[Update]]:
    """Of so many tokens, and those of each expert: which go through the shared branch, and how.

    A low-rank expert's lie side by side: a slice costs nothing, picking from a wide hidden does.
    """
    left = torch.ones(tokens, dtype=torch.bool, device=heard[0][1].device)
    order, updates, end = [], [], 0
    for expert, index in heard:
        left[index] = False
        if isinstance(expert, LowRankExpert):
            updates.append(Update(expert, slice(end, end := end + len(index))))
            order.append(index)
    return torch.cat([*order, _places(left)]), updates


def _places(mask: Tensor) -> Tensor:
    """Flat indices of the tokens of a mask."""
    return mask.reshape(-1).nonzero().squeeze(1)


def _take(x: Tensor, rows: Rows) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _put(x: Tensor, rows: Rows, values: Tensor) -> Tensor:
    if rows is None:
        return values.to(x.dtype)
    return x.index_copy(0, rows, values.to(x.dtype))

"""An expert that is a small change of the shared feed-forward network, and speaks within it.

The change is of its two weights, of a low rank (LoRA, Hu et al., 2021, eq. 3),

    FFN_expert(x) = (W2 + B2 A2) act((W1 + B1 A1) x + b1) + b2

so that routing costs the shared network and, where the expert speaks, two thin products more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F


class LowRank(nn.Module):
    """x -> B A x, the change of a linear layer's weight. As LoRA begins: B is 0, so it changes
    nothing yet."""

    def __init__(self, inputs: int, outputs: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)  # A
        self.up = nn.Linear(rank, outputs, bias=False)  # B
        self.dropout = dropout

    def reset(self) -> None:
        """Draw A, and set B to 0. Source: Hu et al., 2021, as peft draws them."""
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, where: Tensor | None = None) -> Tensor:
        """(..., inputs) -> (..., outputs); 0 where the mask ``where`` (..., 1) is."""
        inner = self.down(F.dropout(x, self.dropout, self.training))
        return self.up(inner if where is None else inner * where.to(inner.dtype))

    def product(self) -> Tensor:
        """B A: (outputs, inputs), float32."""
        return self.up.weight.float() @ self.down.weight.float()


class LowRankExpert(nn.Module):
    """One language's change of the shared FFN, and its gate, for one layer.

    It speaks through the shared branch: see Update.
    """

    def __init__(
        self,
        d_model: int,
        ffn_dim: int,
        rank: int,
        dropout: float,  # of what the thin products read, as LoRA's
        gate: nn.Module,
    ) -> None:
        super().__init__()
        self.fc1 = LowRank(d_model, ffn_dim, rank, dropout)
        self.fc2 = LowRank(ffn_dim, d_model, rank, dropout)
        self.gate = gate

    @property
    def rank(self) -> int:
        return self.fc1.down.out_features


class Update(NamedTuple):
    """A low-rank expert's part in the shared branch: everywhere, at some tokens, or by a mask.

    By a mask shapes are fixed, and few tokens take less time than picking them would.
    """

    expert: LowRankExpert
    at: slice | None = None  # of a flat x (tokens, D), where its tokens lie side by side
    where: Tensor | None = None  # (..., 1)

    def add(self, linear: str, x: Tensor, y: Tensor) -> Tensor:
        """y, the shared ``linear`` ("fc1" or "fc2") of x, plus the expert's change of it."""
        change = getattr(self.expert, linear)
        if self.at is None:
            return y + change(x, self.where)
        y[self.at].add_(change(x[self.at]))
        return y

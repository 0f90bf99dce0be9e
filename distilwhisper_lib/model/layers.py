"""Whisper's encoder and decoder layers, their feed-forward block routed by CLSR.

transformers hands every keyword of a model's forward pass down to each layer: what routing needs
(``_ROUTE``) travels that way and is taken out before the rest reaches attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoderLayer, WhisperEncoderLayer

from distilwhisper_lib.model import authors
from distilwhisper_lib.model.clsr import CLSR, AnyExpert, Expert, Gate, mode_of
from distilwhisper_lib.model.low_rank import LowRankExpert, Update


class DistilWhisperConfig(WhisperConfig):
    """A Whisper configuration plus the experts that are resident and how they train."""

    model_type = "distilwhisper"
    # Whisper code -> id of its language token; the order is the order of expert ids.
    expert_tokens: dict | None = None
    # Whisper code -> rank, of the languages whose experts are low-rank.
    expert_ranks: dict | None = None
    # Code of a language without a token -> that whose token it borrows.
    speaks_as: dict | None = None
    # Which gates are heard where nobody asks for others: "learned", "soft" or "open".
    gate_mode: str = "learned"
    # Features shorter than the window are heard as they are, not refused or padded.
    fit_window: bool = False
    gate_dim: int = 64
    gate_dropout: float | int = 0.1
    expert_dropout: float | int = 0.3
    skip: float | int = 0.2

    @property
    def expert_languages(self) -> list[str]:
        return list(self.expert_tokens or {})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers', and from the config.json of the authors' checkpoints."""
        return super().from_dict(authors.our_config(config_dict), **kwargs)


if TYPE_CHECKING:
    from distilwhisper_lib.model.layers import DistilWhisperConfig


class _RoutedFFN:
    """The feed-forward block of a layer: stock FFN and experts, blended by CLSR."""

    def _add_clsr(self, config: DistilWhisperConfig, index: int) -> None:
        self.config = config
        self.route_name = f"{self._side}.{index + 1}"  # counted as in figures, from 1
        ranks = config.expert_ranks or {}
        self.clsr = CLSR({c: self.new_expert(rank=ranks.get(c)) for c in config.expert_languages})

    def new_expert(
        self, device: str | torch.device | None = None, rank: int | None = None
    ) -> AnyExpert:
        """An expert of this layer's dimensions, low-rank if of a rank, its weights still to be
        set."""
        c, ffn_dim = self.config, self.fc1.out_features
        with torch.device(device or torch.get_default_device()):
            if rank is None:
                return Expert(c.d_model, ffn_dim, c.gate_dim, c.gate_dropout, c.expert_dropout)
            gate = Gate(c.d_model, c.gate_dim, c.gate_dropout)
            return LowRankExpert(c.d_model, ffn_dim, rank, c.expert_dropout, gate)

    def shared(self, x: Tensor, updates: Sequence[Update] = ()) -> Tensor:
        """The shared branch, (..., D) -> (..., D), with low-rank experts speaking in it."""
        hidden = self.fc1(x)
        for update in updates:
            hidden = update.add("fc1", x, hidden)
        hidden = F.dropout(
            self.activation_fn(hidden), self.activation_dropout, training=self.training
        )
        y = self.fc2(hidden)
        for update in updates:
            y = update.add("fc2", hidden, y)
        return F.dropout(y, self.dropout, training=self.training)

    def whole_network(self, code: str) -> dict[str, Tensor]:
        """Weights and biases of fc1 and fc2 of a feed-forward network that says what the expert
        of a language does."""
        expert, found = self.clsr[code], {}
        for name in ("fc1", "fc2"):
            whole = getattr(expert if isinstance(expert, Expert) else self, name)
            found |= {f"{name}.{key}": tensor for key, tensor in whole.state_dict().items()}
            if isinstance(expert, LowRankExpert):
                weight = found[f"{name}.weight"]
                summed = weight.float() + getattr(expert, name).product().detach()
                found[f"{name}.weight"] = summed.to(weight.dtype)
        return found

    def _ffn(self, x: Tensor, route: dict[str, Any]) -> Tensor:
        """Residual, layer norm and the blend: (B, T, D) -> (B, T, D)."""
        trace, mode = route.get("gate_trace"), route.get("gate_mode")
        mode = self.config.gate_mode if mode is None else mode  # generate() runs the encoder itself
        y, gates = self.clsr(
            self.final_layer_norm(x),
            self.shared,
            self.activation_fn,
            self.activation_dropout,
            expert_ids=route.get("expert_ids"),
            mode=mode_of(mode, self.route_name),
            noise=route.get("gate_noise", 0.0),
            skip=self.config.skip,
            straight_through=route.get("straight_through", False),
        )
        if trace is not None:
            trace.add(self._side, gates)
        return x + y


# What a forward pass tells its layers about routing; the rest of **kwargs goes to attention.
_ROUTE = ("expert_ids", "gate_mode", "gate_noise", "straight_through", "gate_trace")


def _split_route(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: kwargs.pop(name) for name in _ROUTE if name in kwargs}


class RoutedEncoderLayer(_RoutedFFN, WhisperEncoderLayer):
    """Whisper's encoder layer with a routed FFN."""

    _side = "encoder"  # of the gate trace

    def __init__(self, config: DistilWhisperConfig, layer_idx: int) -> None:
        super().__init__(config)
        self._add_clsr(config, layer_idx)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        route = _split_route(kwargs)
        x = self.self_attn_layer_norm(hidden_states)
        x, _ = self.self_attn(hidden_states=x, attention_mask=attention_mask, **kwargs)
        hidden_states = hidden_states + F.dropout(x, self.dropout, training=self.training)
        hidden_states = self._ffn(hidden_states, route)
        if hidden_states.dtype == torch.float16:  # as stock Whisper: keep float16 finite
            limit = torch.finfo(torch.float16).max - 1000
            hidden_states = hidden_states.clamp(-limit, limit)
        return hidden_states


class RoutedDecoderLayer(_RoutedFFN, WhisperDecoderLayer):
    """Whisper's decoder layer with a routed FFN."""

    _side = "decoder"

    def __init__(self, config: DistilWhisperConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self._add_clsr(config, layer_idx)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = True,
        **kwargs: Any,
    ) -> Tensor:
        route = _split_route(kwargs)
        x = self.self_attn_layer_norm(hidden_states)
        x, _ = self.self_attn(
            x, past_key_values=past_key_values, attention_mask=attention_mask, **kwargs
        )
        hidden_states = hidden_states + F.dropout(x, self.dropout, training=self.training)
        if encoder_hidden_states is not None:
            x = self.encoder_attn_layer_norm(hidden_states)
            x, _ = self.encoder_attn(
                x,
                key_value_states=encoder_hidden_states,
                attention_mask=encoder_attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
            hidden_states = hidden_states + F.dropout(x, self.dropout, training=self.training)
        return self._ffn(hidden_states, route)

"""What a clip costs whatever the machine: operations of training and hearing, bytes of decoding.

Counted with torch's FlopCounterMode on the kit's own models, which hold no numbers here (fake
tensors), so that large-v2 costs a second and no memory. A multiplication and an addition are two
operations; only products of matrices and convolutions count. Attention is written out ("eager"),
because the counter does not see into the fused one of a CPU; the operations are the same. Layers
are alike: three models of two and three layers give the count of any number of them.

Differs: every expert speaks in every training pass (setting ``skip`` leaves out a fifth of them);
of hearing, gates and the products of low-rank experts are left out.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from distilwhisper_lib.config.settings import WITH_EXPERTS, RunConfig, locate, resolve
from distilwhisper_lib.losses.chunked import States, token_losses
from distilwhisper_lib.model.layers import DistilWhisperConfig
from distilwhisper_lib.model.loading import prepare
from distilwhisper_lib.model.whisper import DistilWhisperForConditionalGeneration
from distilwhisper_lib.training.stages import Stage, stages

PROMPT = 3  # decoder inputs without a label: start, language, task (the fourth one predicts text)
_TOKENS = {"expert_tokens": None, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
_SAMPLE = {"positions": 4, "vocabulary": 64}  # of the loss, which grows with the product of both


@dataclass(frozen=True)
class Dimensions:
    """What of a Whisper decides its cost."""

    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    vocab_size: int = 51865
    max_source_positions: int = 1500
    num_mel_bins: int = 80


def _whisper(width: int, layers: int, heads: int, decoder_layers: int | None = None, **more: int):
    below = decoder_layers or layers
    return Dimensions(width, layers, below, heads, heads, 4 * width, 4 * width, **more)


# Source: the config.json of each model on the hub.
KNOWN = {
    "openai/whisper-tiny": _whisper(384, 4, 6),
    "openai/whisper-base": _whisper(512, 6, 8),
    "openai/whisper-small": _whisper(768, 12, 12),
    "openai/whisper-medium": _whisper(1024, 24, 16),
    "openai/whisper-large": _whisper(1280, 32, 20),
    "openai/whisper-large-v2": _whisper(1280, 32, 20),
    "openai/whisper-large-v3": _whisper(1280, 32, 20, vocab_size=51866, num_mel_bins=128),
    "openai/whisper-large-v3-turbo": _whisper(1280, 32, 20, 4, vocab_size=51866, num_mel_bins=128),
}


def dimensions_of(name: str) -> Dimensions | None:
    """Of a model by its name on the hub, or of a folder; None where that takes a network."""
    if name in KNOWN:
        return KNOWN[name]
    try:
        fields = json.loads((Path(locate(name)) / "config.json").read_text(encoding="utf-8"))
        return Dimensions(**{key: fields[key] for key in Dimensions.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def training_operations(config: RunConfig, student: Dimensions, labelled: int) -> int:
    """Operations of one clip in one epoch: forward, backward and loss, teacher's head included.

    `labelled`: its positions with a label. Running the teacher itself is `hearing_operations` of
    its dimensions, once for stored targets, in every epoch when it is online. Of a training in
    stages: the mean over all its epochs.
    """
    parts = stages(config, Path())
    total = sum(part.epochs * stage_operations(part, student, labelled) for part in parts)
    return round(total / sum(part.epochs for part in parts))


def stage_operations(stage: Stage, student: Dimensions, labelled: int) -> float:
    """The same of one stage: its experts alone in its warm-up, then both branches."""
    config, warm = stage.run, stage.expert_warmup if stage.run.method in WITH_EXPERTS else 0.0
    rank, keep = rank_of(config), config.activation_checkpointing

    def counted(mode: str) -> int:
        step = (labelled, keep, rank, mode, stage.gates_alone)
        return _along_layers(student, lambda some: _step(some, kind_of(config), *step))

    body = sum(
        share * counted(mode) for mode, share in (("open", warm), ("learned", 1 - warm)) if share
    )
    divergence = config.divergence if stage.distils else None
    teacher = dimensions_of(config.teacher) if divergence else None
    return body + _loss(config.method == "full", divergence, student, labelled, teacher)


def distilled_share(config: RunConfig) -> float:
    """Of the epochs of a run, the share that learns from the teacher."""
    parts = stages(config, Path())
    return sum(p.epochs * p.distils for p in parts) / sum(p.epochs for p in parts)


def kind_of(config: RunConfig) -> str:
    """What a run trains: "full", "lora", "ffn" or "low_rank" (an expert)."""
    return config.expert if config.method in WITH_EXPERTS else config.method


def rank_of(config: RunConfig) -> int:
    """Of its thin products, where it trains any."""
    return config.lora_rank if config.method == "lora" else config.expert_rank


def hearing_operations(whisper: Dimensions, positions: int) -> int:
    """Operations of one clip in one forward pass up to the head, over so many decoder inputs."""
    return _along_layers(whisper, lambda some: _forward(some, positions))


@lru_cache(maxsize=64)
def trained_values(kind: str, student: Dimensions, rank: int) -> int:
    """How many numbers a run of a kind trains, see kind_of()."""
    model = _prepared(student, kind, rank)
    return sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)


@lru_cache(maxsize=64)
def all_values(whisper: Dimensions) -> int:
    """How many numbers a Whisper has, without experts."""
    return sum(tensor.numel() for tensor in _on_meta(whisper).parameters())


def decoding_bytes(whisper: Dimensions, rows: int, width: int = 2) -> int:
    """Bytes that one step of greedy decoding reads: weights once, each row's keys and values.

    `width`: bytes a number. Of a batch that goes through expert and shared network both are read.
    The keys and values of the text so far are left out: of the audio there are 30 times as many.
    """
    d, layers = whisper.d_model, whisper.decoder_layers
    attention, networks = 4 * d * d + 2 * d * d, 2 * 2 * d * whisper.decoder_ffn_dim
    weights = layers * (attention + networks) + whisper.vocab_size * d
    heard = layers * 2 * whisper.max_source_positions * d
    return width * (weights + rows * heard)


# Counting -------------------------------------------------------------------------------------


def _along_layers(whisper: Dimensions, count: Callable[[Dimensions], int]) -> int:
    """A count that grows evenly with encoder and decoder layers, from the fewest that show it."""

    def at(encoder: int, decoder: int) -> int:
        return count(replace(whisper, encoder_layers=encoder, decoder_layers=decoder))

    encoder, decoder = whisper.encoder_layers, whisper.decoder_layers
    if max(encoder, decoder) <= 3:
        return at(encoder, decoder)
    base = at(2, 2)
    return base + (encoder - 2) * (at(3, 2) - base) + (decoder - 2) * (at(2, 3) - base)


@lru_cache(maxsize=256)
def _forward(whisper: Dimensions, positions: int) -> int:
    model = _on_meta(whisper).eval()
    with FakeTensorMode(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        _pass(_without_numbers(model), whisper, positions)
    return counter.get_total_flops()


@lru_cache(maxsize=256)
def _step(
    whisper: Dimensions,
    kind: str,
    labelled: int,
    checkpointing: bool,
    rank: int = 64,
    mode: str = "learned",
    gates_alone: bool = False,
) -> int:
    model = _prepared(whisper, kind, rank).train()
    if gates_alone:
        model.freeze_all_but_expert("ca", gates_alone=True)
    for module in model.modules():
        if hasattr(module, "layerdrop"):  # 0 in every Whisper, and drawn for all the same
            module.training = False
    quiet = warnings.catch_warnings(action="ignore", category=FutureWarning)  # transformers' own
    with quiet, FakeTensorMode(), FlopCounterMode(display=False) as counter:
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        how = {"output_gates": True, "gate_mode": mode}
        out = _pass(_without_numbers(model), whisper, PROMPT + labelled, **how)
        gates = [layer.values.sum() for layer in (*out.gates.encoder, *out.gates.decoder)]
        torch.stack([out.last_hidden_state.sum(), *gates]).sum().backward()
    return counter.get_total_flops()


@lru_cache(maxsize=256)
def _loss(
    head_trains: bool,
    divergence: str | None,
    student: Dimensions,
    labelled: int,
    teacher: Dimensions | None,
) -> int:
    """Head, loss and their gradients, counted on a sample: they grow with positions x words."""
    positions, words = _SAMPLE["positions"], _SAMPLE["vocabulary"]
    states = torch.zeros(positions, student.d_model, requires_grad=True)
    head = torch.zeros(words, student.d_model, requires_grad=head_trains)
    target = None
    if teacher is not None:
        target = States(
            torch.zeros(positions, teacher.d_model), torch.zeros(words, teacher.d_model)
        )
    labels = torch.zeros(positions, dtype=torch.long)
    kind: Any = divergence or "js"
    with FlopCounterMode(display=False) as counter:
        sum(token_losses(States(states, head), labels, target, kind)).backward()
    return counter.get_total_flops() * labelled * student.vocab_size // (positions * words)


def _pass(model: nn.Module, whisper: Dimensions, positions: int, **options: Any) -> Any:
    """One clip through a model of fake tensors."""
    frames = 2 * whisper.max_source_positions
    return model(
        input_features=torch.empty(1, whisper.num_mel_bins, frames),
        decoder_input_ids=torch.empty(1, positions, dtype=torch.long),
        expert_ids=_first_expert(),
        use_cache=False,
        with_logits=False,
        **options,
    )


def _first_expert() -> Tensor:
    """The one thing that a layer looks at: a real tensor amid fake ones."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        return torch.zeros(1, dtype=torch.long)


def _prepared(whisper: Dimensions, kind: str, rank: int) -> nn.Module:
    """A model as `training.prepare` makes it for a kind of run, without numbers."""
    method, settings = {
        "full": ("full", {}),
        "lora": ("lora", {"lora_rank": rank}),
        "ffn": ("clsr", {"expert": "ffn"}),
        "low_rank": ("clsr", {"expert": "low_rank", "expert_rank": rank}),
    }[kind]
    model = _on_meta(whisper)
    # Warnings are transformers' own, about its next version.
    with torch.device("meta"), warnings.catch_warnings(action="ignore", category=FutureWarning):
        return prepare(model, resolve(method, "own", "ca", overrides=settings))


def _on_meta(whisper: Dimensions) -> DistilWhisperForConditionalGeneration:
    config = DistilWhisperConfig(
        **asdict(whisper), **_TOKENS, decoder_start_token_id=1, skip=0.0, use_cache=False
    )
    with torch.device("meta"):
        model = DistilWhisperForConditionalGeneration(config)
    model.set_attn_implementation("eager")
    model.generation_config.lang_to_id = {"<|ca|>": 2}
    return model


def _without_numbers(model: nn.Module) -> nn.Module:
    """The model's tensors as fake ones of a CPU: autocast knows no device "meta"."""
    made: dict[int, Tensor] = {}  # tied weights stay tied
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and id(tensor) not in made:
                    new = torch.empty(tensor.shape, dtype=tensor.dtype)
                    if isinstance(tensor, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = new
                held[name] = tensor if tensor is None else made[id(tensor)]
    return model

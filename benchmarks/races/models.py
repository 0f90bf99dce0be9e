"""Whispers with random weights at real dimensions, and what they are fed; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from distilwhisper_lib.model.clsr import CLSR
from distilwhisper_lib.model.layers import DistilWhisperConfig
from distilwhisper_lib.model.whisper import DistilWhisperForConditionalGeneration

SPECIAL = {
    "<|endoftext|>": 50257, "<|startoftranscript|>": 50258, "<|en|>": 50259, "<|fr|>": 50265,
    "<|pt|>": 50267, "<|pl|>": 50269, "<|ca|>": 50270, "<|translate|>": 50358,
    "<|transcribe|>": 50359, "<|notimestamps|>": 50363,
}  # fmt: skip
END, START = SPECIAL["<|endoftext|>"], SPECIAL["<|startoftranscript|>"]


def _dimensions(width: int, layers: int, heads: int) -> dict[str, int]:
    return dict(
        vocab_size=51865, d_model=width, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width, pad_token_id=END, bos_token_id=END, eos_token_id=END,
        decoder_start_token_id=START,
    )  # fmt: skip


WHISPER_SMALL = _dimensions(768, 12, 12)
LARGE_V2 = _dimensions(1280, 32, 20)
MINIATURE = _dimensions(64, 2, 2)
MINIATURE_TEACHER = _dimensions(96, 2, 2)
RANK = 64  # of low-rank experts, as the kit's
TARGETS = ["fc1", "fc2"]


class Numbers:
    """A tokenizer of the right vocabulary for texts of token numbers, without its files."""

    eos_token_id = END
    unk_token_id = END  # as Whisper's own

    def __call__(self, text: str, **_: Any) -> Any:
        return SimpleNamespace(input_ids=[int(number) for number in text.split()])

    def convert_tokens_to_ids(self, token: str) -> int:
        return SPECIAL[token]

    def get_vocab(self) -> dict[str, int]:
        return SPECIAL

    get_added_vocab = get_vocab


PROCESSOR = SimpleNamespace(feature_extractor=WhisperFeatureExtractor(), tokenizer=Numbers())


def routed(dimensions: dict[str, int], seed: int = 0) -> DistilWhisperForConditionalGeneration:
    """A random Whisper without experts, in evaluation mode, that can generate."""
    torch.manual_seed(seed)
    model = DistilWhisperForConditionalGeneration(DistilWhisperConfig(**dimensions)).eval()
    model.generation_config = GenerationConfig(
        decoder_start_token_id=START, eos_token_id=END, pad_token_id=END, bos_token_id=END,
        is_multilingual=True, max_length=448, return_timestamps=False,
        no_timestamps_token_id=SPECIAL["<|notimestamps|>"],
        lang_to_id={token: number for token, number in SPECIAL.items() if len(token) == 6},
        task_to_id={task: SPECIAL[f"<|{task}|>"] for task in ("transcribe", "translate")},
        suppress_tokens=list(range(START, dimensions["vocab_size"])),  # timestamps above all
    )  # fmt: skip
    return model


def large(
    dimensions: dict[str, int], device: str, dtype: torch.dtype = torch.float32
) -> DistilWhisperForConditionalGeneration:
    """A random teacher, built once and where it runs: 6.2 GB at large-v2's dimensions."""
    with torch.device("meta"):
        model = routed(dimensions).to(dtype)
    model.to_empty(device=device).tie_weights()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name:
                tensor.fill_(name.endswith("weight"))
            else:
                tensor.normal_(std=0.02)
    return model


def stock(model: DistilWhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """transformers' Whisper on the very weights of ``model``."""
    names = WhisperConfig().to_dict()
    fields = {k: v for k, v in model.config.to_dict().items() if k in names and k != "model_type"}
    with torch.device("meta"):
        twin = WhisperForConditionalGeneration(WhisperConfig(**fields))
    base = {name: t for name, t in model.state_dict().items() if ".clsr." not in name}
    twin.load_state_dict(base, assign=True)
    twin.tie_weights()
    twin.generation_config = model.generation_config
    return twin.eval()


def adapters(model: DistilWhisperForConditionalGeneration) -> PeftModel:
    """Stock Whisper with peft's adapters in place of low-rank experts: the same A and B."""
    languages, rank = model.languages, model.rank_of(model.languages[0])
    lora = {code: LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS) for code in languages}
    as_they_are = {"autocast_adapter_dtype": False}
    twin = PeftModel(stock(model), lora[languages[0]], languages[0], **as_they_are)
    for code in languages[1:]:
        twin.add_adapter(code, lora[code], **as_they_are)
    names = {f"{m}.{t}": f"{m}.clsr.{{}}.{t}" for m in _layer_paths(model) for t in TARGETS}
    with torch.no_grad():
        for theirs, ours in names.items():
            linear = twin.get_base_model().get_submodule(theirs)
            for code in languages:
                change = model.get_submodule(ours.format(code))
                linear.lora_A[code].weight.copy_(change.down.weight)
                linear.lora_B[code].weight.copy_(change.up.weight)
    return twin.eval()


def _layer_paths(model: DistilWhisperForConditionalGeneration) -> list[str]:
    return [name.removesuffix(".clsr") for name, m in model.named_modules() if isinstance(m, CLSR)]


def features(rows: int) -> Tensor:
    """Random log-mel of 30 s: (rows, 80, 3000)."""
    return torch.randn(rows, 80, 3000, generator=torch.Generator().manual_seed(1))


def decoder_inputs(languages: list[str], tokens: int = 28) -> Tensor:
    """The prompt of each row's language and random text: (rows, 4 + tokens)."""
    marks = "<|startoftranscript|>", "<|{}|>", "<|transcribe|>", "<|notimestamps|>"
    prompts = [[SPECIAL[mark.format(code)] for mark in marks] for code in languages]
    random = torch.Generator().manual_seed(2)
    text = torch.randint(1000, 20_000, (len(languages), tokens), generator=random)
    return torch.cat([torch.tensor(prompts), text], 1)


# Gates -----------------------------------------------------------------------------------------


@torch.no_grad()
def add_expert(
    model: DistilWhisperForConditionalGeneration, code: str, rank: int | None = None
) -> None:
    """An expert that differs from the FFN, with gates that point somewhere at random."""
    model.add_expert(code, rank)
    for layer in model.routed_layers():
        expert = layer.clsr[code]
        for linear in (expert.fc1,) if rank is None else (expert.fc1.up, expert.fc2.up):
            linear.weight.add_(0.01 * torch.randn_like(linear.weight))
        _aim(expert.gate)


def _aim(gate: nn.Module) -> None:
    """score = ReLU(a.x + c) - ReLU(-a.x - c) = a.x + c, a at random and c = 0 so far."""
    for parameter in gate.parameters():
        parameter.zero_()
    a = torch.randn_like(gate.inner.weight[0])
    gate.inner.weight[0], gate.inner.weight[1] = a, -a
    gate.outer.weight[0, 0], gate.outer.weight[0, 1] = 1, -1


@contextmanager
def halving(layers: Any) -> Iterator[None]:
    """Within, a pass sets every gate's c so that it opens for half of what it hears there.

    Not at a token's own score, which a rounding could tip, but in the widest gap near the median.
    """
    hooks = [layer.clsr.register_forward_pre_hook(_halve, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        yield
    for hook in hooks:
        hook.remove()


def _halve(clsr: CLSR, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    ids = kwargs["expert_ids"].tolist()
    for index, expert in enumerate(clsr.values()):
        rows = [row for row, i in enumerate(ids) if i == index]
        if rows:
            inner = expert.gate.inner
            scores = (args[0][rows].float() @ inner.weight[0].float()).flatten().sort().values
            central = scores[int(0.45 * len(scores)) : int(0.55 * len(scores)) + 2]
            gap = central.diff().argmax() if len(central) > 1 else 0
            middle = central[gap : gap + 2].mean()
            inner.bias[0], inner.bias[1] = -middle, middle


@contextmanager
def gates_open(model: DistilWhisperForConditionalGeneration) -> Iterator[dict[str, list[float]]]:
    """Counts, per side and layer, the share of tokens that experts get; filled at the end."""
    heard: dict[str, list[list[Tensor]]] = {}
    hooks, shares = [], {}
    for side in ("encoder", "decoder"):
        layers = getattr(model.model, side).layers
        heard[side] = [[] for _ in layers]
        for layer, values in zip(layers, heard[side], strict=True):
            keep = lambda _m, _i, out, values=values: values.append(out[1].values)  # noqa: E731
            hooks.append(layer.clsr.register_forward_hook(keep))
    yield shares
    for hook in hooks:
        hook.remove()
    for side, layers in heard.items():
        if layers[0]:
            shares[side] = [round(torch.cat(v, 1).mean().item(), 3) for v in layers]


@contextmanager
def dense_form() -> Iterator[None]:
    """Both branches for every token at inference, for a while."""
    CLSR.dense = True
    try:
        yield
    finally:
        CLSR.dense = False


class Pair:
    """A model with one expert, and stock Whisper on the same weights."""

    def __init__(
        self,
        dimensions: dict[str, int],
        device: str,
        dtype: torch.dtype,
        rank: int | None = None,
    ) -> None:
        self.model = routed(dimensions)
        add_expert(self.model, "ca", rank)
        self.model.to(device, dtype)

    @cached_property
    def stock(self) -> WhisperForConditionalGeneration:
        return stock(self.model)

"""What experts cost at inference: against stock Whisper, and against computing both branches.

A whisper-small with random weights and two experts whose gates are open for about half of the
tokens, and stock Whisper with the same weights. Run from the repository's root:

    python benchmarks/routing.py [--small]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timing import interleaved
from torch import Tensor, nn
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration
from transformers.utils import logging

from distilwhisper_lib.clsr import CLSR
from distilwhisper_lib.model import DistilWhisperConfig, DistilWhisperForConditionalGeneration

WHISPER_SMALL = dict(
    vocab_size=51865, d_model=768, encoder_layers=12, decoder_layers=12,
    encoder_attention_heads=12, decoder_attention_heads=12, encoder_ffn_dim=3072,
    decoder_ffn_dim=3072,
)  # fmt: skip
MINIATURE = WHISPER_SMALL | dict(
    d_model=256, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=1024, decoder_ffn_dim=1024,
)  # fmt: skip
START = 50258
LANGUAGES = {"ca": 50270, "pl": 50269, "en": 50259}  # the last one has no expert
TRANSCRIBE, NO_TIMESTAMPS = 50359, 50363


def models(
    dimensions: dict[str, int],
) -> tuple[DistilWhisperForConditionalGeneration, WhisperForConditionalGeneration]:
    """A routed and a stock Whisper on the same weights, both in evaluation mode."""
    torch.manual_seed(0)
    model = DistilWhisperForConditionalGeneration(DistilWhisperConfig(**dimensions)).eval()
    model.generation_config = GenerationConfig(
        decoder_start_token_id=START, eos_token_id=50257, pad_token_id=50257, is_multilingual=True,
        max_length=448, return_timestamps=False, no_timestamps_token_id=NO_TIMESTAMPS,
        lang_to_id={f"<|{code}|>": token for code, token in LANGUAGES.items()},
        task_to_id={"transcribe": TRANSCRIBE, "translate": 50358},
    )  # fmt: skip
    for code in ("ca", "pl"):
        model.add_expert(code)
    with torch.no_grad():
        for layer in model.routed_layers():
            for expert in layer.clsr.values():
                expert.fc1.weight.add_(0.01 * torch.randn_like(expert.fc1.weight))
                _open_for_half(expert.gate)
    stock = WhisperForConditionalGeneration(WhisperConfig(**dimensions)).eval()
    base = {name: t for name, t in model.state_dict().items() if ".clsr." not in name}
    stock.load_state_dict(base, assign=True)
    stock.generation_config = model.generation_config
    return model, stock


def _open_for_half(gate: nn.Module) -> None:
    """Scores ReLU(a.x) - ReLU(-a.x) = a.x, which are as often positive as negative."""
    half = gate.inner.weight.shape[0] // 2
    gate.inner.weight[half:] = -gate.inner.weight[:half]
    gate.outer.weight[:, half:] = -gate.outer.weight[:, :half]


@contextmanager
def dense_form() -> Iterator[None]:
    """Both branches for every token, as graph capture needs it, for a while."""
    CLSR.dense = True
    try:
        yield
    finally:
        CLSR.dense = False


def inputs(rows: int, languages: tuple[str, ...]) -> tuple[Tensor, Tensor, list[str]]:
    """30 s of random log-mel, decoder inputs of 32 tokens, and the language of each row."""
    random = torch.Generator().manual_seed(1)
    features = torch.randn(rows, 80, 3000, generator=random)
    spoken = [languages[i % len(languages)] for i in range(rows)]
    text = torch.randint(1000, 20_000, (rows, 28), generator=random)
    prompt = [[START, LANGUAGES[code], TRANSCRIBE, NO_TIMESTAMPS] for code in spoken]
    return features, torch.cat([torch.tensor(prompt), text], 1), spoken


@torch.no_grad()
def forward(model: Any, stock: Any, rounds: int = 9) -> dict[str, float]:
    """CPU ms of a 30 s forward: with experts, with both branches, and of stock Whisper."""
    features, ids, _ = inputs(1, ("ca",))

    def dense() -> Tensor:
        with dense_form():
            return model(features, ids).logits

    gates = model(features, ids, output_gates=True).gates
    open_share = torch.cat([g.values.flatten() for g in gates.encoder + gates.decoder]).mean()
    assert 0.3 < open_share < 0.7, f"gates are open for {open_share:.2f} of the tokens"
    torch.testing.assert_close(model(features, ids).logits, dense(), atol=1e-3, rtol=1e-3)
    closed = model(features, ids, gate_mode="closed").logits
    assert torch.equal(closed, stock(features, decoder_input_ids=ids).logits)
    sides = {
        "experts": lambda: model(features, ids),
        "dense": dense,
        "stock": lambda: stock(features, decoder_input_ids=ids),
    }
    return interleaved(sides, rounds)


@torch.no_grad()
def generate(
    model: Any,
    stock: Any,
    rows: int = 1,
    languages: tuple[str, ...] = ("ca",),
    tokens: int = 40,
    rounds: int = 7,
) -> dict[str, float]:
    """CPU ms of greedy generation of ``tokens`` tokens, encoder included, both sides."""
    features, _, spoken = inputs(rows, languages)
    options = dict(language=spoken, task="transcribe", max_new_tokens=tokens, min_new_tokens=tokens)
    translate = options | dict(task="translate")  # goes through the shared branch
    expected = stock.generate(features, **translate)
    assert torch.equal(model.generate(features, **translate), expected)
    sides = {
        "experts": lambda: model.generate(features, **options),
        "stock": lambda: stock.generate(features, **options),
    }
    return interleaved(sides, rounds)


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    pair = models(MINIATURE if "--small" in arguments else WHISPER_SMALL)
    ms = forward(*pair)
    print(f"30 s forward: {ms}")
    print(f"  / stock {ms['experts'] / ms['stock']:.3f}, / dense {ms['experts'] / ms['dense']:.3f}")
    mixed = ("ca", "pl", "ca", "en")
    for rows, languages, rounds in ((1, ("ca",), 7), (16, ("ca",), 3), (16, mixed, 3)):
        ms = generate(*pair, rows, languages, 40, rounds)
        spoken = "+".join(sorted(set(languages)))
        print(f"generate, batch {rows}, {spoken}: {ms}; ratio {ms['experts'] / ms['stock']:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])

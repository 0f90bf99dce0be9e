"""The embedded Whisper pair: sizes, first weights, prompts, transcripts and files.

Both are stock Whisper models; only their size, window and vocabulary are small.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from benchmarks.demo.synthesis import SAMPLE_RATE, WINDOW_SECONDS

MAX_TARGET_POSITIONS = 64
HOP = 160  # samples per log-mel frame
SOURCE_POSITIONS = int(WINDOW_SECONDS * SAMPLE_RATE / HOP / 2)  # 150: conv2 halves 300 frames


@dataclass(frozen=True)
class Recipe:
    """Size of a model, the share of the pool that it hears, and how long it is trained."""

    d_model: int
    layers: int
    heads: int
    ffn: int
    steps: int
    shares: dict[str, float]
    learning_rate: float = 1e-3
    warmup: int = 150
    decay: float = 0.3  # the last part of the steps, on a cosine
    batch_size: int = 32
    weight_decay: float = 0.01
    full_window: float = 0.2  # share of batches padded to the whole window, as at inference
    evaluate_every: int = 500
    seed: int = 77


RECIPES = {
    "teacher": Recipe(
        d_model=192,
        layers=3,
        heads=6,
        ffn=768,
        steps=2400,
        shares={"en": 1.0, "ca": 1.0, "cs": 1.0},
    ),
    # The FFN is twice as wide as usual: DistilWhisper adds its capacity there, and in a model this
    # small an expert of the usual width could hardly show what it can do.
    "student": Recipe(
        d_model=128,
        layers=2,
        heads=4,
        ffn=1024,
        steps=1700,
        shares={"en": 1.0, "ca": 0.1, "cs": 0.08},
    ),
}


def prompt_ids(processor: WhisperProcessor, language: str) -> list[int]:
    """<|startoftranscript|><|xx|><|transcribe|><|notimestamps|>"""
    tokens = ("<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>")
    return processor.tokenizer.convert_tokens_to_ids(list(tokens))


def generation_config(processor: WhisperProcessor) -> GenerationConfig:
    """What `generate(language=, task=)` needs, made afresh.

    A GenerationConfig derived from a model config would lack `lang_to_id` and `task_to_id`.
    """

    def token_id(name: str) -> int:
        return processor.tokenizer.convert_tokens_to_ids(f"<|{name}|>")

    end = token_id("endoftext")
    never_text = ("startoftranscript", "translate", "transcribe") + (
        "startoflm",
        "startofprev",
        "nospeech",
    )
    return GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=token_id("startoftranscript"),
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": token_id(code) for code in LANGUAGES},
        task_to_id={task: token_id(task) for task in ("transcribe", "translate")},
        no_timestamps_token_id=token_id("notimestamps"),
        prev_sot_token_id=token_id("startofprev"),
        suppress_tokens=sorted(token_id(name) for name in never_text),
        begin_suppress_tokens=[*processor.tokenizer.encode(" ", add_special_tokens=False), end],
        return_timestamps=False,
        max_length=MAX_TARGET_POSITIONS,
    )


def build_model(recipe: Recipe, processor: WhisperProcessor) -> WhisperForConditionalGeneration:
    """A stock Whisper of the recipe's size with weights that let it start learning."""
    generation = generation_config(processor)
    config = WhisperConfig(
        vocab_size=len(processor.tokenizer),
        d_model=recipe.d_model,
        encoder_layers=recipe.layers,
        decoder_layers=recipe.layers,
        encoder_attention_heads=recipe.heads,
        decoder_attention_heads=recipe.heads,
        encoder_ffn_dim=recipe.ffn,
        decoder_ffn_dim=recipe.ffn,
        max_source_positions=SOURCE_POSITIONS,
        max_target_positions=MAX_TARGET_POSITIONS,
        bos_token_id=generation.bos_token_id,
        eos_token_id=generation.eos_token_id,
        pad_token_id=generation.pad_token_id,
        decoder_start_token_id=generation.decoder_start_token_id,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(recipe.seed)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = generation
    _initialise(model, recipe.d_model)
    return model


def _initialise(model: WhisperForConditionalGeneration, d_model: int) -> None:
    """Xavier and Kaiming instead of std 0.02, which is too small for a model this narrow."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.proj_out:
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight)
    # Shared with the output layer: logits of about unit variance at the start.
    nn.init.normal_(model.model.decoder.embed_tokens.weight, std=d_model**-0.5)
    nn.init.normal_(model.model.decoder.embed_positions.weight, std=d_model**-0.5)


@torch.no_grad()
def transcribe(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    waves: list[np.ndarray],
    language: str,
    batch_size: int = 50,
) -> list[str]:
    """Greedy transcripts by stock `generate`, with the full window."""
    model.eval()
    texts = []
    for start in range(0, len(waves), batch_size):
        features = processor.feature_extractor(
            waves[start : start + batch_size], sampling_rate=SAMPLE_RATE, return_tensors="pt"
        ).input_features  # (B, 80, 300)
        tokens = model.generate(features, language=language, task="transcribe")
        texts += processor.batch_decode(tokens, skip_special_tokens=True)
    return [text.strip() for text in texts]


def word_error_rate(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    waves: list[np.ndarray],
    references: list[str],
    language: str,
) -> float:
    """Word error rate in per cent. The texts are plain lower-case words: nothing to normalise."""
    return 100 * jiwer.wer(references, transcribe(model, processor, waves, language))


def save_stock(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, folder: Path
) -> None:
    """Save half-precision weights that `from_pretrained` loads as float32.

    transformers loads in the dtype that config.json names, and half precision is slow on a CPU.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_processor(processor, folder)
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    weights = {
        name: value.detach().to(torch.float16).contiguous()
        for name, value in model.state_dict().items()
        if name != "proj_out.weight"  # tied to the token embedding
    }
    # Others may be reading the previous checkpoint.
    partial = folder / "model.safetensors.partial"
    save_file(weights, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors writes files that only their owner can read
    os.replace(partial, folder / "model.safetensors")


def save_processor(processor: WhisperProcessor, folder: Path) -> None:
    """Save tokenizer and feature extractor, the latter also under its classic file name."""
    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder)
    processor.feature_extractor.save_pretrained(folder)

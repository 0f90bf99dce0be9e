"""Moved here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import WhisperProcessor

from distilwhisper_lib.config.presets import revision_of
from distilwhisper_lib.config.settings import WITH_EXPERTS, RunConfig, locate
from distilwhisper_lib.model.hub import loading
from distilwhisper_lib.model.whisper import DistilWhisperForConditionalGeneration
from distilwhisper_lib.model.window import shorten


def load_model(
    name: str, revision: str | None = None, window_seconds: int | None = None, **settings: Any
) -> tuple[DistilWhisperForConditionalGeneration, WhisperProcessor]:
    """A Whisper in float32 with its processor, from a hub name, a folder or "embedded/...".

    ``revision``: by default the commit at which presets.py takes the model, else its main branch.
    ``window_seconds``: see window.py. Other settings go to the model's configuration.
    """
    source, revision = locate(name), revision or revision_of(name)
    model = DistilWhisperForConditionalGeneration.from_pretrained(
        source, revision=revision, dtype=torch.float32, attn_implementation="sdpa", **settings
    )
    with loading(name):
        processor = WhisperProcessor.from_pretrained(source, revision=revision)
    shorten(model, processor, window_seconds)
    return model, processor


def load_student(
    config: RunConfig,
) -> tuple[DistilWhisperForConditionalGeneration, WhisperProcessor]:
    """The model that a run starts from, with its processor."""
    return load_model(config.student_or_teacher, config.revision_of_model, **model_settings(config))


def load_teacher(config: RunConfig) -> DistilWhisperForConditionalGeneration:
    """The model that a run learns from."""
    return load_model(config.teacher, config.teacher_revision, config.window_seconds)[0]


def model_settings(config: RunConfig) -> dict[str, Any]:
    """What of a run's configuration load_model() must know."""
    names = ("window_seconds", "gate_dim", "gate_dropout", "expert_dropout", "skip")
    return {name: getattr(config, name) for name in names}


def prepare(model: DistilWhisperForConditionalGeneration, config: RunConfig) -> nn.Module:
    """Give a loaded model what the method trains, and freeze the rest.

    full: every weight of Whisper but its fixed sinusoids. lora: low-rank updates of fc1 and fc2.
    clsr, kl, js: one language's experts and gates.
    """
    if config.method == "full":
        # Frozen by Whisper's constructor, but transformers' from_pretrained forgets that.
        model.model.encoder.embed_positions.requires_grad_(False)
        return model
    if config.method == "lora":
        lora = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=["fc1", "fc2"],
            bias="none",
            task_type=None,  # Whisper takes features, not input_ids, which peft's seq2seq type adds
        )
        return get_peft_model(model, lora)
    model.add_expert(config.language)
    model.freeze_all_but_expert(config.language)
    return model


def read_trained(
    base: DistilWhisperForConditionalGeneration, config: RunConfig, folder: Path
) -> Any:
    """What a run left in its folder, on the model it started from; trainable, as it was hashed."""
    if config.method in WITH_EXPERTS:
        base.load_experts(config.language, folder)
        base.freeze_all_but_expert(config.language)
        return base
    if config.method == "lora":
        return PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)
    whole = DistilWhisperForConditionalGeneration.from_pretrained(
        folder / "model", dtype=torch.float32, attn_implementation="sdpa"
    )
    return prepare(whole, config)

"""A run's models: the student as a method trains it, the teacher, and what was trained read back.

``window_seconds``: Whisper hears every clip padded to 30 seconds. Where clips are short and no GPU
is at hand, most of that is silence. A model of a shorter window keeps the first positions of its
fixed sinusoids, and its extractor pads to that window; nothing else changes. With ``fit_window`` it
takes of these only what the clips of a batch need, see features.window_of(). Whisper was not
trained so: its zero-shot output can suffer, hence training and evaluation use the same window, and
a record tells it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TrainableTokensConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel, WhisperProcessor

from distilwhisper_lib.config.presets import revision_of
from distilwhisper_lib.config.settings import WITH_EXPERTS, RunConfig
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.languages import whisper_language
from distilwhisper_lib.model.checkpoint import check_model, shorten_config
from distilwhisper_lib.model.tensors import trained_tensors, weights_hash
from distilwhisper_lib.model.whisper import DistilWhisperForConditionalGeneration
from distilwhisper_lib.speech.features import fits_window


def shorten(
    model: PreTrainedModel,
    processor: WhisperProcessor,
    seconds: int | None = None,
    fit: bool | None = None,
) -> None:
    """Give a loaded Whisper and its extractor a window of whole seconds, in place.

    ``fit``: whether both take shorter clips as they are. None leaves either as it was saved.
    """
    model.config.fit_window = fit = model.config.fit_window if fit is None else fit
    if fit != fits_window(processor.feature_extractor):
        _remake(processor, "fit_window", fit or None)
    if seconds is None:
        return
    positions = shorten_config(model.config, seconds).max_source_positions
    encoder = model.model.encoder
    kept = encoder.embed_positions.weight.detach()[:positions].clone()
    encoder.embed_positions = nn.Embedding.from_pretrained(kept, freeze=True)
    encoder.max_source_positions = positions
    _remake(processor, "chunk_length", seconds)


def padding_all(processor: WhisperProcessor, seconds: int | None = None) -> WhisperProcessor:
    """One that pads clips to the whole window, its own or of so many seconds, as plain Whisper
    hears them."""
    processor = copy.copy(processor)
    _remake(processor, "fit_window", None)
    if seconds is not None:
        _remake(processor, "chunk_length", seconds)
    return processor


def _remake(processor: WhisperProcessor, name: str, value: int | None) -> None:
    """Give its extractor a setting, which None takes away."""
    extractor = processor.feature_extractor
    settings = extractor.to_dict() | {name: value}
    processor.feature_extractor = type(extractor)(
        **{k: v for k, v in settings.items() if k != name or v is not None}
    )


def load_model(
    name: str,
    revision: str | None = None,
    window_seconds: int | None = None,
    fit_window: bool | None = None,
    language: str | None = None,
    borrowed: Mapping[str, str] | None = None,
    **settings: Any,
) -> tuple[DistilWhisperForConditionalGeneration, WhisperProcessor]:
    """A Whisper in float32 with its processor, from a hub name, a folder or "embedded/...".

    ``revision``: by default the commit at which presets.py takes the model, else its main branch.
    ``window_seconds``, ``fit_window``: see loading.py; None: as saved. ``language``: one it must
    have a token for. ``borrowed``: languages without a token, and whose they borrow. Other settings
    go to the model's configuration. Raises UserError, before the weights are read, for what
    check_model() refuses.
    """
    languages = [] if language is None else [whisper_language(language)[0]]
    source, _, processor = check_model(name, revision or revision_of(name), languages)
    model = DistilWhisperForConditionalGeneration.from_pretrained(
        source.name, dtype=torch.float32, attn_implementation="sdpa", **source.options, **settings
    )
    shorten(model, processor, window_seconds, fit_window)
    for language, lender in (borrowed or {}).items():
        model.borrow_token(language, lender)
    return model, processor


def load_student(
    config: RunConfig,
) -> tuple[DistilWhisperForConditionalGeneration, WhisperProcessor]:
    """The model that a run starts from, with its processor."""
    return load_model(config.student_or_teacher, config.revision_of_model, **model_settings(config))


def model_settings(config: RunConfig) -> dict[str, Any]:
    """What of a run's configuration load_model() must know."""
    names = ("borrowed", "gate_dim", "gate_dropout", "expert_dropout", "skip")
    modes = {"gate_mode": config.inference_gates, "language": config.spoken}
    window = {"window_seconds": config.window_seconds, "fit_window": config.window == "fit"}
    return {name: getattr(config, name) for name in names} | modes | window


def prepare(model: DistilWhisperForConditionalGeneration, config: RunConfig) -> nn.Module:
    """Give a loaded model what the method trains, and freeze the rest.

    full: every weight of Whisper but its fixed sinusoids. lora: what peft puts beside it, see
    adapter_of(). clsr, kl, js: one language's experts and gates.
    """
    if config.method == "full":
        # Frozen by Whisper's constructor, but transformers' from_pretrained forgets that.
        model.model.encoder.embed_positions.requires_grad_(False)
        return model
    if config.method == "lora":
        return get_peft_model(model, adapter_of(config, model))
    model.add_expert(config.language, config.expert_rank if config.expert == "low_rank" else None)
    model.freeze_all_but_expert(config.language)
    return model


# The linear layers that an adapter changes.
_LAYERS = {
    "feed_forward": ["fc1", "fc2"],
    "attention": ["q_proj", "k_proj", "v_proj", "out_proj"],
}
_LAYERS["all"] = _LAYERS["feed_forward"] + _LAYERS["attention"]


def adapter_of(config: RunConfig, model: DistilWhisperForConditionalGeneration) -> PeftConfig:
    """Low-rank updates, of weights or of their directions, or one embedding of the language."""
    # Whisper takes features, not input_ids, which peft's own type for such models adds.
    whole = {"task_type": None}
    if config.adapter == "token":
        token = model.generation_config.lang_to_id[f"<|{config.spoken}|>"]
        return TrainableTokensConfig(
            token_indices=[token], target_modules=["embed_tokens"], **whole
        )
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=_LAYERS[config.lora_layers],
        bias="none",
        use_dora=config.adapter == "dora",
        **whole,
    )


def read_trained(
    base: DistilWhisperForConditionalGeneration,
    config: RunConfig,
    folder: Path,
    training: dict[str, Any],
) -> Any:
    """What a run left in its folder, on the model it started from, ready to transcribe.

    Raises UserError when its weights are not those of ``training``, what the run noted of them.
    """
    model = _with_trained(base, config, folder)
    if weights_hash(trained_tensors(model)) != training["weights_sha256"]:
        raise UserError(
            f"the weights in {folder} are not those that the run noted there: remove that folder "
            "and run its notebook again, or use --force"
        )
    return model.eval()


def _with_trained(
    base: DistilWhisperForConditionalGeneration, config: RunConfig, folder: Path
) -> Any:
    """Trainable, as it was hashed."""
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

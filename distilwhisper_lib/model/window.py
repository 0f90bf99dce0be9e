"""A window shorter than Whisper's 30 seconds: fewer encoder positions to compute.

Whisper hears every clip padded to 30 seconds. Where clips are short and no GPU is at hand, most of
that is silence. A model of a shorter window keeps the first positions of its fixed sinusoids, and
its extractor pads to that window; nothing else changes. Whisper was not trained so: its zero-shot
output can suffer, hence training and evaluation use the same window, and a record tells it.
"""

from __future__ import annotations

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, WhisperProcessor

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.speech.audio import POSITIONS_PER_SECOND


def shorten_config(config: PretrainedConfig, seconds: int | None) -> PretrainedConfig:
    """Set the positions of a model's configuration to a window; None leaves all of them.

    Raises UserError when the model's own window is shorter.
    """
    if seconds is None:
        return config
    if seconds * POSITIONS_PER_SECOND > config.max_source_positions:
        raise UserError(
            f"window_seconds={seconds} is longer than what the model hears at once, "
            f"{config.max_source_positions // POSITIONS_PER_SECOND} s: expected that or less"
        )
    config.max_source_positions = seconds * POSITIONS_PER_SECOND
    return config


def shorten(model: PreTrainedModel, processor: WhisperProcessor, seconds: int | None) -> None:
    """Give a loaded Whisper and its extractor a window of whole seconds, in place."""
    if seconds is None:
        return
    positions = shorten_config(model.config, seconds).max_source_positions
    encoder = model.model.encoder
    kept = encoder.embed_positions.weight.detach()[:positions].clone()
    encoder.embed_positions = nn.Embedding.from_pretrained(kept, freeze=True)
    encoder.max_source_positions = positions
    extractor = processor.feature_extractor
    processor.feature_extractor = type(extractor)(**extractor.to_dict() | {"chunk_length": seconds})

"""Whisper with language experts."""

from distilwhisper_lib.model.layers import DistilWhisperConfig
from distilwhisper_lib.model.whisper import DistilWhisperForConditionalGeneration

__all__ = ["DistilWhisperConfig", "DistilWhisperForConditionalGeneration"]

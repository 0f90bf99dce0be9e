"""Multilingual DistilWhisper (arXiv 2311.01070): language experts for Whisper, to run and to read.

The names below are the ones a user types; they are imported on first use, so that
``import distilwhisper_lib`` costs nothing until a model is needed.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"
PACKAGE = Path(__file__).parent  # the only place that asks where this code lies

_HOME = {
    "DistilWhisperConfig": "model.layers",
    "DistilWhisperForConditionalGeneration": "model.whisper",
    "RunConfig": "config.settings",
    "Transcriber": "transcription.transcriber",
    "UserError": "errors",
    "export_run": "export.bundle",
    "push_to_hub": "export.publish",
    "resolve": "config.settings",
    "train": "training.loop",
    "transcribe": "transcription.transcriber",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]

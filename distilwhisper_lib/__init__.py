"""Multilingual DistilWhisper (arXiv 2311.01070): language experts for Whisper, to run and to read.

The names below are the ones a user types; they are imported on first use, so that
``import distilwhisper_lib`` costs nothing until a model is needed. Each room hands on its own
names in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"
PACKAGE = Path(__file__).parent  # the only place that asks where this code lies


def hand_on(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """``__all__``, ``__getattr__`` and ``__dir__`` of a package that hands on names of its modules.

    ``homes``: module, without the package -> names. Each is imported when a name is first asked
    for, so that a package costs what is used of it.
    """
    module_of = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{module_of[name]}"), name)

    return sorted(module_of), get, lambda: sorted(module_of)


__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "config.settings": ("RunConfig", "resolve"),
        "errors": ("UserError",),
        "export.bundle": ("export_run",),
        "export.publish": ("push_to_hub",),
        "model.layers": ("DistilWhisperConfig",),
        "model.whisper": ("DistilWhisperForConditionalGeneration",),
        "training.loop": ("train",),
        "transcription.transcriber": ("Transcriber", "transcribe"),
    },
)

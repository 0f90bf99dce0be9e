"""What all races of one call share: device, size, and what is costly to make."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.races import models
from distilwhisper_lib.results.provenance import provenance


@dataclass
class Setting:
    """``folder`` is where a race may write; ``small`` shrinks everything to seconds."""

    device: str
    small: bool
    folder: Path
    stored: Any = None  # a corpus with teacher targets: see steps.prepared()

    def rounds(self, count: int) -> int:
        return min(count, 2) if self.small else count

    @property
    def dtype(self) -> torch.dtype:
        """Of models that transcribe: half on a GPU, as the kit has it."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    @property
    def precision(self) -> str:
        """Of models that train."""
        return "bf16" if self.device == "cuda" else "fp32"

    @property
    def student_dimensions(self) -> dict[str, int]:
        return models.MINIATURE if self.small else models.WHISPER_SMALL

    @property
    def teacher_dimensions(self) -> dict[str, int]:
        return models.MINIATURE_TEACHER if self.small else models.LARGE_V2

    @cached_property
    def pair(self) -> models.Pair:
        return models.Pair(self.student_dimensions, self.device, self.dtype)

    @cached_property
    def low_rank(self) -> models.Pair:
        return models.Pair(self.student_dimensions, self.device, self.dtype, models.RANK)

    @cached_property
    def teacher(self) -> Any:
        return models.large(self.teacher_dimensions, self.device)

    def drop(self, *names: str) -> None:
        """Let go of what no later race needs; it is made again if one does."""
        for name in names:
            vars(self).pop(name, None)

    def empty(self, name: str) -> Path:
        """A folder with nothing in it."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / name).mkdir(parents=True)
        return self.folder / name

    def about(self) -> dict[str, Any]:
        """Where and on what the figures of this call were made."""
        made = provenance(device=self.device)
        return {
            "size": "small" if self.small else "full",
            "device": self.device,
            "dims": self.student_dimensions,
            "teacher_dims": self.teacher_dimensions,
            "threads": torch.get_num_threads(),
            "date": made["created"],
            "machine": made["hardware"],
            **{name: made[name] for name in ("commit", "dirty", "versions")},
        }

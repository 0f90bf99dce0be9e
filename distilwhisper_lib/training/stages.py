"""The parts of a training: what trains in each, for how long, and which gates are heard meanwhile.

Most trainings have one. With ``router_epochs`` the experts come first and the gates after: the
best experts are frozen, and a second stage trains their gates alone (as arXiv 2606.31413 trains a
router over frozen LoRA experts). Warm-up, decay, noise and fractions count within a stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distilwhisper_lib.config.settings import DISTILLED, WITH_EXPERTS, RunConfig


@dataclass(frozen=True)
class Stage:
    """A part of a run's training, with checkpoints of its own."""

    run: RunConfig
    name: str  # "experts", which is all of a training without router_epochs, or "router"
    folder: Path  # of its checkpoints

    @property
    def gates_alone(self) -> bool:
        """Whether nothing but gates trains in it."""
        return self.name == "router"

    @property
    def epochs(self) -> int:
        return self.run.router_epochs if self.gates_alone else self.run.epochs

    @property
    def distils(self) -> bool:
        """Whether it learns from the teacher."""
        wanted = self.run.method in DISTILLED
        return wanted and self.run.distil_stage in ("both", self.name)

    @property
    def expert_warmup(self) -> float:
        return 0.0 if self.gates_alone else self.run.expert_warmup

    @property
    def heard(self) -> str:
        """The gates that its validation hears: those of tests, but of experts that wait for
        theirs, none."""
        waits = self.expert_warmup == 1 and self.run.router_epochs
        return "open" if waits else self.run.inference_gates

    def gates(self, progress: float) -> tuple[str, bool]:
        """``gate_mode`` and ``straight_through`` of a training step at this progress, 0 to 1."""
        if progress < self.expert_warmup:
            return "open", False
        hard = self.run.gate_training == "straight_through"
        return "learned", hard and progress >= self.run.straight_through_from


def stages(run: RunConfig, folder: Path) -> list[Stage]:
    """The stages of a run in order, their checkpoints below ``folder``."""
    parts = [Stage(run, "experts", folder)]
    if run.method in WITH_EXPERTS and run.router_epochs:
        parts.append(Stage(run, "router", folder / "router"))
    return parts

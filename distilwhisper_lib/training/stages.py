"""The parts of a training: what trains in each, for how long, and which gates are heard meanwhile.

Most trainings have one. With ``router_epochs`` the experts come first and the gates after: the
best experts are frozen, and a second stage trains their gates alone (as arXiv 2606.31413 trains a
router over frozen LoRA experts). Warm-up, decay, noise and fractions count within a stage.

Experts that learn with every gate open owe nothing to the settings of gates. They are trained once
and kept below ``outputs/experts/``, where every run finds them that would train the same ones: a
sweep of budgets, or of whatever else only gates feel, costs the gates alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilwhisper_lib.config.settings import (
    WITH_EXPERTS,
    RunConfig,
    decisive,
    published_name,
)
from distilwhisper_lib.hardware import precision_here
from distilwhisper_lib.results.provenance import provenance

FOLDER = Path("outputs/experts")

# What experts behind open gates cannot feel, beside tests; and what nobody feels without a teacher.
_OF_GATES = {
    "budget", "budget_scope", "gate_weight", "gate_noise", "gate_training", "straight_through_from",
    "gate_rate", "router_epochs", "gate_mode", "distil_stage", "out_of_domain", "test_size",
}  # fmt: skip
_OF_TEACHER = {
    "method", "teacher", "teacher_revision", "teacher_targets", "task_weight", "distil_weight",
    "temperature",
}  # fmt: skip


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
    def title(self) -> str:
        """What a progress line calls it; "" of all that there is."""
        return self.name if self.run.router_epochs else ""

    @property
    def after(self) -> float:
        """How many times its own steps the stage after it has."""
        if self.gates_alone or not self.run.router_epochs:
            return 0.0
        return 1.0 if self.run.max_steps > 0 else self.run.router_epochs / self.run.epochs

    @property
    def distils(self) -> bool:
        """Whether it learns from the teacher."""
        wanted = self.run.divergence is not None
        return wanted and self.run.distil_stage in ("both", self.name)

    @property
    def expert_warmup(self) -> float:
        return 0.0 if self.gates_alone else self.run.expert_warmup

    @property
    def heard(self) -> str | None:
        """The ``gate_mode`` of its validation: that of tests, but "open" of experts that wait for
        their gates; None of methods without any."""
        if self.run.method not in WITH_EXPERTS:
            return None
        waits = self.expert_warmup == 1 and self.run.router_epochs
        return "open" if waits else self.run.inference_gates

    def gates(self, progress: float) -> tuple[str, bool]:
        """``gate_mode`` and ``straight_through`` of a training step at this progress, 0 to 1."""
        if progress < self.expert_warmup:
            return "open", False
        hard = self.run.gate_training == "straight_through"
        return "learned", hard and progress >= self.run.straight_through_from


def stages(run: RunConfig, folder: Path, basis: Mapping[str, Any] | None = None) -> list[Stage]:
    """The stages of a run in order, their checkpoints below ``folder``.

    ``basis``, what it learns from: hashes of clips, and of "models". With it, those of experts that
    other runs can share lie below FOLDER. Code that is not committed shares nothing.
    """
    experts = Stage(run, "experts", folder)
    if run.method not in WITH_EXPERTS or not run.router_epochs:
        return [experts]
    if basis is not None and experts.expert_warmup == 1:
        made = provenance()
        if not made["dirty"]:
            about = _identity(experts, basis) | {k: made[k] for k in ("commit", "versions")}
            digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
            experts = Stage(run, "experts", FOLDER / f"{run.language}-s{run.seed}-{digest}")
    return [experts, Stage(run, "router", folder / "router")]


def _identity(stage: Stage, basis: Mapping[str, Any]) -> dict[str, Any]:
    """What decides what experts behind open gates learn."""
    run, dropped = stage.run, _OF_GATES | (set() if stage.distils else _OF_TEACHER)
    settings = {name: getattr(run, name) for name in decisive(run.method) - dropped}
    told = {k: published_name(v) if isinstance(v, str) else v for k, v in settings.items()}
    models = basis["models"] | ({} if stage.distils else {"teacher": None})
    return told | basis | {"models": models, "precision": precision_here(run.precision)}

"""Reading a folder of golden vectors, and holding our numbers against them (see test_golden.py).

golden/README.md describes the folder's format: one sub-folder ("bundle") per subject, each with
tensors and a manifest.json. Nothing here assumes dimensions, languages or numbers of layers.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from distilwhisper_lib.languages import whisper_language

SIDES = ("encoder", "decoder")


@dataclass
class Tally:
    """What was compared in one bundle, and how far the farthest was from its record."""

    tensors: int = 0
    values: int = 0
    largest: float = 0.0
    largest_name: str = ""
    share: float = 0.0  # of the tolerance
    share_name: str = ""
    names: set[str] = field(default_factory=set)  # of the tensors

    def __str__(self) -> str:
        compared = f"{self.tensors} tensors and {self.values} values compared"
        if not self.largest:
            return f"{compared}, all exactly equal"
        return (
            f"{compared}; largest deviation {self.largest:.1e} ({self.largest_name}); "
            f"nearest to its tolerance, at {self.share:.1%}: {self.share_name}"
        )


class Compare:
    """compare(name, ours, golden, atol=, rtol=): rtol is of the golden's largest magnitude.

    Without a tolerance both must be equal. Tensors and other values are counted apart.
    """

    def __init__(self, tallies: dict[str, Tally], bundle: str) -> None:
        self.tallies, self.bundle = tallies, bundle

    def __call__(
        self, name: str, ours: Any, golden: Any, *, atol: float = 0.0, rtol: float = 0.0
    ) -> None:
        tally = self.tallies.setdefault(self.bundle, Tally())
        if isinstance(golden, Tensor):
            tally.tensors += 1
            tally.names.add(name)
            assert ours.shape == golden.shape, f"{name}: {ours.shape} is not {golden.shape}"
        else:
            tally.values += 1
        if not atol and not rtol:
            equal = torch.equal(ours, golden) if isinstance(golden, Tensor) else ours == golden
            assert equal, f"{name}: {str(ours)[:200]} is not {str(golden)[:200]}"
            return
        ours, golden = (torch.as_tensor(x, dtype=torch.float64) for x in (ours, golden))
        deviation = (ours - golden).abs().max().item()
        tolerance = atol + rtol * golden.abs().max().item()
        assert deviation <= tolerance, f"{name}: off by {deviation:.2e}, allowed {tolerance:.2e}"
        if deviation > tally.largest:
            tally.largest, tally.largest_name = deviation, name
        if tolerance and deviation / tolerance > tally.share:
            tally.share, tally.share_name = deviation / tolerance, name


class Bundle:
    """One sub-folder: ``tensors`` of io.safetensors, ``values`` of the manifest, other files."""

    def __init__(self, golden: Path, name: str) -> None:
        self.folder = golden / name

    @cached_property
    def values(self) -> dict[str, Any]:
        return self.json("manifest.json")["values"]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.folder / "io.safetensors")

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The tensors of one prefix, without it."""
        start = f"{prefix}/"
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}


def languages_of(golden: Path) -> list[str]:
    return list(Bundle(golden, "clsr_eval").values["per_language"])


def runs_of(golden: Path) -> dict[str, dict[str, Any]]:
    """The training runs of clsr_train: "<language>/step_<p>[/variant]" -> what was recorded."""
    runs = Bundle(golden, "clsr_train").values["runs"]
    return {k: v for k, v in runs.items() if isinstance(v, dict) and "step_proportion" in v}


def losses_of(golden: Path) -> dict[str, Any]:
    return Bundle(golden, "losses").values["losses"]


def code_of(language: str) -> str:
    return whisper_language(language)[0]


def prompt_of(golden: Path, language: str) -> list[int]:
    """language, task and no-timestamps token."""
    prompts = Bundle(golden, "base").values["generate"]["prompt_variant"]["forced_decoder_ids"]
    return [token for _, token in prompts[language]]


def budget_settings(name: str) -> tuple[bool, float]:
    """ "...(use_gate_budget=True,gate_budget=0.3)" -> (True, 0.3)."""
    match = re.search(r"use_gate_budget=(True|False),gate_budget=([\d.]+)", name)
    return match[1] == "True", float(match[2])

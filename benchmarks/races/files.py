"""Log-mel features, and expert files: their size, what half of it costs, and how they load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.races import memory, models
from benchmarks.races.harness import Row, check, interleaved, largest_difference, row
from benchmarks.races.setting import Setting
from distilwhisper_lib.config.settings import locate
from distilwhisper_lib.data.corpora import load_corpus
from distilwhisper_lib.evaluation.decoding import transcribe
from distilwhisper_lib.model.loading import load_model
from distilwhisper_lib.speech.features import extract_features


def log_mel(setting: Setting) -> Iterator[Row]:
    """A clip of 5 s, on the CPU, where a data loader makes its features."""
    extractor = models.PROCESSOR.feature_extractor
    clip = np.random.default_rng(0).normal(0, 0.1, 5 * 16_000).astype(np.float32)

    def theirs() -> torch.Tensor:
        return extractor(clip, sampling_rate=16_000, return_tensors="pt").input_features

    def ours() -> torch.Tensor:
        return extract_features(extractor, [clip])

    apart = largest_difference(theirs(), ours())
    samples = interleaved({"transformers": theirs, "kit": ours}, setting.rounds(50), warm=3)
    checks = [check("features: largest difference", apart, 1e-5)]
    yield row("log-mel of a 5 s clip, transformers / kit", samples, goal=">= 5", checks=checks)


def expert_file(setting: Setting) -> Iterator[Row]:
    """The kit's float16 file against the authors' float32 .bin, of the same expert."""
    model = _with_expert(setting)
    authors, kit = _write_both(model, setting.empty("experts"))
    sizes = {"kit, float16": kit, "authors, float32": authors}
    heard, ids = models.features(1), models.decoder_inputs(["ca"])
    with torch.no_grad(), models.halving(model.routed_layers()):
        model(heard, ids)
    authors, kit = _write_both(model, setting.empty("experts"))  # with gates that open
    logits = []
    for path in (authors, kit):
        model.load_experts("ca", path)
        with torch.no_grad():
            logits.append(model(heard, ids).logits)
    checks = [
        check("logits: largest difference", largest_difference(*logits), 1e-2),
        check("demo transcripts: share that differs", _demo_differs(setting), 0.0),
    ]
    samples = {name: [path.stat().st_size / memory.MB] for name, path in sizes.items()}
    title = "expert file, kit's float16 / authors' float32"
    yield row(title, samples, goal="<= 0.51", unit="MB", checks=checks)


def load_time(setting: Setting) -> Iterator[Row]:
    """load_experts() of either file, with warm files, again and again."""
    model = _with_expert(setting)
    authors, kit = _write_both(model, setting.empty("experts"))
    loaded = []
    for path in (kit, authors):
        model.load_experts("ca", path)
        loaded.append(model.model.encoder.layers[0].clsr["ca"].fc1.weight.clone())
    checks = [check("weights: largest difference", largest_difference(*loaded), 1e-3)]
    sides = {
        "kit, float16": partial(model.load_experts, "ca", kit),
        "authors, float32": partial(model.load_experts, "ca", authors),
    }
    samples = interleaved(sides, setting.rounds(10))
    yield row("load time, kit's float16 / authors' float32", samples, checks=checks)
    del model, loaded, sides
    found, pair = memory.peaks(setting, "load"), [("kit", "authors")]
    title = "load_experts' memory"
    yield from memory.rows(found, title, pair, "of which the call", checks=checks)


def _with_expert(setting: Setting) -> Any:
    model = models.routed(setting.student_dimensions)
    models.add_expert(model, "ca")
    return model


def _write_both(model: Any, folder: Path) -> tuple[Path, Path]:
    return (
        model.save_experts("ca", folder, layout="authors"),
        model.save_experts("ca", folder, dtype=torch.float16),
    )


def _demo_differs(setting: Setting) -> float:
    """Share of the demo's Catalan test set that its expert writes otherwise in float16.

    The embedded file is float16 already: the digits that it lacks are drawn first.
    """
    model, processor = load_model("embedded/student")
    model.load_experts("ca", locate("embedded/experts"))
    torch.manual_seed(0)
    experts = [(n, p) for n, p in model.named_parameters() if ".clsr." in n]
    with torch.no_grad():
        for _, p in experts:
            p.mul_(1 + (torch.rand_like(p) - 0.5) * 2**-10)
    clips = load_corpus("folder/speech", "ca", "test", "embedded")
    clips = clips.head(4) if setting.small else clips
    texts = []
    for dtype in (torch.float32, torch.float16):
        with torch.no_grad():
            for _, p in experts:
                p.copy_(p.to(dtype))
        rows = transcribe(model, processor, clips, max_new_tokens=60, progress=False)
        texts.append([row["hypothesis"] for row in rows])
    return sum(a != b for a, b in zip(*texts, strict=True)) / len(clips)


def sides_of_memory(setting: Setting) -> dict[str, Any]:
    def ready(which: int) -> Callable[[], Callable[[], None]]:
        def build() -> Callable[[], None]:
            model = _with_expert(setting)
            path = _write_both(model, setting.empty("experts"))[which]
            model.remove_expert("ca")

            def load() -> None:
                model.load_experts("ca", path)

            return load

        return build

    return {"authors": ready(0), "kit": ready(1)}

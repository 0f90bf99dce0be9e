"""What a run costs, before it is started: hours and disk; and, by study.py, the whole study.

    python -m benchmarks.cost [--device t4 a100 h200] [--languages ca cs ...]
        [--seeds 3] [--price a100=1.2] [--utilisation h200=0.3]

Hours come from the best that is known of a device, and every estimate says which it was:

1. records of the same method and model that were made on it: seconds a clip;
2. records of another method on it, scaled by counted operations;
3. benchmarks/results.json, where `python -m benchmarks` ran on it: seconds of a training step;
4. counted operations over the vendor's peak, times a utilisation that is ASSUMED.

Where nothing was measured, decoding is bound by memory: each step reads the weights and each row's
keys and values, and none is faster than Python hands it out. No network, no GPU.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.cost.facts import (
    DEVICES,
    FLEURS_CLIPS,
    FLEURS_LABELLED,
    LABELLED,
    TEST_CLIPS,
    Device,
)
from benchmarks.cost.operations import (
    KNOWN,
    PROMPT,
    all_values,
    decoding_bytes,
    dimensions_of,
    distilled_share,
    hearing_operations,
    kind_of,
    rank_of,
    trained_values,
    training_operations,
)
from distilwhisper_lib import PACKAGE
from distilwhisper_lib.config.settings import TRAINED, Record, RunConfig, published_name
from distilwhisper_lib.data.corpora import open_corpus
from distilwhisper_lib.data.subsets import read_subset
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.checked import one_of
from distilwhisper_lib.losses.target_files import TOP_K
from distilwhisper_lib.results.places import find_records, kit_folder
from distilwhisper_lib.training.stages import stages

BENCHMARKS = PACKAGE.resolve().parent / "benchmarks" / "results.json"
# What decides the operations of a step beside the method, at the paper's values.
_PAPERS = {
    name: getattr(RunConfig, name)
    for name in ("expert", "expert_rank", "expert_warmup", "router_epochs", "distil_stage")
}
_SIDES = {"js": "cached js", "kl": "cached js"}  # of its training steps; others by their method

# Python's part of a decoding step, 12 ms and 0.6 ms a layer: measured with decoders of 12 and 32
# layers and a width of 64, of which next to nothing is arithmetic (19 and 31 ms, Sapphire Rapids).
HOST_SECONDS, HOST_SECONDS_A_LAYER = 0.012, 0.0006
LONGEST = 1.3  # a batch decodes until its longest text is done; ASSUMED
BANDWIDTH_UTILISATION = 0.6  # ASSUMED
# Reading a clip of 5 s: 1.9 ms for log-mel (benchmarks/results.json), as much again to decode it.
# Workers do it beside the training; without them, and in decoding, it comes on top.
READ_SECONDS = 0.004
HYPOTHESIS_BYTES = 2_500  # of a transcribed clip, gates and published copy included
RECORD_BYTES = 200_000


@dataclass(frozen=True)
class Estimate:
    """``hours`` is None where they follow from nothing; ``source`` says what they follow from."""

    hours: float | None
    disk_bytes: int  # what stays
    source: str
    checkpoint_bytes: int = 0  # what lies beside it while it trains


def estimate(config: RunConfig, device: str | Device) -> Estimate:
    """One run: training with its validations, and both test sets.

    ``device``: a name of facts.DEVICES. Stored teacher targets are not in it, because all runs on
    a training set share them: see estimate_targets(). Raises UserError for an unknown device.
    """
    parts = [training(config, device)] if config.method in TRAINED else []
    return _estimate([*parts, testing(config, device)], *_disk(config))


def estimate_targets(config: RunConfig, device: str | Device) -> Estimate:
    """The stored teacher targets that a distilled run reads; nothing where it has none."""
    if config.targets not in ("hidden", "top_k"):
        return Estimate(0.0, 0, "no stored teacher targets")
    return _estimate([building(config, device)], _target_bytes(config), 0)


def _estimate(parts: Sequence[Cost], disk: int, checkpoints: int) -> Estimate:
    cost = together(parts)
    hours = None if cost.seconds is None else cost.seconds / 3600
    return Estimate(hours, disk, cost.source, checkpoints)


# Time -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Seconds, None where they are not known, and what they follow from."""

    seconds: float | None
    source: str
    validated: bool = False  # the validations between epochs are in it

    def times(self, factor: int | None) -> Cost:
        """So many clips or epochs; None where nobody knows how many."""
        if factor is None:
            return Cost(None, "how many clips there are is not known here")
        return replace(self, seconds=None if self.seconds is None else self.seconds * factor)


def together(costs: Iterable[Cost]) -> Cost:
    """The sum, unknown where a part is, with every source once."""
    costs = list(costs)
    seconds = [cost.seconds for cost in costs]
    total = None if None in seconds else sum(seconds)
    sources = [part for cost in costs for part in cost.source.split("; ")]
    return Cost(total, "; ".join(dict.fromkeys(sources)))


def training(config: RunConfig, device: str | Device) -> Cost:
    """All epochs of a run, and the validation after each."""
    clips = clips_of(config)
    parts = stages(config, Path())
    validations = sum(part.epochs for part in parts)
    passes = clips["train"] and clips["train"] * validations
    if config.max_steps > 0:
        passes, validations = config.max_steps * config.batch_size * len(parts), len(parts)
    step = training_clip(config, device)
    if step.validated:
        return step.times(passes)
    heard = hearing_clip(config, device, LABELLED).times(clips["validation"])
    return together([step.times(passes), heard.times(validations)])


def testing(config: RunConfig, device: str | Device) -> Cost:
    """Both test sets transcribed."""
    clips = clips_of(config)
    labelled = [
        FLEURS_LABELLED if name.startswith("fleurs") else LABELLED
        for name in (config.in_domain, config.out_of_domain)
    ]
    return together(
        hearing_clip(config, device, long).times(clips[part])
        for part, long in zip(("in_domain", "out_of_domain"), labelled, strict=True)
    )


def building(config: RunConfig, device: str | Device) -> Cost:
    """The teacher over the training set, once."""
    device, clips = known_device(device), clips_of(config)["train"]
    built = [
        (targets["seconds"] / record["data"]["train"]["clips"], record)
        for record in _records(config, device)
        if (targets := _targets_in(record, config))  # whoever built them: a task of its own, mostly
    ]
    if built:
        return _recorded(built, "teacher targets").times(clips)
    teacher = dimensions_of(config.teacher)
    if teacher is None:
        return Cost(None, f"dimensions of {config.teacher} not known here")
    for row in _benchmark(device, "distillation"):
        if config.teacher in KNOWN and _width(row, "teacher_dims") == teacher.d_model:
            return Cost(row["medians"]["building"] / 1000, _raced(row)).times(clips)
    operations = hearing_operations(teacher, PROMPT + LABELLED)
    return _by_peak(config.precision, device, operations, config.workers).times(clips)


def training_clip(config: RunConfig, device: str | Device) -> Cost:
    """One clip of one epoch: forward, backward, and its share of the optimiser's step."""
    device = known_device(device)
    trained = [
        (r["training"]["seconds"] / (r["training"]["epochs"] * r["data"]["train"]["clips"]), r)
        for r in _records(config, device)
        if r["training"] and _name(r, "student") == published_name(config.student)
    ]
    if same := [(seconds, r) for seconds, r in trained if _trained_as(r, config) == config]:
        return replace(_recorded(same, config.method), validated=True)
    if dimensions_of(config.student) is None:
        return Cost(None, f"dimensions of {config.student} not known here")
    if trained:
        scaled = [(sec * _ratio(config, _trained_as(r, config)), r) for sec, r in trained]
        return replace(_recorded(scaled, "other methods, scaled by operations"), validated=True)
    raced = [row for row in _benchmark(device, "steps") if _is_of_student(row, config)]
    side = _SIDES.get(config.method, config.method)
    for row in raced:
        if side in row["medians"]:
            paper = replace(config, **_PAPERS)
            ratio = 1.0 if paper == config else _ratio(config, paper)
            return Cost(ratio * row["medians"][side] / 1000 / row["rows"], _raced(row))
    return _by_peak(config.precision, device, _operations(config), config.workers)


def hearing_clip(config: RunConfig, device: str | Device, labelled: int) -> Cost:
    """One clip transcribed greedily, in the batch that the configuration asks for."""
    device, name = known_device(device), config.student_or_teacher
    heard = [
        (e["seconds"] / e["clips"], record)
        for record in _records(config, device)
        if _name(record, "student") == published_name(name)
        for e in record["evaluations"]
        if e["seconds"] is not None
    ]
    same = [pair for pair in heard if pair[1]["config"]["method"] == config.method]
    if found := same or heard:
        return _recorded(found, config.method if same else "the same model")
    whisper = dimensions_of(name)
    if whisper is None:
        return Cost(None, f"dimensions of {name} not known here")
    for row in _benchmark(device, "generate"):
        student = KNOWN["openai/whisper-small"]
        if row["race"].endswith("batch 1") and _width(row, "dims") == student.d_model:
            one = row["medians"]["experts"] / 1000
            ratio = hearing_operations(whisper, PROMPT + labelled) / hearing_operations(
                student, PROMPT + row["tokens"]
            )
            return Cost(one * ratio, _raced(row))
    half = "bf16" if "bf16" in device.tflops else "fp16"
    encoder = _by_peak(half, device, hearing_operations(whisper, PROMPT), workers=0)
    if encoder.seconds is None:
        return encoder
    rows = config.eval_batch_size
    steps = min(LONGEST * labelled, config.max_new_tokens)
    read = decoding_bytes(whisper, rows) / (device.bandwidth * BANDWIDTH_UTILISATION)
    host = HOST_SECONDS + HOST_SECONDS_A_LAYER * whisper.decoder_layers
    bound = "memory" if read > host else "Python"
    return Cost(
        encoder.seconds + steps * max(read, host) / rows,
        f"{encoder.source}; decoding bound by {bound}, {1000 * max(read, host):.0f} ms a step of "
        f"{rows} rows",
    )


def _operations(config: RunConfig) -> int:
    operations = training_operations(config, dimensions_of(config.student), LABELLED)
    if config.targets == "online" and (teacher := dimensions_of(config.teacher)):
        heard = hearing_operations(teacher, PROMPT + LABELLED)
        operations += round(distilled_share(config) * heard)
    return operations


def _ratio(config: RunConfig, other: RunConfig) -> float:
    return _operations(config) / _operations(other)


def _trained_as(record: Record, config: RunConfig) -> RunConfig:
    """``config``, but what decides the operations of its steps as a record has it."""
    found = record["config"]
    settings = {name: found.get(name, _PAPERS[name]) for name in _PAPERS}
    return replace(config, method=found["method"], **settings)


def _by_peak(precision: str, device: Device, operations: int, workers: int) -> Cost:
    if not device.tflops:
        return Cost(None, f"nothing measured on {device.name}")
    if precision == "auto":
        precision = "bf16" if "bf16" in device.tflops else "fp16"
    if precision not in device.tflops:
        return Cost(None, f"{device.name} has no {precision}")
    peak, share = device.tflops[precision], device.utilisation
    seconds = operations / (peak * 1e12 * share) + (0 if workers else READ_SECONDS)
    return Cost(seconds, f"{share:.0%} of {device.name}'s {peak:g} TFLOPS ({precision}), ASSUMED")


def known_device(device: str | Device) -> Device:
    if isinstance(device, Device):
        return device
    return DEVICES[one_of("device", device, tuple(DEVICES))]


# What was measured --------------------------------------------------------------------------


def _records(config: RunConfig, device: Device | None = None) -> list[Record]:
    """The records of a device (None: of all) of one's own and the published runs of its kind."""
    own = config.results_dir
    paths = [p for folder in (own, kit_folder(own)) for p in (folder / "runs").glob("*.json")]
    stamp = tuple((p, p.stat().st_mtime_ns) for p in sorted(paths))
    found = _loaded(config.results_dir, stamp) if stamp else []
    return [r for r in found if device is None or device.is_that_of(r["provenance"]["hardware"])]


def _targets_in(record: Record, config: RunConfig) -> dict[str, Any]:
    """What a record says of stored targets of this run's kind and teacher, if anything."""
    found = (record["training"] or {}).get("teacher_targets") or {}
    alike = found.get("mode") == config.targets and "bytes" in found
    return found if alike and _name(record, "teacher") == published_name(config.teacher) else {}


@lru_cache(maxsize=4)
def _loaded(folder: Path, stamp: tuple) -> list[Record]:
    return find_records(folder, published=True).records


def _recorded(found: Sequence[tuple[float, Record]], what: str) -> Cost:
    hardware = found[0][1]["provenance"]["hardware"]
    on = hardware["cpu"] if hardware["device"] == "cpu" else hardware["device"]
    runs = len({record["run_id"] for _, record in found})
    told = f"records of {runs} run{'s' if runs > 1 else ''} on {on} ({what})"
    return Cost(statistics.fmean(seconds for seconds, _ in found), told)


def _name(record: Record, role: str) -> str | None:
    return (record["models"][role] or {}).get("name")


def _benchmark(device: Device, group: str) -> list[dict]:
    """Full-size rows of one group of races on a device; none outside a checkout."""
    rows = _raced_rows(BENCHMARKS)
    mine = [row for row in rows if row["group"] == group and row["size"] == "full"]
    return [row for row in mine if row["ratio"] is not None and device.is_that_of(row["machine"])]


@lru_cache(maxsize=4)
def _raced_rows(path: Path) -> list[dict]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []


def _is_of_student(row: dict, config: RunConfig) -> bool:
    return config.student in KNOWN and _width(row, "dims") == dimensions_of(config.student).d_model


def _width(row: dict, which: str) -> int:
    return row[which]["d_model"]


def _raced(row: dict) -> str:
    on = row["machine"]["cpu"] if row["device"] == "cpu" else row["machine"]["device"]
    return f"benchmarks/results.json on {on}, {row['threads']} thread"


# Clips and disk -----------------------------------------------------------------------------


def clips_of(config: RunConfig) -> dict[str, int | None]:
    """How many clips each part has, as far as that is known without a network."""
    asked = {
        "train": (config.in_domain, "train", config.train_size, config.train_subset),
        "validation": (
            config.in_domain, "validation", config.validation_size, config.validation_subset,
        ),
        "in_domain": (config.in_domain, "test", config.test_size, None),
        "out_of_domain": (config.out_of_domain, "test", config.test_size, None),
    }  # fmt: skip
    found: dict[str, int | None] = {}
    for part, (corpus, split, size, subset) in asked.items():
        if subset is not None:
            found[part] = len(read_subset(subset))
            continue
        there = _there(corpus, split, config.language, config.data_dir)
        known = [count for count in (size, there) if count is not None]
        found[part] = min(known, default=None)
    return found


@lru_cache(maxsize=256)
def _there(corpus: str, split: str, language: str, data_dir: str) -> int | None:
    """Clips of a split: of the big corpora as published, of a folder as it is now."""
    if corpus.startswith("common_voice"):
        return TEST_CLIPS.get(language) if split == "test" else None
    if corpus.startswith("fleurs"):
        return FLEURS_CLIPS
    try:
        return len(open_corpus(corpus, language, split, data_dir).table)
    except UserError:
        return None


def artifact_bytes(config: RunConfig) -> int:
    """What a trained run leaves to take along: expert file, adapter or model, float32."""
    student = dimensions_of(config.student)
    if student is None or config.method not in TRAINED:
        return 0
    trained = trained_values(kind_of(config), student, rank_of(config))
    return 4 * (all_values(student) if config.method == "full" else trained)


def _disk(config: RunConfig) -> tuple[int, int]:
    """Bytes that stay, and of checkpoints: the last and the best, weights and two moments each."""
    clips = clips_of(config)
    heard = sum(clips[part] or 0 for part in ("in_domain", "out_of_domain"))
    artifact = artifact_bytes(config)
    return artifact + heard * HYPOTHESIS_BYTES + RECORD_BYTES, 2 * 3 * artifact


def _target_bytes(config: RunConfig) -> int:
    teacher, clips = dimensions_of(config.teacher), clips_of(config)["train"] or 0
    for record in _records(config):
        if found := _targets_in(record, config):
            return round(found["bytes"] / record["data"]["train"]["clips"] * clips)
    if teacher is None:
        return 0
    if config.targets == "top_k":
        return clips * LABELLED * (TOP_K * 6 + 2)
    head = 2 * teacher.vocab_size * teacher.d_model
    return clips * LABELLED * teacher.d_model * 2 + head

"""One train() for every method: models, folders and what is left of a run; see trainer.py.

What differs between methods is which weights train and which loss parts are on; everything else
(data order, schedule, checkpoints, model selection by generated WER, resuming) is shared.
"""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig, TrainerState, WhisperProcessor, set_seed

from distilwhisper_lib import ranks
from distilwhisper_lib.config.settings import (
    PROGRESS,
    TRAINED,
    WITH_EXPERTS,
    RunConfig,
    locate,
    published_name,
)
from distilwhisper_lib.data.packing import arranged, described
from distilwhisper_lib.data.splits import RunData
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.run import Run, at_work, claim
from distilwhisper_lib.gates.recorder import PROMPT_TOKENS
from distilwhisper_lib.hardware import best_device, peak_memory, precision_here
from distilwhisper_lib.io.files import alone, flush_to_disk, write_atomic
from distilwhisper_lib.losses.targets import StoredTargets, stored_targets
from distilwhisper_lib.losses.teacher import (
    Teacher,
    TeacherSource,
    load_teacher,
    own_features,
)
from distilwhisper_lib.model.checkpoint import check_models, shorten_config, teacher_tokens
from distilwhisper_lib.model.hub import Source, loading
from distilwhisper_lib.model.loading import load_student, padding_all, prepare, read_trained
from distilwhisper_lib.model.tensors import checkpoint_hash, trained_tensors, weights_hash
from distilwhisper_lib.training.checkpoints import Clock, best_steps, last_checkpoint, lighten
from distilwhisper_lib.training.shares import micro_batches_each
from distilwhisper_lib.training.stages import FOLDER as EXPERTS
from distilwhisper_lib.training.stages import Stage, stages
from distilwhisper_lib.training.trainer import collator_of, make_trainer

SUMMARY = "training.json"
TARGETS = "targets.json"


def train(config: RunConfig, data: RunData) -> Run:
    """Train as the configuration says, or go on where an earlier call stopped.

    A finished run is read back from ``config.output_dir``. Methods that train nothing return the
    model as it was loaded. Of several processes (see ranks.py) all train and the first one writes;
    UserError when they cannot share a step equally, and before anything is written when the run's
    models cannot do what it asks.
    """
    check_models(config)
    with at_work(config, "training"):
        ranks.join()
        if config.method in TRAINED:
            micro_batches_each(config)
        return _train(config, data)


def _train(config: RunConfig, data: RunData) -> Run:
    set_seed(config.seed)  # before any weight is drawn
    base, processor = load_student(config)
    _check_decoding(config, base)
    sha256 = weights_hash(dict(base.named_parameters()))
    student = _about(config.student_or_teacher, base.source, sha256)
    models: dict[str, Any] = {"student": student, "teacher": None}
    if config.method not in TRAINED:
        claim(config, data)
        model = base.to(best_device()).eval()
        return Run(config.output_dir, config, model, processor, models, None)
    source = None
    if config.targets:
        source = find_teacher(config, processor)
        models["teacher"] = source.about
    clips = claim(config, data)
    finished, checkpoints = config.output_dir / SUMMARY, config.output_dir / "checkpoints"
    if ranks.told_by_first(finished.exists):
        if ranks.is_first():
            shutil.rmtree(checkpoints, ignore_errors=True)  # where a kill came in between
        summary = json.loads(finished.read_text())
        model = read_trained(base, config, config.output_dir, summary).to(best_device())
        return Run(config.output_dir, config, model, processor, models, summary)

    # The same weights, whether targets were built or not.
    with torch.random.fork_rng(devices=[]), ranks.first_before_others():
        teacher = source and teacher_of(config, data, processor, source, base.config)
    about = ranks.told_by_first(lambda: _targets_about(config, teacher, checkpoints / TARGETS))
    collator = collator_of(config, processor, base.config)
    rows = arranged(config, data.train, collator)
    if rows is not data.train:
        about |= {"packing": described(rows, collator)}
    model = prepare(base, config)
    if ranks.is_first():
        for stale in config.output_dir.glob("*.jsonl"):  # of other weights
            stale.unlink()
    basis = {part: clips[part] for part in ("train", "validation")} | {
        "models": models, "processes": min(ranks.count(), 2),  # any number above one trains alike
    }  # fmt: skip
    states, seconds = [], 0.0
    for stage in stages(config, checkpoints, basis):
        model, state, spent = _train_stage(stage, model, processor, teacher, data)
        states.append(state)
        seconds += spent
    if config.method in WITH_EXPERTS:
        model.freeze_all_but_expert(config.language)
    summary = _summary(states, model, config, seconds) | about
    ranks.wait()  # until all have read the best checkpoint
    if ranks.is_first():
        _save_trained(model, processor, config)
        write_atomic(finished, json.dumps(summary, indent=1))
        shutil.rmtree(checkpoints, ignore_errors=True)
        (config.output_dir / PROGRESS).unlink(missing_ok=True)
    return Run(config.output_dir, config, model.eval(), processor, models, summary)


def _train_stage(
    stage: Stage,
    model: nn.Module,
    processor: WhisperProcessor,
    teacher: Teacher | StoredTargets | None,
    data: RunData,
) -> tuple[nn.Module, TrainerState, float]:
    """Train a stage, or go on, or take what it left; the model with its best weights, what its
    trainer said, and the seconds that it took."""
    run, shared = stage.run, stage.folder.is_relative_to(EXPERTS)
    if run.method in WITH_EXPERTS:
        model.freeze_all_but_expert(run.language, stage.gates_alone)
    mine = shared and ranks.is_first()  # the first one holds it for all
    with alone(stage.folder, "training these experts") if mine else nullcontext():
        clock = Clock(stage.folder / "elapsed.json")
        trainer = make_trainer(model, processor, teacher, stage, data, clock)
        trainer.go_on(ranks.told_by_first(partial(last_checkpoint, stage.folder, run.averaged)))
        ranks.wait()
        if mine:
            lighten(stage.folder)
    # Without the autocast that the Trainer put around its forward, as it will be loaded again.
    model = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return model, trainer.state, clock.seconds()


def _check_decoding(config: RunConfig, model: nn.Module) -> None:
    room = model.config.max_target_positions - PROMPT_TOKENS
    if config.max_new_tokens > room:
        raise UserError(
            f"setting max_new_tokens={config.max_new_tokens} is out of range: the model has room "
            f"for {room} beside its prompt"
        )


# The teacher -------------------------------------------------------------------------------


def find_teacher(config: RunConfig, processor: WhisperProcessor) -> TeacherSource:
    """A run's teacher, for a student with such a processor: what is known of it without its
    weights; it is loaded only if it has to be."""
    load = partial(load_teacher, config, processor)
    source = Source(locate(config.teacher), {"revision": config.teacher_revision})
    with loading(config.teacher):
        fields = AutoConfig.from_pretrained(source.name, **source.options)
        its = WhisperProcessor.from_pretrained(source.name, **source.options)
    source = source.at_commit()
    sha256 = checkpoint_hash(source)
    sha256 = sha256 or weights_hash(dict(load().model.named_parameters()))
    return TeacherSource(
        _about(config.teacher, source, sha256),
        shorten_config(fields, config.window_seconds),
        load,
        teacher_tokens(its.tokenizer, processor.tokenizer),
        own_features(padding_all(its, config.window_seconds), processor),
    )


def teacher_of(
    config: RunConfig,
    data: RunData,
    processor: WhisperProcessor,
    source: TeacherSource,
    student: PretrainedConfig,
) -> Teacher | StoredTargets:
    """What a run learns from: stored targets, built if need be, or the teacher itself."""
    if config.targets == "online":
        return source.load()
    collator = collator_of(config, processor, student, source.extractor)
    data_hash = data.describe()["train"]["sha256"]
    rows = arranged(config, data.train, collator)
    return stored_targets(config, rows, data_hash, collator, source)


def build_targets(config: RunConfig, data: RunData) -> None:
    """Work out the teacher targets that a run will read; those that are there are checked."""
    check_models(config)
    base, processor = load_student(config)
    source = find_teacher(config, processor)
    teacher_of(config, data, processor, source, base.config)


def _targets_about(
    config: RunConfig, teacher: Teacher | StoredTargets | None, note: Path
) -> dict[str, Any]:
    """The record's "teacher_targets"; what a run found when it began stays, if it is resumed."""
    if teacher is None:
        return {}
    if not isinstance(teacher, StoredTargets):
        return {"teacher_targets": {"mode": config.targets}}
    if not note.exists():
        write_atomic(note, json.dumps(teacher.about))
    return {"teacher_targets": json.loads(note.read_text())}


# Models ------------------------------------------------------------------------------------


def _about(name: str, source: Source, sha256: str) -> dict[str, str]:
    """What a record tells of a model: of the hub's, also the commit that its revision stood for."""
    commit = source.commit
    return {"name": published_name(name), "sha256": sha256} | ({"commit": commit} if commit else {})


def _save_trained(model: Any, processor: WhisperProcessor, config: RunConfig) -> None:
    """The artifact a user takes along: an expert file, a LoRA adapter, or a whole model.

    A whole model comes with its processor, so that its folder can be the student or teacher of
    another run.
    """
    if config.method in WITH_EXPERTS:
        about = {"base": config.student, "revision": config.student_revision, "run": config.run_id}
        if config.window_seconds is not None:
            about["window_seconds"] = str(config.window_seconds)
        if config.window != "whole":
            about["window"] = config.window
        if config.timestamps:
            about["timestamps"] = str(config.timestamps)
        model.save_experts(config.language, config.output_dir, **about)
    else:
        folder = config.output_dir / ("adapter" if config.method == "lora" else "model")
        shutil.rmtree(folder, ignore_errors=True)  # half of it, left by a killed process
        model.save_pretrained(folder)
        if config.method == "full":
            processor.save_pretrained(folder)
        for path in folder.iterdir():
            flush_to_disk(path)


# The summary ---------------------------------------------------------------------------


def _summary(
    states: list[TrainerState], model: nn.Module, config: RunConfig, seconds: float
) -> dict[str, Any]:
    """What a run says of its training; the steps of a later stage are counted on."""
    history, steps, means = [], 0, {}
    for state in states:
        history += [e | {"step": steps + e["step"]} for e in state.log_history if "step" in e]
        best = best_steps(state.log_history)
        best_step = steps + (best[0] if best else state.global_step)
        for mean in (entry for entry in state.log_history if "mean_of" in entry):
            means = {"mean_of": [steps + step for step in mean["mean_of"]]} | _validated(mean, "")
        steps += state.global_step
    tensors = trained_tensors(model)
    return {
        "steps": steps,
        "epochs": round(sum(state.epoch or 0.0 for state in states), 4),
        "seconds": round(seconds, 1),
        "precision": precision_here(config.precision),
        "processes": ranks.count(),
        "threads": torch.get_num_threads(),  # of each process
        "trainable_parameters": sum(t.numel() for t in tensors.values()),
        "artifact_bytes": sum(t.numel() * t.element_size() for t in tensors.values()),
        "peak_memory_bytes": ranks.largest(peak_memory()),
        "best_step": best_step,
        "weights_sha256": weights_hash(tensors),
        "log": [_log_entry(e) for e in history if "loss" in e],
        "validation": [{"step": e["step"]} | _validated(e) for e in history if "eval_wer" in e],
    } | ({"mean": means} if means else {})


def _validated(entry: dict[str, float], prefix: str = "eval_") -> dict[str, float]:
    """Of a validation its rates and mean gates, hard ("gate_hard") and before that ("gate_soft"),
    see gate_statistics.mean_shares()."""
    named = {name.removeprefix(prefix): value for name, value in entry.items()}
    gates = {name: round(v, 6) for name, v in named.items() if name.startswith("gate_")}
    return {"wer": named["wer"], "cer": named["cer"]} | gates


def _log_entry(entry: dict[str, float]) -> dict[str, float]:
    return {k: round(v, 6) for k, v in entry.items() if k not in ("epoch", "step")} | {
        "step": entry["step"]
    }

"""One train() for every method: models, folders and what is left of a run; see trainer.py.

What differs between methods is which weights train and which loss parts are on; everything else
(data order, schedule, checkpoints, model selection by generated WER, resuming) is shared.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, PretrainedConfig, WhisperProcessor, set_seed

from . import ranks
from .callbacks import Clock
from .checkpoints import last_checkpoint
from .config import TRAINED, WITH_EXPERTS, RunConfig, locate, published_name
from .data import RunData
from .device import best_device, peak_memory, precision_here
from .errors import UserError
from .features import Collator
from .files import flush_to_disk, write_atomic
from .gates import PROMPT_TOKENS
from .hub import commit_of, loading
from .model import DistilWhisperForConditionalGeneration
from .presets import revision_of
from .run_folder import claim, in_run_folder
from .shares import micro_batches_each
from .targets import StoredTargets, stored_targets
from .teacher import Teacher, TeacherSource, check_pair
from .trainer import DistilTrainer, make_trainer
from .weights import checkpoint_hash, trained_tensors, weights_hash
from .window import shorten, shorten_config

SUMMARY = "training.json"
TARGETS = "targets.json"


@dataclass
class Trained:
    """A model that is ready to transcribe, and how it came to be.

    ``summary`` is the record's "training" (None without training); ``models`` names and hashes
    what it started from.
    """

    model: Any
    processor: WhisperProcessor
    summary: dict[str, Any] | None
    models: dict[str, Any]


@in_run_folder("training")
def train(config: RunConfig, data: RunData) -> Trained:
    """Train as the configuration says, or go on where an earlier call stopped.

    A finished run is read back from ``config.output_dir``. Methods that train nothing return the
    model as it was loaded. Of several processes (see ranks.py) all train and the first one writes;
    UserError when they cannot share a step equally.
    """
    ranks.join()
    if config.method in TRAINED:
        micro_batches_each(config)
    set_seed(config.seed)  # before any weight is drawn
    base, processor = load_student(config)
    _check_decoding(config, base)
    sha256 = weights_hash(dict(base.named_parameters()))
    student = _about(config.student_or_teacher, config.revision_of_model, sha256)
    models: dict[str, Any] = {"student": student, "teacher": None}
    if config.method not in TRAINED:
        claim(config, data)
        return Trained(base.to(best_device()).eval(), processor, None, models)
    source = None
    if config.targets:
        source = find_teacher(config)
        check_pair(source.config, base.config)
        models["teacher"] = source.about
    claim(config, data)
    finished, checkpoints = config.output_dir / SUMMARY, config.output_dir / "checkpoints"
    if ranks.told_by_first(finished.exists):
        if ranks.is_first():
            shutil.rmtree(checkpoints, ignore_errors=True)  # where a kill came in between
        summary = json.loads(finished.read_text())
        model = _load_trained(base, config, summary).to(best_device()).eval()
        return Trained(model, processor, summary, models)

    # The same weights, whether targets were built or not.
    with torch.random.fork_rng(devices=[]), ranks.first_before_others():
        teacher = source and teacher_of(config, data, processor, source, base.config)
    about = ranks.told_by_first(lambda: _targets_about(config, teacher, checkpoints / TARGETS))
    model = prepare(base, config)
    if ranks.is_first():
        for stale in config.output_dir.glob("*.jsonl"):  # of other weights
            stale.unlink()
    clock = Clock(checkpoints / "elapsed.json")
    trainer = make_trainer(model, processor, teacher, config, data, clock)
    trainer.go_on(ranks.told_by_first(lambda: last_checkpoint(checkpoints)))
    # Without the autocast that the Trainer put around its forward: as it will be loaded again.
    model = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    summary = _summary(trainer, config, clock.seconds()) | about
    ranks.wait()  # until all have read the best checkpoint
    if ranks.is_first():
        _save_trained(model, processor, config)
        write_atomic(finished, json.dumps(summary, indent=1))
        shutil.rmtree(checkpoints, ignore_errors=True)
    return Trained(model.eval(), processor, summary, models)


def _check_decoding(config: RunConfig, model: nn.Module) -> None:
    room = model.config.max_target_positions - PROMPT_TOKENS
    if config.max_new_tokens > room:
        raise UserError(
            f"setting max_new_tokens={config.max_new_tokens} is out of range: the model has room "
            f"for {room} beside its prompt"
        )


# The teacher -------------------------------------------------------------------------------


def find_teacher(config: RunConfig) -> TeacherSource:
    """A run's teacher: its name, configuration and hash; it is loaded only if it has to be."""

    def load() -> Teacher:
        return Teacher(load_teacher(config))

    place = locate(config.teacher)
    sha256 = checkpoint_hash(place, config.teacher_revision)
    sha256 = sha256 or weights_hash(dict(load().model.named_parameters()))
    about = _about(config.teacher, config.teacher_revision, sha256)
    fields = AutoConfig.from_pretrained(place, revision=config.teacher_revision)
    return TeacherSource(about, shorten_config(fields, config.window_seconds), load)


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
    collator = Collator(processor, config.conventions, student.max_target_positions)
    data_hash = data.describe()["train"]["sha256"]
    return stored_targets(config, data.train, data_hash, collator, source)


def build_targets(config: RunConfig, data: RunData) -> None:
    """Work out the teacher targets that a run will read; those that are there are checked."""
    base, processor = load_student(config)
    source = find_teacher(config)
    check_pair(source.config, base.config)
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


def load_model(
    name: str, revision: str | None = None, window_seconds: int | None = None, **settings: Any
) -> tuple[DistilWhisperForConditionalGeneration, WhisperProcessor]:
    """A Whisper in float32 with its processor, from a hub name, a folder or "embedded/...".

    ``revision``: by default the commit at which presets.py takes the model, else its main branch.
    ``window_seconds``: see window.py. Other settings go to the model's configuration.
    """
    source, revision = locate(name), revision or revision_of(name)
    model = DistilWhisperForConditionalGeneration.from_pretrained(
        source, revision=revision, dtype=torch.float32, attn_implementation="sdpa", **settings
    )
    with loading(name):
        processor = WhisperProcessor.from_pretrained(source, revision=revision)
    shorten(model, processor, window_seconds)
    return model, processor


def load_student(
    config: RunConfig,
) -> tuple[DistilWhisperForConditionalGeneration, WhisperProcessor]:
    """The model that a run starts from, with its processor."""
    return load_model(config.student_or_teacher, config.revision_of_model, **model_settings(config))


def load_teacher(config: RunConfig) -> DistilWhisperForConditionalGeneration:
    """The model that a run learns from."""
    return load_model(config.teacher, config.teacher_revision, config.window_seconds)[0]


def model_settings(config: RunConfig) -> dict[str, Any]:
    """What of a run's configuration load_model() must know."""
    names = ("window_seconds", "gate_dim", "gate_dropout", "expert_dropout", "skip")
    return {name: getattr(config, name) for name in names}


def prepare(model: DistilWhisperForConditionalGeneration, config: RunConfig) -> nn.Module:
    """Give a loaded model what the method trains, and freeze the rest.

    full: every weight of Whisper but its fixed sinusoids. lora: low-rank updates of fc1 and fc2.
    clsr, kl, js: one language's experts and gates.
    """
    if config.method == "full":
        # Frozen by Whisper's constructor, but transformers' from_pretrained forgets that.
        model.model.encoder.embed_positions.requires_grad_(False)
        return model
    if config.method == "lora":
        lora = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=["fc1", "fc2"],
            bias="none",
            task_type=None,  # Whisper takes features, not input_ids, which peft's seq2seq type adds
        )
        return get_peft_model(model, lora)
    model.add_expert(config.language)
    model.freeze_all_but_expert(config.language)
    return model


def _about(name: str, revision: str, sha256: str) -> dict[str, str]:
    """What a record tells of a model: of the hub's, also the commit that its revision stood for."""
    commit = commit_of(locate(name), revision)
    return {"name": published_name(name), "sha256": sha256} | ({"commit": commit} if commit else {})


def _save_trained(model: Any, processor: WhisperProcessor, config: RunConfig) -> None:
    """The artifact a user takes along: an expert file, a LoRA adapter, or a whole model.

    A whole model comes with its processor, so that its folder can be the student or teacher of
    another run.
    """
    if config.method in WITH_EXPERTS:
        about = {"base": config.student, "revision": config.student_revision, "run": config.run_id}
        model.save_experts(config.language, config.output_dir, **about)
    else:
        folder = config.output_dir / ("adapter" if config.method == "lora" else "model")
        shutil.rmtree(folder, ignore_errors=True)  # half of it, left by a killed process
        model.save_pretrained(folder)
        if config.method == "full":
            processor.save_pretrained(folder)
        for path in folder.iterdir():
            flush_to_disk(path)


def _load_trained(
    base: DistilWhisperForConditionalGeneration, config: RunConfig, summary: dict[str, Any]
) -> Any:
    model = read_trained(base, config, config.output_dir)
    if weights_hash(trained_tensors(model)) != summary["weights_sha256"]:
        raise UserError(
            f"the weights in {config.output_dir} are not those that its {SUMMARY} tells of: "
            "remove that folder, or use --force, to train again"
        )
    return model


def read_trained(
    base: DistilWhisperForConditionalGeneration, config: RunConfig, folder: Path
) -> Any:
    """What a run left in its folder, on the model it started from; trainable, as it was hashed."""
    if config.method in WITH_EXPERTS:
        base.load_experts(config.language, folder)
        base.freeze_all_but_expert(config.language)
        return base
    if config.method == "lora":
        return PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)
    whole = DistilWhisperForConditionalGeneration.from_pretrained(
        folder / "model", dtype=torch.float32, attn_implementation="sdpa"
    )
    return prepare(whole, config)


# The summary ---------------------------------------------------------------------------


def _summary(trainer: DistilTrainer, config: RunConfig, seconds: float) -> dict[str, Any]:
    history = trainer.state.log_history
    tensors = trained_tensors(trainer.model)
    best = trainer.state.best_model_checkpoint
    return {
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0.0, 4),
        "seconds": round(seconds, 1),
        "precision": precision_here(config),
        "processes": ranks.count(),
        "threads": torch.get_num_threads(),  # of each process
        "trainable_parameters": sum(t.numel() for t in tensors.values()),
        "artifact_bytes": sum(t.numel() * t.element_size() for t in tensors.values()),
        "peak_memory_bytes": ranks.largest(peak_memory()),
        "best_step": int(best.rsplit("-", 1)[1]) if best else trainer.state.global_step,
        "weights_sha256": weights_hash(tensors),
        "log": [_log_entry(e) for e in history if "loss" in e],
        "validation": [
            {"step": e["step"], "wer": e["eval_wer"], "cer": e["eval_cer"]} | _gates_of(e)
            for e in history
            if "eval_wer" in e
        ],
    }


def _gates_of(entry: dict[str, float]) -> dict[str, float]:
    """Of a validation: mean gates, hard ("gate_hard") and before that ("gate_soft"), see
    gate_statistics.mean_shares()."""
    named = {name.removeprefix("eval_"): value for name, value in entry.items()}
    return {name: round(v, 6) for name, v in named.items() if name.startswith("gate_")}


def _log_entry(entry: dict[str, float]) -> dict[str, float]:
    return {k: round(v, 6) for k, v in entry.items() if k not in ("epoch", "step")} | {
        "step": entry["step"]
    }

"""One train() for every method, on transformers' Seq2SeqTrainer.

What differs between methods is which weights train and which loss parts are on; everything else
(data order, schedule, checkpoints, model selection by generated WER, resuming) is shared.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    WhisperProcessor,
    set_seed,
)

from .config import DISTILLED, TRAINED, WITH_EXPERTS, RunConfig, locate
from .data import RunData
from .device import best_device, peak_memory, precision_here
from .errors import UserError
from .evaluation import transcribe
from .features import Collator, SpeechDataset
from .files import write_atomic
from .gates import PROMPT_TOKENS
from .losses import LossParts
from .model import DistilWhisperForConditionalGeneration
from .objective import counted, gate_means, gate_noise, loss_parts
from .scoring import score
from .teacher import Teacher

WEIGHTS = "trained.safetensors"
SUMMARY = "training.json"
DATA = "data.json"
ELAPSED = "elapsed.json"


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


def train(config: RunConfig, data: RunData) -> Trained:
    """Train as the configuration says, or go on where an earlier call stopped.

    A finished run is read back from ``config.output_dir``. Methods that train nothing return the
    model as it was loaded.
    """
    set_seed(config.seed)  # before any weight is drawn
    base, processor = load_model(
        config.student_or_teacher, config.revision_of_model, **expert_settings(config)
    )
    _check_decoding(config, base)
    models: dict[str, Any] = {"student": _about(config.student_or_teacher, base), "teacher": None}
    if config.method not in TRAINED:
        _claim_folder(config, data)
        return Trained(base.to(best_device()).eval(), processor, None, models)
    teacher = None
    if config.method in DISTILLED:
        teacher = Teacher(load_model(config.teacher, config.teacher_revision)[0])
        teacher.check_student(base)
        models["teacher"] = _about(config.teacher, teacher.model)
    _claim_folder(config, data)
    finished = config.output_dir / SUMMARY
    if finished.exists():
        model = _load_trained(base, config).to(best_device()).eval()
        return Trained(model, processor, json.loads(finished.read_text()), models)

    model = prepare(base, config)
    for stale in config.output_dir.glob("*.jsonl"):  # of other weights
        stale.unlink()
    checkpoints = config.output_dir / "checkpoints"
    clock = _Clock(checkpoints / ELAPSED)
    trainer = _trainer(model, processor, teacher, config, data, clock)
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    # Without the autocast that the Trainer put around its forward: as it will be loaded again.
    model = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    _save_trained(model, config)
    summary = _summary(trainer, config, clock.seconds())
    write_atomic(finished, json.dumps(summary, indent=1))
    shutil.rmtree(checkpoints, ignore_errors=True)
    return Trained(model.eval(), processor, summary, models)


def _claim_folder(config: RunConfig, data: RunData) -> None:
    """Raise UserError when the run's folder holds work on other recordings or transcripts."""
    digests = {part: about["sha256"] for part, about in data.describe().items()}
    note = config.output_dir / DATA
    if note.exists() and json.loads(note.read_text()) != digests:
        raise UserError(
            f"the data of run {config.run_id} has changed since the run began: remove "
            f"{config.output_dir}, or use --force, to run it again"
        )
    write_atomic(note, json.dumps(digests, indent=1))


def _check_decoding(config: RunConfig, model: nn.Module) -> None:
    room = model.config.max_target_positions - PROMPT_TOKENS
    if config.max_new_tokens > room:
        raise UserError(
            f"setting max_new_tokens={config.max_new_tokens} is out of range: the model has room "
            f"for {room} beside its prompt"
        )


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is whole: the Trainer writes its state file last."""
    found = {}
    for state in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            found[json.loads(state.read_text())["global_step"]] = str(state.parent)
        except (ValueError, KeyError):
            continue  # cut off while it was written
    return found[max(found)] if found else None


# Models ------------------------------------------------------------------------------------


def load_model(
    name: str, revision: str = "main", **settings: Any
) -> tuple[DistilWhisperForConditionalGeneration, WhisperProcessor]:
    """A Whisper in float32 with its processor, from a hub name, a folder or "embedded/..."."""
    source = locate(name)
    model = DistilWhisperForConditionalGeneration.from_pretrained(
        source, revision=revision, dtype=torch.float32, attn_implementation="sdpa", **settings
    )
    return model, WhisperProcessor.from_pretrained(source, revision=revision)


def expert_settings(config: RunConfig) -> dict[str, Any]:
    """What of a run's configuration the model's own configuration must know."""
    names = ("gate_dim", "gate_dropout", "expert_dropout", "skip")
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


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What trains, by name: all that a checkpoint needs beside the base model."""
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def weights_hash(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _about(name: str, model: nn.Module) -> dict[str, str]:
    name = Path(name).name if Path(name).is_absolute() else name  # no host path in a record
    return {"name": name, "sha256": weights_hash(dict(model.named_parameters()))}


def _save_trained(model: Any, config: RunConfig) -> None:
    """The artifact a user takes along: an expert file, a LoRA adapter, or a whole model."""
    if config.method in WITH_EXPERTS:
        about = {"base": config.student, "revision": config.student_revision, "run": config.run_id}
        model.save_experts(config.language, config.output_dir, **about)
    else:
        model.save_pretrained(_artifact_folder(config))


def _load_trained(base: DistilWhisperForConditionalGeneration, config: RunConfig) -> Any:
    if config.method in WITH_EXPERTS:
        base.load_experts(config.language, config.output_dir)
        base.freeze_all_but_expert(config.language)
        return base
    if config.method == "lora":
        return PeftModel.from_pretrained(base, _artifact_folder(config))
    return DistilWhisperForConditionalGeneration.from_pretrained(
        _artifact_folder(config), dtype=torch.float32, attn_implementation="sdpa"
    )


def _artifact_folder(config: RunConfig) -> Path:
    return config.output_dir / ("adapter" if config.method == "lora" else "model")


# The trainer -------------------------------------------------------------------------------


class DistilTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer with this paper's losses, and validation by the kit's own transcribe().

    Checkpoints hold only what trains. The Trainer's own generation loop is not used: it repeats
    clips under several processes, and would be a second way to compute a WER.
    """

    def __init__(
        self,
        *args: Any,
        run: RunConfig,
        data: RunData,
        processor: WhisperProcessor,
        teacher: Teacher | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.run, self.data, self.processor, self.teacher = run, data, processor, teacher
        if teacher is not None:
            teacher.model.to(self.args.device)
        self._parts: dict[str, list[Tensor]] = defaultdict(list)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        out = model(
            input_features=inputs["input_features"],
            decoder_input_ids=inputs["decoder_input_ids"],
            language_ids=inputs["language_ids"],
            gate_noise=gate_noise(self.run, self.state.global_step / max(self.state.max_steps, 1)),
            output_gates=True,
            use_cache=False,
        )
        parts = self._loss_parts(out, inputs)
        if model.training:
            for name, value in zip(LossParts._fields, parts, strict=True):
                if name != "total":  # the Trainer logs it as "loss"
                    self._parts[f"loss_{name}"].append(value.detach())
        return (parts.total, out) if return_outputs else parts.total

    def _loss_parts(self, out: Any, inputs: dict[str, Tensor]) -> LossParts:
        run, labels = self.run, inputs["labels"]
        if run.method not in WITH_EXPERTS:
            return loss_parts(run, out.logits, labels)
        length = out.gates.encoder[0].values.shape[1]
        masks = counted(run, length, inputs, self.processor.tokenizer.eos_token_id)
        means = gate_means(out.gates, masks)
        if self.model.training:
            for name, mean in means._asdict().items():
                self._parts[name].append(mean.detach())
        target = None
        if self.teacher is not None:
            target = self.teacher.logits(inputs["input_features"], inputs["decoder_input_ids"])
        return loss_parts(run, out.logits, labels, means.gate_mean, target)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Generated WER and CER on the validation set: what model selection looks at."""
        rows = transcribe(
            self.model,
            self.processor,
            self.data.validation,
            max_new_tokens=self.run.max_new_tokens,
            batch_size=self.run.eval_batch_size,
            progress=False,
        )
        scores = score(rows, self.run.language)[self.run.selection_normalizer]
        metrics = {f"{metric_key_prefix}_{m}": scores[m][m] for m in ("wer", "cer")}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss parts' means since the last log."""
        if "loss" in logs:
            logs |= {name: torch.stack(v).mean().item() for name, v in self._parts.items()}
            self._parts.clear()
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained_tensors(self.model), folder / WEIGHTS)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        tensors = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        (model or self.model).load_state_dict(tensors, strict=False)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)


class _Clock(TrainerCallback):
    """Training time over interruptions: noted with each checkpoint, gone on with after it."""

    def __init__(self, note: Path) -> None:
        self.note, self.earlier, self.begin = note, 0.0, time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step and self.note.exists():  # resumed
            self.earlier = json.loads(self.note.read_text())

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        write_atomic(self.note, json.dumps(round(self.seconds(), 1)))

    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.begin


class _LogAtEpochEnd(TrainerCallback):
    """Closes a log window where a checkpoint is written, so that a resumed run logs the same."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_log = True
        return control


def _trainer(
    model: nn.Module,
    processor: WhisperProcessor,
    teacher: Teacher | None,
    config: RunConfig,
    data: RunData,
    clock: TrainerCallback,
) -> DistilTrainer:
    limit = model.config.max_target_positions
    trainer = DistilTrainer(
        model=model,
        args=training_arguments(config, len(data.train)),
        train_dataset=SpeechDataset(data.train),
        eval_dataset=SpeechDataset(data.validation),
        data_collator=Collator(processor, config.conventions, limit),
        callbacks=[_LogAtEpochEnd(), clock],
        run=config,
        data=data,
        processor=processor,
        teacher=teacher,
    )
    return trainer


def training_arguments(config: RunConfig, clips: int) -> Seq2SeqTrainingArguments:
    """A run's configuration in the Trainer's words."""
    micro = min(config.micro_batch, config.batch_size)
    steps_per_epoch = math.ceil(clips / config.batch_size)
    total = config.max_steps if config.max_steps > 0 else steps_per_epoch * config.epochs
    precision = precision_here(config)
    return Seq2SeqTrainingArguments(
        output_dir=str(config.output_dir / "checkpoints"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // micro,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(config.warmup_fraction * total),
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip_norm,
        logging_steps=max(1, steps_per_epoch // 5),
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,  # beside the best one
        load_best_model_at_end=True,
        metric_for_best_model="wer",
        greater_is_better=False,
        seed=config.seed,
        data_seed=config.seed,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=best_device() == "cpu",  # without it, bf16 asks for a GPU
        gradient_checkpointing=config.activation_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        disable_tqdm=False,
        report_to="none",
    )


def _summary(trainer: DistilTrainer, config: RunConfig, seconds: float) -> dict[str, Any]:
    history = trainer.state.log_history
    tensors = trained_tensors(trainer.model)
    best = trainer.state.best_model_checkpoint
    return {
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0.0, 4),
        "seconds": round(seconds, 1),
        "precision": precision_here(config),
        "threads": torch.get_num_threads(),
        "trainable_parameters": sum(t.numel() for t in tensors.values()),
        "artifact_bytes": sum(t.numel() * t.element_size() for t in tensors.values()),
        "peak_memory_bytes": peak_memory(),
        "best_step": int(best.rsplit("-", 1)[1]) if best else trainer.state.global_step,
        "weights_sha256": weights_hash(tensors),
        "log": [_log_entry(e) for e in history if "loss" in e],
        "validation": [
            {"step": e["step"], "wer": e["eval_wer"], "cer": e["eval_cer"]}
            for e in history
            if "eval_wer" in e
        ],
    }


def _log_entry(entry: dict[str, float]) -> dict[str, float]:
    return {k: round(v, 6) for k, v in entry.items() if k not in ("epoch", "step")} | {
        "step": entry["step"]
    }

"""The training loop: transformers' Seq2SeqTrainer with this paper's losses."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    WhisperProcessor,
)

from .config import WITH_EXPERTS, RunConfig
from .data import RunData
from .device import best_device, precision_here
from .evaluation import transcribe
from .features import Collator, SpeechDataset, shared_with_workers
from .files import write_atomic
from .gate_statistics import mean_shares
from .loss_block import States, TopK
from .losses import LossParts
from .objective import counted, gate_means, gate_noise, loss_parts
from .scoring import score
from .targets import StoredTargets, StoredTeacher
from .teacher import Teacher
from .weights import trained_tensors

WEIGHTS = "trained.safetensors"
ELAPSED = "elapsed.json"


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
        teacher: Teacher | StoredTeacher | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.run, self.data, self.processor = run, data, processor
        self.teacher = teacher and teacher.to(self.args.device)
        self._parts: dict[str, list[Tensor]] = defaultdict(list)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        with self.accelerator.autocast():
            # Before the student, whose SpecAugment masks features in place.
            target = self.teacher and self.teacher.targets(inputs)
        noise = gate_noise(self.run, self.state.global_step / max(self.state.max_steps, 1))
        out = model(
            input_features=inputs["input_features"],
            decoder_input_ids=inputs["decoder_input_ids"],
            language_ids=inputs["language_ids"],
            gate_noise=noise,
            output_gates=True,
            use_cache=False,
            with_logits=False,
        )
        parts = self._loss_parts(out, inputs, target)
        if model.training and self.run.method in WITH_EXPERTS:
            self._parts["gate_noise"].append(torch.tensor(noise))
        if model.training:
            for name, value in zip(LossParts._fields, parts, strict=True):
                if name != "total":  # the Trainer logs it as "loss"
                    self._parts[f"loss_{name}"].append(value.detach())
        return (parts.total, out) if return_outputs else parts.total

    def _loss_parts(
        self, out: Any, inputs: dict[str, Tensor], target: States | TopK | None
    ) -> LossParts:
        run, mean = self.run, None
        if run.method in WITH_EXPERTS:
            length = out.gates.encoder[0].values.shape[1]
            masks = counted(run, length, inputs, self.processor.tokenizer.eos_token_id)
            means = gate_means(out.gates, masks)
            mean = means.gate_mean
            if self.model.training:
                for name, value in means._asdict().items():
                    self._parts[name].append(value.detach())
        student = States(out.last_hidden_state, self.model.get_output_embeddings().weight)
        with self.accelerator.autocast():
            return loss_parts(run, student, inputs["labels"], mean, target)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with shared_with_workers(self.run.workers):
            return super().train(*args, **kwargs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Generated WER and CER on the validation set: what model selection looks at.

        Of gates, also the share of hard decisions: the training log's soft mean sits near the
        budget whatever they are.
        """
        rows = transcribe(
            self.model,
            self.processor,
            self.data.validation,
            max_new_tokens=self.run.max_new_tokens,
            batch_size=self.run.eval_batch_size,
            precision=self.run.eval_precision,
            progress=False,
        )
        scores = score(rows, self.run.language)[self.run.selection_normalizer]
        found = {metric: scores[metric][metric] for metric in ("wer", "cer")}
        if self.run.method in WITH_EXPERTS:
            found |= mean_shares(rows)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
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


class Clock(TrainerCallback):
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


def make_trainer(
    model: nn.Module,
    processor: WhisperProcessor,
    teacher: Teacher | StoredTargets | None,
    config: RunConfig,
    data: RunData,
    clock: Clock,
) -> DistilTrainer:
    """A trainer over a run's data; a stored teacher's targets come with the rows."""
    read = None
    if isinstance(teacher, StoredTargets):
        read, teacher = teacher.read, teacher.teacher()
    return DistilTrainer(
        model=model,
        args=training_arguments(config, len(data.train)),
        train_dataset=SpeechDataset(data.train, read),
        eval_dataset=SpeechDataset(data.validation),
        data_collator=Collator(processor, config.conventions, model.config.max_target_positions),
        callbacks=[_LogAtEpochEnd(), clock],
        run=config,
        data=data,
        processor=processor,
        teacher=teacher,
    )


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

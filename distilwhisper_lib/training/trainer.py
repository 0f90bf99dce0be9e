"""The training loop: transformers' Seq2SeqTrainer with this paper's losses.

By one process or several: see shares.py.
"""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from transformers import (
    PretrainedConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerState,
    WhisperFeatureExtractor,
    WhisperProcessor,
    set_seed,
)

from distilwhisper_lib import ranks
from distilwhisper_lib.config.settings import PROGRESS, WITH_EXPERTS, RunConfig
from distilwhisper_lib.data.packing import arranged
from distilwhisper_lib.data.splits import RunData
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.decoding import transcribe
from distilwhisper_lib.evaluation.run import check_claim
from distilwhisper_lib.gates.statistics import mean_shares
from distilwhisper_lib.hardware import best_device, precision_here
from distilwhisper_lib.io.files import told
from distilwhisper_lib.losses.chunked import States, TopK
from distilwhisper_lib.losses.divergences import LossParts
from distilwhisper_lib.losses.objective import (
    budgeted,
    counted,
    gate_means,
    gate_noise,
    loss_parts,
)
from distilwhisper_lib.losses.targets import StoredTargets, StoredTeacher
from distilwhisper_lib.losses.teacher import Teacher
from distilwhisper_lib.model.tensors import trained_tensors, unpickling
from distilwhisper_lib.scoring.rates import score
from distilwhisper_lib.speech.features import (
    Collator,
    SpeechDataset,
    fits_window,
    shared_with_workers,
)
from distilwhisper_lib.training.checkpoints import (
    MEND,
    STATE,
    WEIGHTS,
    Clock,
    LogAtEpochEnd,
    LossWatch,
    Patience,
    TimeLeft,
    best_steps,
    checkpoint_path,
    keep_only,
    kept,
    seal,
    waited_enough,
)
from distilwhisper_lib.training.shares import MicroBatches, Share, micro_batches_each, seed_of
from distilwhisper_lib.training.stages import Stage


class DistilTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer with this paper's losses, and validation by the kit's own transcribe().

    Checkpoints hold only what trains. The Trainer's own generation loop is not used: it repeats
    clips under several processes, and would be a second way to compute a WER.

    Random numbers: one process draws all from one stream. Of several, each starts every micro-batch
    from a seed of its own (the run's, the step, its place in the step), so that no two share their
    dropout, and any number of them above one trains the same.
    """

    def __init__(
        self,
        *args: Any,
        stage: Stage,
        data: RunData,
        processor: WhisperProcessor,
        teacher: Teacher | StoredTeacher | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.run, self.stage, self.data, self.processor = stage.run, stage, data, processor
        self.teacher = teacher and teacher.to(self.args.device)
        self._parts: dict[str, list[Tensor]] = defaultdict(list)
        self._share = Share(
            clips=len(self.train_dataset),
            size=self.args.per_device_train_batch_size,
            each=self.args.gradient_accumulation_steps,
            processes=self.args.world_size,
        )
        fits = fits_window(processor.feature_extractor)
        self._seconds = self.train_dataset.columns["seconds"] if fits else None
        self._watch = LossWatch(Path(self.args.output_dir))
        self.add_callback(self._watch)

    def go_on(self, checkpoint: str | None) -> None:
        """Train, from a checkpoint if there is one.

        From the last one nothing is left to do, which the Trainer does not see where training
        ends within an epoch, and where patience has ended: it would go too far.
        """
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(checkpoint) / STATE))
            enough = waited_enough(state.log_history, self.run.patience)
            if enough or state.global_step >= state.max_steps:
                self.state = state
                self._load_best_model()
                return
        self.train(resume_from_checkpoint=checkpoint)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._watch.saw(loss, inputs["ids"])
        return loss

    def get_train_dataloader(self) -> DataLoader:
        batches = MicroBatches(
            RandomSampler(self.train_dataset),  # accelerate makes its order the data seed's
            self._share.size,
            self._share.processes,
            self._seconds,
        )
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """A step's micro-batches for this process, each with its place among all of the step's."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        for i, batch in enumerate(batches):
            batch["place"] = i * self._share.processes + self.args.process_index
        return batches, items

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        step, place = self.state.global_step, inputs.pop("place")
        weight = self._share.weight(step, place, self.current_gradient_accumulation_steps)
        if self._share.processes > 1:
            set_seed(seed_of(self.run.seed, step, place))
        with self.accelerator.autocast():
            # Before the student, whose SpecAugment masks features in place.
            target = self.teacher and self.teacher.targets(inputs)
        progress = self.state.global_step / max(self.state.max_steps, 1)
        noise, (mode, hard) = gate_noise(self.run, progress), self.stage.gates(progress)
        out = model(
            input_features=inputs["input_features"],
            decoder_input_ids=inputs["decoder_input_ids"],
            language_ids=inputs["language_ids"],
            gate_mode=mode,
            gate_noise=noise,
            straight_through=hard,
            output_gates=True,
            use_cache=False,
            with_logits=False,
        )
        parts, said = self._loss_parts(out, inputs, target, trains_gates=mode != "open")
        if self.run.method in WITH_EXPERTS:
            said["gate_noise"] = torch.tensor(noise)
        for name, value in parts._asdict().items():
            if name != "total":  # the Trainer logs it as "loss"
                said[f"loss_{name}"] = value
        for name, value in said.items():
            self._parts[name] += [value.detach()] if weight else []
        loss = parts.total * weight
        return (loss, out) if return_outputs else loss

    def _loss_parts(
        self, out: Any, inputs: dict[str, Tensor], target: States | TopK | None, trains_gates: bool
    ) -> tuple[LossParts, dict[str, Tensor]]:
        """The loss, and the gates' means by their names in the training log."""
        run, means, said = self.run, None, {}
        if run.method in WITH_EXPERTS:
            length = out.gates.encoder[0].values.shape[1]
            masks = counted(run, length, inputs, self.processor.tokenizer.eos_token_id)
            whole = gate_means(out.gates, masks)
            said = whole._asdict()
            means = budgeted(run, out.gates, masks, whole) if trains_gates else None
        student = States(out.last_hidden_state, self.model.get_output_embeddings().weight)
        with self.accelerator.autocast():
            return loss_parts(run, student, inputs["labels"], means, target), said

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The Trainer's, the gates at a rate of their own where they have one."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.run.method in WITH_EXPERTS and self.run.gate_rate != 1:
            gates = {id(p) for n, p in self.model.named_parameters() if ".gate." in n}
            for group in list(optimizer.param_groups):
                apart = [p for p in group["params"] if id(p) in gates]
                group["params"] = [p for p in group["params"] if id(p) not in gates]
                if apart:
                    rate = group["lr"] * self.run.gate_rate
                    optimizer.add_param_group(group | {"params": apart, "lr": rate})
            optimizer.param_groups = [g for g in optimizer.param_groups if g["params"]]
        return optimizer

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with shared_with_workers(self.run.workers):
            return super().train(*args, **kwargs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Generated WER and CER on the validation set: what model selection looks at.

        Of gates, also the share of hard decisions: the training log's soft mean sits near the
        budget whatever they are. The first process decodes, each clip once, and tells the others.
        """
        found = ranks.told_by_first(self._validate)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _validate(self) -> dict[str, float]:
        rows = transcribe(
            self.model,
            self.processor,
            self.data.validation,
            max_new_tokens=self.run.max_new_tokens,
            batch_size=self.run.eval_batch_size,
            precision=self.run.eval_precision,
            gate_mode=self.stage.heard,
            progress=False,
        )
        scores = score(rows, self.run.language)[self.run.selection_normalizer]
        found = {metric: scores[metric][metric] for metric in ("wer", "cer")}
        if self.run.method in WITH_EXPERTS:
            found |= mean_shares(rows)
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss parts' means since the last log, over the micro-batches of all processes."""
        if "loss" in logs:
            logs |= self._means()
        super().log(logs, start_time)

    def _means(self) -> dict[str, float]:
        counts = [len(values) for values in self._parts.values()]
        sums = [len(v) * torch.stack(v).mean().item() if v else 0.0 for v in self._parts.values()]
        sums, counts = ranks.total(torch.tensor([sums, counts], dtype=torch.float64))
        names = list(self._parts)
        for values in self._parts.values():
            values.clear()
        return dict(zip(names, (sums / counts).tolist(), strict=True))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The Trainer's, then its seal, and only then the older ones go: see checkpoints.py."""
        check_claim(self.run)
        folder = Path(self.args.output_dir)
        path = checkpoint_path(folder, self.state.global_step)
        if self.args.should_save:
            shutil.rmtree(path, ignore_errors=True)  # half of it, left by a killed process
        self.accelerator.wait_for_everyone()
        with told(path):
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            seal(path)
            steps = best_steps(self.state.log_history, self.run.averaged)
            keep_only(folder, path, *(checkpoint_path(folder, step) for step in steps))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = trained_tensors(self.model)
        if any(not tensor.isfinite().all() for tensor in tensors.values()):
            raise UserError(
                f"the weights are no numbers any more after step {self.state.global_step} and were "
                f"not saved, and {kept(folder.parent)}: {MEND}"
            )
        save_file(tensors, folder / WEIGHTS)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        tensors = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        (model or self.model).load_state_dict(tensors, strict=False)

    def _load_best_model(self) -> None:
        """The best checkpoint's weights, or the mean of several, which is then validated too."""
        steps = best_steps(self.state.log_history, self.run.averaged)
        paths = (checkpoint_path(self.args.output_dir, step) / WEIGHTS for step in steps)
        best = [load_file(path) for path in paths]
        if self.run.averaged == 1:
            self.model.load_state_dict(best[0], strict=False)
        else:
            mean = {n: torch.stack([weights[n] for weights in best]).mean(0) for n in best[0]}
            self.model.load_state_dict(mean, strict=False)
            found = ranks.told_by_first(self._validate)
            self.state.log_history.append({"mean_of": steps, **found})

    # What the Trainer unpickles when it goes on.

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with unpickling(checkpoint or ""):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with unpickling(checkpoint or ""):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with unpickling(checkpoint or ""):
            super()._load_rng_state(checkpoint)


def _with_ids(collator: Collator, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch, and which clips it is made of: "ids"."""
    return collator(rows) | {"ids": [row["id"] for row in rows]}


def collator_of(
    config: RunConfig,
    processor: WhisperProcessor,
    model: PretrainedConfig,
    teacher_extractor: WhisperFeatureExtractor | None = None,
) -> Collator:
    """What makes batches of a run's rows, for a teacher with an extractor of its own too."""
    length = model.max_target_positions
    return Collator(processor, config.conventions, length, config.borrowed, teacher_extractor)


def make_trainer(
    model: nn.Module,
    processor: WhisperProcessor,
    teacher: Teacher | StoredTargets | None,
    stage: Stage,
    data: RunData,
    clock: Clock,
) -> DistilTrainer:
    """A trainer over a run's data; a stored teacher's targets come with the rows."""
    config = stage.run
    teacher = teacher if stage.distils else None
    heard = teacher.extractor if isinstance(teacher, Teacher) else None
    collator = collator_of(config, processor, model.config, heard)
    read = None
    if isinstance(teacher, StoredTargets):
        read, teacher = teacher.read, teacher.teacher()
    time_left = TimeLeft(config.output_dir / PROGRESS, stage.title, stage.after)
    train = pd.concat([arranged(config, data.train, collator)] * config.passes(len(data.train)))
    return DistilTrainer(
        model=model,
        args=training_arguments(stage, len(train)),
        train_dataset=SpeechDataset(train, read),
        eval_dataset=SpeechDataset(data.validation),
        data_collator=partial(_with_ids, collator),
        callbacks=[LogAtEpochEnd(), clock, time_left, Patience(config.patience)],
        stage=stage,
        data=data,
        processor=processor,
        teacher=teacher,
    )


def training_arguments(stage: Stage, clips: int) -> Seq2SeqTrainingArguments:
    """A run's configuration in the Trainer's words, of one stage."""
    arguments = _arguments(stage, clips)
    if arguments.n_gpu > 1:
        # One process trains on one GPU: the Trainer would spread each micro-batch over all that it
        # sees (DataParallel), which multiplies the batch. Several GPUs are several processes.
        arguments._n_gpu = 1
    return arguments


def _arguments(stage: Stage, clips: int) -> Seq2SeqTrainingArguments:
    config = stage.run
    micro = min(config.micro_batch, config.batch_size)
    steps_per_epoch = math.ceil(clips / config.batch_size)
    total = config.max_steps if config.max_steps > 0 else steps_per_epoch * stage.epochs
    precision = precision_here(config.precision)
    return Seq2SeqTrainingArguments(
        output_dir=str(stage.folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=micro_batches_each(config),
        num_train_epochs=stage.epochs,
        max_steps=config.max_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(config.warmup_fraction * total),
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip_norm,
        logging_steps=max(1, steps_per_epoch // 5),
        logging_nan_inf_filter=False,  # LossWatch looks instead
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="wer",
        greater_is_better=False,
        seed=config.seed,
        data_seed=config.seed,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=best_device() == "cpu",  # without it, bf16 asks for a GPU
        # Layers that skip their expert leave weights without a gradient, and open gates do.
        ddp_find_unused_parameters=config.method in WITH_EXPERTS
        and (config.skip > 0 or stage.expert_warmup > 0),
        gradient_checkpointing=config.activation_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        disable_tqdm=False,
        report_to="none",
    )

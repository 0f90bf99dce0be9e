"""What a training step costs, by method, in the kit's own trainer."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch

from benchmarks.races import memory
from benchmarks.races.harness import Row, check, interleaved, milliseconds, row
from benchmarks.races.models import PROCESSOR, routed
from benchmarks.races.setting import Setting
from distilwhisper_lib.config.settings import resolve
from distilwhisper_lib.losses.targets import StoredTargets, stored_targets
from distilwhisper_lib.losses.teacher import Teacher, TeacherSource
from distilwhisper_lib.model.loading import prepare
from distilwhisper_lib.speech.features import Collator
from distilwhisper_lib.training.checkpoints import Clock
from distilwhisper_lib.training.stages import stages
from distilwhisper_lib.training.trainer import make_trainer

EPOCHS = 10
SECONDS, TOKENS = 5, 44  # of a clip: about Common Voice's mean; 45 labelled positions
PACKED = 5  # clips of that length that share a window
ROWS = 4  # at once, as profile "cpu" has it
CLIPS = 1  # for which targets are built: a teacher of large-v2's size takes 20 s on a CPU


class Trainee:
    """One method's model in its trainer, which takes a step when it is told to."""

    def __init__(
        self,
        setting: Setting,
        method: str,
        student: Any,
        table: pd.DataFrame,
        teacher: Teacher | StoredTargets | None = None,
        precision: str | None = None,
        rows: int = 1,
        pack: bool = False,
    ) -> None:
        config = _config(method, precision or setting.precision, rows, pack)
        data = SimpleNamespace(train=table, validation=table)
        student = prepare(student, config)
        (stage,) = stages(config, Path("checkpoints"))
        trainer = make_trainer(student, PROCESSOR, teacher, stage, data, Clock(Path("clock")))
        # What trainer.train() would do before its first step, half-way through the schedule.
        trainer.state.max_steps, trainer.state.global_step = 100, 50
        trainer.current_gradient_accumulation_steps = 1
        trainer.create_optimizer()
        prepared = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
        self.trainer, (self.model, self.optimizer), self.config = trainer, prepared, config
        self.rows, self.steps = rows, itertools.count()

    def step(self, seed: int | None = None, learn: bool = True) -> float:
        """Read, collate, forward, backward, update; returns the cross entropy before the update.

        ``seed`` decides dropout and which experts are left out; its n-th step has n otherwise, as
        every other trainee's. Not to ``learn`` is to leave the weights as they are.
        """
        trainer = self.trainer
        torch.manual_seed(next(self.steps) if seed is None else seed)
        clips = [trainer.train_dataset[i % len(trainer.train_dataset)] for i in range(self.rows)]
        batch = trainer.data_collator(clips) | {"place": 0}  # the first of its step
        trainer.training_step(self.model, batch)
        trainer.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        if learn:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.parts = {name: values[-1].item() for name, values in trainer._parts.items()}
        return self.parts["loss_ce"]

    def allocate(self) -> None:
        """Let the optimiser make its state, as after a first step, without the step."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()


def distillation(setting: Setting) -> Iterator[Row]:
    """A sample of ten epochs: the teacher in every step, against targets built once."""
    table, stored, build = prepared(setting)
    student = routed(setting.student_dimensions)
    trainee = Trainee(setting, "js", student, table, stored)
    # One student learns from both in turn: at large-v2's size a second one would not fit 16 GB.
    teachers = {"online": Teacher(setting.teacher), "cached": trainee.trainer.teacher}
    rounds = {name: itertools.count() for name in teachers}

    def step(name: str, learn: bool = True) -> float:
        trainee.trainer.teacher = teachers[name]
        trainee.step(next(rounds[name]), learn)
        return trainee.parts["loss_distil"]

    online, cached = (step(name, learn=False) for name in teachers)
    apart = abs(online - cached) / online
    checks = [
        check(
            "distillation loss, online and cached: relative difference", apart, tolerance(setting)
        )
    ]
    trainee.allocate()
    sides = {name: partial(step, name) for name in teachers}
    samples = interleaved(sides, 2, setting.device, warm=0)
    mean = {name: float(np.median(values)) for name, values in samples.items()}
    ratio = EPOCHS * mean["online"] / (EPOCHS * mean["cached"] + build)
    yield row(
        f"distillation, {EPOCHS} epochs, a sample: online / cached with its building",
        samples | {"building": [build]},
        ratio=ratio,
        goal=">= 2.2",
        checks=checks,
        rows=1,
        target_bytes=stored.about["bytes"],
        target_clips=len(table),
    )
    setting.drop("teacher")


def steps(setting: Setting) -> Iterator[Row]:
    """A step with cached targets against the steps of the methods without a teacher."""
    table, stored, _ = prepared(setting)
    setting.drop("teacher")
    teachers = {"js": stored, "clsr": None, "lora": None, "full": None}
    trainees = {
        method: Trainee(setting, method, routed(setting.student_dimensions), table, teacher)
        for method, teacher in teachers.items()
    }
    trainees["cached js"] = trainees.pop("js")
    losses = {name: trainee.step() for name, trainee in trainees.items()}  # also warms up
    samples = interleaved(
        {name: trainee.step for name, trainee in trainees.items()},
        setting.rounds(4),
        setting.device,
        warm=0,
    )
    goals = {"clsr": "<= 1.10", "lora": "<= 1.6", "full": "<= 1.2"}
    # A fresh LoRA is the model that full fine-tuning starts from; JS is CLSR with one more loss.
    twin = {"clsr": "cached js", "lora": "full", "full": "lora"}
    for other, goal in goals.items():
        apart = abs(losses[other] - losses[twin[other]]) / losses[other]
        what = f"first cross entropy, {other} and {twin[other]}: relative difference"
        yield row(
            f"training step, cached js / {other}",
            {name: samples[name] for name in ("cached js", other)},
            goal=goal,
            checks=[check(what, apart, tolerance(setting))],
            rows=1,
        )


def packing(setting: Setting) -> Iterator[Row]:
    """A clip in a window that it shares with others, against one in a window of its own."""
    table = corpus(setting.empty("audio"), PACKED)
    for method in ("lora", "clsr"):
        alone, twin, together = (
            Trainee(setting, method, routed(setting.student_dimensions), given, pack=pack)
            for given, pack in ((table.head(1), False), (table.head(1), True), (table, True))
        )
        clips = len(together.trainer.train_dataset.columns["pieces"][0])  # fewer in a small model
        losses = [trainee.step(seed=0, learn=False) for trainee in (alone, twin)]
        apart = abs(losses[0] - losses[1]) / losses[0]
        del twin
        sides = {f"{clips} clips packed": together.step, "one clip": alone.step}
        samples = interleaved(sides, setting.rounds(4), setting.device, warm=1)
        packed, single = (float(np.median(values)) for values in samples.values())
        yield row(
            f"training a clip with {method}, packed / not packed",
            samples,
            ratio=packed / (clips * single),
            goal="<= 0.35",
            checks=[check("loss of a clip alone in either: difference", apart, tolerance(setting))],
            rows=1,
        )


def step_memory(setting: Setting) -> Iterator[Row]:
    """The most memory that a training step takes, model and optimiser included: of one clip, and
    of as many as profile "cpu" has at once, packed and not."""
    found = memory.peaks(setting, "step")
    online, cached = (found[side]["result"] for side in ("online js", "cached js"))
    apart = abs(online - cached) / online
    checks = [
        check("cross entropy, online and cached: relative difference", apart, tolerance(setting))
    ]
    pairs = [("cached js", other) for other in ("online js", "lora", "full")]
    title = "peak memory of a training step"
    yield from memory.rows(found, title, pairs, checks=checks, rows=1)
    packed = [("packed lora", "lora")]
    yield from memory.rows(found, title, packed, checks=checks, rows=1)
    many = [(f"{ROWS} windows, lora", f"{ROWS} clips, lora")]
    yield from memory.rows(found, title, many, goal="<= 1.10", checks=checks, rows=ROWS)


def tolerance(setting: Setting) -> float:
    """How far apart, relatively, two losses may be that are the same by definition."""
    return 1e-4 if setting.precision == "fp32" else 1e-2


def corpus(folder: Path, clips: int = CLIPS) -> pd.DataFrame:
    """Clips of noise with texts of token numbers, as a corpus table."""
    random, rows = np.random.default_rng(0), []
    for number in range(clips):
        path = folder / f"{number}.wav"
        soundfile.write(path, random.normal(0, 0.1, SECONDS * 16_000), 16_000)
        text = " ".join(map(str, random.integers(1000, 20_000, TOKENS)))
        rows.append({"id": f"clip{number}", "audio": str(path), "text": text})
    shared = {"start": None, "end": None, "language": "ca", "speaker": "", "seconds": SECONDS}
    return pd.DataFrame(rows).assign(**shared, split="train")


def prepared(setting: Setting) -> tuple[pd.DataFrame, StoredTargets, float]:
    """A corpus, its teacher targets, and the milliseconds a clip that they took; made once."""
    if setting.stored is None:
        table, made = corpus(setting.empty("audio")), []
        ms = milliseconds(lambda: made.append(targets(setting, table)), setting.device)
        setting.stored = table, made[0], round(ms / len(table), 3)
    return setting.stored


def targets(setting: Setting, table: pd.DataFrame) -> StoredTargets:
    """Teacher targets by the kit's own builder, one clip at a time, and always built."""
    about = {"name": "random", "sha256": str(time.time_ns())}  # never met before
    source = TeacherSource(about, setting.teacher.config, lambda: Teacher(setting.teacher))
    config = _config("js", setting.precision, 1)
    return stored_targets(config, table, about["sha256"], Collator(PROCESSOR), source)


def _config(method: str, precision: str, rows: int, pack: bool = False) -> Any:
    same = {"batch_size": rows, "micro_batch": rows, "precision": precision, "recipe": "paper"}
    same |= {"label_smoothing": 0.1, "teacher_targets": "hidden"}  # the LoRA recipe has none
    same |= {"pack": pack}
    return resolve(method, "own", "ca", 77, same)


def sides_of_memory(setting: Setting) -> dict[str, Any]:
    """Side -> what builds it and returns the step to watch: see memory.py."""

    def ready(
        method: str, teacher: Any = lambda table: None, clips: int = CLIPS, rows: int = 1
    ) -> Any:
        table = corpus(setting.empty("audio"), clips)
        student = routed(setting.student_dimensions)
        pack = clips > CLIPS
        trainee = Trainee(setting, method, student, table, teacher(table), rows=rows, pack=pack)
        trainee.allocate()
        return trainee.step

    def stored(table: pd.DataFrame) -> StoredTargets:
        found = targets(setting, table)
        setting.drop("teacher")
        return found

    return {
        "cached js": partial(ready, "js", stored),
        "online js": partial(ready, "js", lambda _table: Teacher(setting.teacher)),
        "lora": partial(ready, "lora"),
        "packed lora": partial(ready, "lora", clips=PACKED),
        f"{ROWS} clips, lora": partial(ready, "lora", rows=ROWS),
        f"{ROWS} windows, lora": partial(ready, "lora", clips=ROWS * PACKED, rows=ROWS),
        "full": partial(ready, "full"),
    }

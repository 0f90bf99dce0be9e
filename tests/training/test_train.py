"""One run by several processes: the weights, log, hypotheses and record that one would leave."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import SequentialSampler

from distilwhisper_lib import UserError, ranks
from distilwhisper_lib.config.settings import resolve
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.evaluation.decoding import read_hypotheses
from distilwhisper_lib.model.tensors import trained_tensors
from distilwhisper_lib.results.records import read_record
from distilwhisper_lib.training import loop as training
from distilwhisper_lib.training import trainer
from distilwhisper_lib.training.shares import MicroBatches, Share
from distilwhisper_lib.training.stages import Stage

# Seven clips one by one in steps of four: no epoch ends with a whole step, and its last one has
# three micro-batches for two processes.
STEPS = {"batch_size": 4, "micro_batch": 1, "warmup_fraction": 0.0}
# Equal numbers need equal random numbers, which processes do not share: all of them off.
NOT_RANDOM = {"gate_noise": 0.0, "gate_dropout": 0.0, "expert_dropout": 0.0, "lora_dropout": 0.0}
STUDIES = [
    ("full", {}),
    ("lora", {"pack": True, "batch_size": 2}),  # of windows, which clips share
    ("clsr", {"skip": 1.0}),  # gates learn, but no expert gets a gradient in any process
    ("js", {"skip": 0.0, "activation_checkpointing": True, "epochs": 2}),
]

# Trains them all. Then the second process meets a loss that is no number in the second step of
# one run, and dies in the fourth of another.
TRAIN_ALL = """
import json, os, signal, sys
from pathlib import Path
from distilwhisper_lib import UserError, ranks, resolve
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.training import loop as training
from distilwhisper_lib.training import trainer

compute_loss = trainer.DistilTrainer.compute_loss

def struck(self, *args, **kwargs):
    loss = compute_loss(self, *args, **kwargs)
    fate = self.run.method, self.state.global_step, ranks.place()
    if fate == ("js", 3, 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == ("clsr", 1, 1):
        loss = loss * float("nan")
    return loss

def train(method, overrides):
    config = resolve(method, "demo", "ca", 7, overrides)
    training.train(config, load_data(config))

ranks.join()
finished, ill, killed = json.loads(sys.argv[1])
for study in finished:
    train(*study)
trainer.DistilTrainer.compute_loss = struck
try:
    train(*ill)
except UserError as error:
    Path(f"said-{ranks.place()}").write_text(str(error))
train(*killed)
"""


def torchrun(*command):
    """Two processes in this folder."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    environment |= {"OMP_NUM_THREADS": "1"}
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*starter, "--nproc-per-node", "2", *command],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_two_processes_do_what_one_does_and_go_on_when_one_is_killed(study_of, tmp_path):
    study = study_of(clips=7, epochs=1, **STEPS, **NOT_RANDOM)
    configs = [study(method, **settings) for method, settings in STUDIES]
    (tmp_path / "all.py").write_text(TRAIN_ALL)
    *finished, interrupted = configs
    ill = study("clsr", learning_rate=0.5)
    commands = [(c.method, c.overrides()) for c in (*finished, ill, interrupted)]
    done = torchrun("all.py", json.dumps([commands[:3], *commands[3:]]))
    assert [(c.output_dir / "training.json").exists() for c in configs] == [True] * 3 + [False]
    assert done.returncode != 0
    said = [(tmp_path / f"said-{place}").read_text() for place in (0, 1)]
    assert said[0] == said[1] and "the loss of step 2 is nan on clips train" in said[0]
    assert not (ill.output_dir / "training.json").exists()
    for config in finished:
        by_two = train_here(config)
        shutil.rmtree(config.output_dir)
        check_same(config, by_two, train_here(config))

    # What was interrupted goes on with two processes, or with one.
    elapsed = interrupted.output_dir / "checkpoints" / "elapsed.json"
    elapsed.write_text("1000")  # a run that began anew would not know of it
    shutil.copytree(interrupted.output_dir, "kept")
    done = torchrun("-m", "distilwhisper_lib", "train", *command_line(interrupted))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("record   ") == 1
    by_two = train_here(interrupted)
    check_record(interrupted)
    shutil.rmtree(interrupted.output_dir)
    shutil.move("kept", interrupted.output_dir)
    by_two_and_one = train_here(interrupted)
    shutil.rmtree(interrupted.output_dir)
    by_one = train_here(interrupted)
    for resumed in (by_two, by_two_and_one):
        assert resumed[0]["seconds"] > 1000 > by_one[0]["seconds"]
        check_same(interrupted, resumed, by_one)
    # Built by the interrupted run, so that the second process did not even load the teacher.
    assert by_two[0]["teacher_targets"]["built"] and not by_one[0]["teacher_targets"]["built"]


def command_line(config):
    overrides = json.dumps(config.overrides())
    return [config.method, "--seed", str(config.seed), "--overrides", overrides, "--root", "."]


def train_here(config):
    """(summary, weights) by this one process, or of what others left."""
    trained = training.train(config, load_data(config))
    weights = {name: value.detach() for name, value in trained.model.named_parameters()}
    return trained.training, weights


def check_same(config, some, others):
    (summary, weights), (other, expected) = some, others
    assert (summary["processes"], other["processes"]) in [(2, 1), (1, 1)]
    assert summary["steps"] == other["steps"] == 2 * config.epochs
    torch.manual_seed(config.seed)
    base, _ = training.load_student(config)
    before = trained_tensors(training.prepare(base, config))
    moved = distance(expected, before)
    assert moved > 0.01
    assert distance({n: weights[n] for n in before}, expected) < 1e-4 * moved
    for name in ("log", "validation"):
        assert len(summary[name]) == len(other[name]) > 0
        for entry, twin in zip(summary[name], other[name], strict=True):
            assert entry == pytest.approx(twin, rel=1e-4, abs=1e-5)


def distance(some, others):
    """Euclidean, over the weights that both have: of all in a model, those that train."""
    return sum((some[n] - others[n]).square().sum() for n in some.keys() & others.keys()).sqrt()


def check_record(config):
    path = config.results_dir / "runs" / f"{config.run_id}.json"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    record = read_record(path)
    assert record["training"]["processes"] == 2
    assert (
        "torchrun --nproc-per-node 2 -m distilwhisper_lib train js"
        in (record["provenance"]["command"])
    )
    data = load_data(config)
    for evaluation in record["evaluations"]:
        said = read_hypotheses(config.output_dir / f"{evaluation['domain']}-test.jsonl")
        clips = getattr(data, evaluation["domain"])["id"]
        assert [row["id"] for row in said] == list(clips)
        assert evaluation["clips"] == len(clips)


@pytest.mark.parametrize(("clips", "size"), [(7, 1), (7, 2), (8, 2), (3, 4), (12, 4)])
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("each", [1, 2])
def test_every_clip_counts_once_in_an_epoch(clips, size, processes, each):
    """Over all processes, the weights of a step's micro-batches are those of their plain mean."""
    batches = MicroBatches(SequentialSampler(range(clips)), size, processes)
    listed = list(batches)
    assert len(listed) == len(batches) and len(listed) % processes == 0
    plain = list(MicroBatches(SequentialSampler(range(clips)), size, 1))
    assert listed[: len(plain)] == plain
    assert sum(plain, []) == list(range(clips))

    share, in_step = Share(clips, size, each, processes), each * processes
    for step in range(0, len(listed), in_step):
        taken = listed[step : step + in_step]
        weights = [
            share.weight(step // in_step, place, len(taken) // processes)
            for place in range(len(taken))
        ]
        shares = [weight / len(taken) for weight in weights]
        real = len(plain[step : step + in_step])
        assert shares == pytest.approx([1 / real] * real + [0.0] * (len(taken) - real))


@pytest.mark.parametrize(
    ("processes", "settings", "advice"),
    [
        (2, {"batch_size": 32, "micro_batch": 32}, "start 1, or set micro_batch to 16"),
        (3, {"batch_size": 16, "micro_batch": 8}, "start 1 or 2, or choose another batch_size"),
    ],
)
def test_a_step_that_processes_cannot_share_is_refused(processes, settings, advice, monkeypatch):
    config = resolve("clsr", "demo", "ca", 7, settings)
    monkeypatch.setattr(ranks, "count", lambda: processes)
    with pytest.raises(UserError, match=f"{processes} processes cannot share equally: {advice}"):
        training.train(config, None)


def test_processes_share_a_step_without_changing_it(monkeypatch):
    config = resolve("js", "cv10k", "ca", 77)
    for processes, each in ((1, 2), (2, 1)):
        monkeypatch.setattr(ranks, "count", lambda n=processes: n)
        arguments = trainer.training_arguments(Stage(config, "experts", Path()), clips=10_000)
        assert arguments.per_device_train_batch_size == config.micro_batch == 8
        assert arguments.gradient_accumulation_steps == each


def test_one_process_trains_on_one_gpu(monkeypatch):
    """transformers would spread each micro-batch over every GPU it sees, and so enlarge it."""
    monkeypatch.setattr(trainer, "best_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    arguments = trainer.training_arguments(
        Stage(resolve("js", "cv10k", "ca", 77), "experts", Path()), clips=10_000
    )
    assert arguments.train_batch_size == 8


def test_the_command_refuses_in_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["distilwhisper", "train", "js", "--language", "xx", "--root", str(tmp_path)]
    )
    # As in a process of its own: another test may have imported it.
    monkeypatch.delitem(sys.modules, "distilwhisper_lib.__main__", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("distilwhisper_lib", run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir())

"""One run by several processes: the same weights, log, hypotheses and record as by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import SequentialSampler

from distilwhisper_lib import UserError, ranks, runs, trainer, training
from distilwhisper_lib.config import resolve
from distilwhisper_lib.data import load_data
from distilwhisper_lib.finished import load_run
from distilwhisper_lib.hypotheses import read_published
from distilwhisper_lib.trainer import MicroBatches
from distilwhisper_lib.weights import trained_tensors

# Seven clips in micro-batches of one are no whole number of steps, for one process or for two.
CLIPS, STEP = 7, {"batch_size": 4, "micro_batch": 1}
# Equal numbers need equal random numbers, which processes do not share: all of them off.
NOT_RANDOM = {"gate_noise": 0.0, "gate_dropout": 0.0, "expert_dropout": 0.0, "lora_dropout": 0.0}
STUDIES = {
    "full": {},
    "lora": {},
    "clsr": {"skip": 1.0},  # no expert has a gradient in any process, only the gates have
    "js": {"skip": 0.0},
    "kl": {"skip": 0.0, "teacher_targets": "online", "activation_checkpointing": True},
}

TRAIN_ALL = """
import sys, json
from distilwhisper_lib import ranks, resolve, training
from distilwhisper_lib.data import load_data
ranks.join()
for method, overrides in json.loads(sys.argv[1]):
    config = resolve(method, "demo", "ca", 7, overrides)
    training.train(config, load_data(config))
ranks.leave()
"""


@pytest.fixture
def study(study_of):
    return study_of(clips=CLIPS, epochs=2, **STEP, **NOT_RANDOM)


def arguments(config):
    """The command line of a run."""
    given = ["--preset", "demo", "--language", "ca", "--seed", str(config.seed), "--root", "."]
    return [config.method, *given, "--overrides", json.dumps(config.overrides())]


def launch(*command, processes=2):
    """torchrun in this folder."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    environment |= {"OMP_NUM_THREADS": "1"}
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    return subprocess.run(
        [*starter, str(processes), *command], env=environment, capture_output=True, text=True
    )


def test_two_processes_train_what_one_does(study, tmp_path):
    configs = {method: study(method, **settings) for method, settings in STUDIES.items()}
    (tmp_path / "all.py").write_text(TRAIN_ALL)
    done = launch("all.py", json.dumps([(m, c.overrides()) for m, c in configs.items()]))
    Path("/tmp/tr/log.txt").write_text(done.stdout+done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]
    for method, config in configs.items():
        base, _ = training.load_model("student", **training.expert_settings(config))
        theirs = trained_tensors(training._load_trained(base, config)) if method!="lora" else trained_tensors(__import__("peft").PeftModel.from_pretrained(base, config.output_dir/"adapter", is_trainable=True))
        path = config.output_dir / "training.json"
        summary = json.loads(path.read_text())
        path.unlink()
        data = load_data(config)
        torch.manual_seed(7)
        base = training.prepare(training.load_model("student", gate_dim=8)[0], config)
        before = trained_tensors(base)
        mine = training.train(config, data)
        after = trained_tensors(mine.model)
        moved = sum((after[n] - before[n]).square().sum() for n in after).sqrt()
        apart = sum((after[n] - theirs[n]).square().sum() for n in after).sqrt()
        print("XX", method, apart / moved, moved)
        for a, b in zip(mine.summary["log"], summary["log"]):
            print({k: (a[k], b[k]) for k in a if a[k] != b[k]})
        print(mine.summary["validation"], summary["validation"])
        print({k:(summary[k],mine.summary[k]) for k in summary if k not in("log","validation") and summary[k]!=mine.summary[k]})

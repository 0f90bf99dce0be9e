"""Killed, a disk that refuses, two at once, wrong clocks, losses that are no number: nothing lost.

What is killed here is a run of benchmarks.robustness.faults, whose command tries every point.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from benchmarks.robustness import faults
from distilwhisper_lib import UserError
from distilwhisper_lib.data.checklist import write_data_report
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.evaluation.record import evaluate, record_run, scores_table
from distilwhisper_lib.evaluation.run import CLAIM
from distilwhisper_lib.evaluation.run import _alone as run_folder_alone
from distilwhisper_lib.io import files
from distilwhisper_lib.losses import targets as targets_module
from distilwhisper_lib.training import checkpoints, trainer
from distilwhisper_lib.training import loop as kit


@pytest.fixture
def study(study_of):
    return study_of(clips=6, epochs=2)


def complete(config):
    data = load_data(config)
    write_data_report(config, data)
    trained = kit.train(config, data)
    return record_run(trained, data, evaluate(trained, data))


# SIGKILL ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the bench reads /proc")
def test_a_run_killed_in_every_stage_ends_as_if_nothing_had_happened(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums in another order are other weights
    bench = faults.Study(tmp_path)
    before, half = "before rename", "half-written"
    trial = bench.killed_at(
        {"stage": "data", "kind": before, "what": "test"},  # FLEURS, unpacked
        {"stage": "targets", "kind": before, "what": "index.json"},
        {"stage": "training", "kind": half, "what": "optimizer.pt"},
        {"stage": "training", "kind": "after rename", "what": "elapsed.json"},
        {"stage": "training", "kind": before, "what": "sealed.json"},
        {"stage": "training", "kind": "half-deleted", "what": "checkpoints"},
        {"stage": "evaluation", "kind": "torn line"},
        {"stage": "record", "kind": before, "what": "record.json"},
    )
    assert trial["survived"], trial["why"]
    assert 0 < trial["steps_again"] <= 3 * faults.STEPS_PER_EPOCH


def test_the_bench_sees_what_differs_and_counts_it():
    whole = {"record": {"wer": 0.5}, "a.jsonl": "hash", "left over": []}
    assert faults.differences(whole, dict(whole)) == []
    harmed = whole | {"record": {"wer": 0.6}, "left over": ["x.tmp"]}
    del harmed["a.jsonl"]
    told = ["a.jsonl differs", "left over differs", "record differs"]
    assert faults.differences(whole, harmed) == told
    trials = [
        {"stage": "data", "kind": "torn line", "survived": survived} for survived in (True, False)
    ]
    table = faults.matrix(trials)
    assert table.loc["data", "torn line"] == table.loc["all", "all"] == "1 / 2"
    assert table.loc["record", "all"] == "-"


# Checkpoints -----------------------------------------------------------------------------------


def checkpoint(folder, step, best=None):
    path = checkpoints.checkpoint_path(folder, step)
    path.mkdir()
    (path / "optimizer.pt").write_bytes(bytes(100))
    told = [] if best is None else [(0.5, best), (0.6, step)]
    history = [{"eval_wer": wer, "step": at} for wer, at in told]
    (path / checkpoints.STATE).write_text(json.dumps({"log_history": history}))
    checkpoints.seal(path)
    return path


def test_only_whole_checkpoints_are_gone_on_with_whatever_the_clock_says(tmp_path):
    paths = [checkpoint(tmp_path, step) for step in (9, 10, 20)]
    for path, year in zip(paths, (2040, 2030, 1980), strict=True):  # a clock that was set back
        os.utime(path, ((year - 1970) * 31536000,) * 2)
    assert checkpoints.last_checkpoint(tmp_path) == str(paths[2])
    with (paths[2] / "optimizer.pt").open("r+b") as file:
        file.truncate(50)
    assert checkpoints.last_checkpoint(tmp_path) == str(paths[1])
    (paths[1] / checkpoints.SEAL).unlink()
    assert checkpoints.last_checkpoint(tmp_path) == str(paths[0])
    newest = checkpoint(tmp_path, 30, best=20)  # whose best one is torn
    assert checkpoints.last_checkpoint(tmp_path) == str(paths[0])
    checkpoints.keep_only(tmp_path, newest, "elsewhere/checkpoint-9", None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-30", "checkpoint-9"]
    assert checkpoints.last_checkpoint(tmp_path / "nothing") is None


def test_training_keeps_its_newest_checkpoint_under_a_clock_that_runs_backwards(study, monkeypatch):
    save = trainer.DistilTrainer._save_checkpoint

    def saved(self, *args):
        save(self, *args)
        folder = checkpoints.checkpoint_path(self.args.output_dir, self.state.global_step)
        os.utime(folder, (4e9 - self.state.global_step,) * 2)  # written when it was 2096

    monkeypatch.setattr(trainer.DistilTrainer, "_save_checkpoint", saved)
    config = study("clsr", epochs=4)
    stop_at(9, monkeypatch, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        kit.train(config, load_data(config))
    last = kit.last_checkpoint(config.output_dir / "checkpoints")
    assert Path(last).name == "checkpoint-9"


def test_a_run_killed_after_its_last_step_makes_no_other(study, monkeypatch):
    """The Trainer goes one step too far where max_steps ends within an epoch."""
    config = study("clsr", max_steps=4)
    data = load_data(config)
    whole = kit.train(config, data).training
    (config.output_dir / kit.SUMMARY).unlink()
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(kit, "_save_trained", lambda *_: 1 / 0)
        kit.train(config, data)
    assert faults.timeless(kit.train(config, data).training) == faults.timeless(whole)


# Losses that are no number ---------------------------------------------------------------------


def stop_at(step, monkeypatch, error):
    """Raise ``error`` when the loss after so many steps is asked for; or make it that number."""
    compute_loss = trainer.DistilTrainer.compute_loss
    batches = []

    def computed(self, model, inputs, *args, **kwargs):
        loss = compute_loss(self, model, inputs, *args, **kwargs)
        if self.state.global_step == step:
            batches.append(inputs["ids"])
            if not isinstance(error, float):
                raise error
            return loss * error if len(batches) == 2 else loss
        return loss

    monkeypatch.setattr(trainer.DistilTrainer, "compute_loss", computed)
    return batches


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run_and_names_its_clips(value, study, monkeypatch):
    config = study("clsr", batch_size=4, micro_batch=2, epochs=3)  # two optimiser steps an epoch
    data = load_data(config)
    with monkeypatch.context() as patch:
        batches = stop_at(2, patch, value)
        with pytest.raises(UserError, match=f"loss of step 3 is {value} on clips ") as raised:
            kit.train(config, data)
    assert f"on clips {', '.join(batches[1])}: " in str(raised.value)  # not those of batches[0]
    assert "checkpoint-2 is kept" in str(raised.value)
    assert kit.last_checkpoint(config.output_dir / "checkpoints").endswith("checkpoint-2")
    assert kit.train(config, data).training["steps"] == 6


def test_weights_that_are_no_numbers_are_not_saved(study, monkeypatch):
    config = study("clsr")
    step = trainer.LossWatch.on_pre_optimizer_step

    def spoiled(self, args, state, control, model=None, **kwargs):
        step(self, args, state, control)
        if state.global_step == 5:  # the last one: no loss comes after it
            next(p for p in model.parameters() if p.requires_grad).data.fill_(math.nan)

    monkeypatch.setattr(trainer.LossWatch, "on_pre_optimizer_step", spoiled)
    with pytest.raises(UserError, match="no numbers any more after step 6 .* checkpoint-3 is kept"):
        kit.train(config, load_data(config))


def test_clips_that_the_cap_cut_are_counted_and_shown(study):
    config = study("zero_shot", max_new_tokens=2)
    data = load_data(config)
    shown = evaluate(kit.train(config, data), data)
    lines = (config.output_dir / "in_domain-test.jsonl").read_text().splitlines()
    cut = sum(len(json.loads(line)["hypothesis"]) > 0 for line in lines)
    assert shown[0]["capped"] == cut == 6  # noise: a random model never ends by itself
    assert scores_table(shown)["capped"].tolist() == [e["capped"] for e in shown]


# Disks -----------------------------------------------------------------------------------------


class Disk:
    """A small disk under outputs/ that can be full or read-only."""

    def __init__(self, folder):
        self.folder, self.mend = folder, lambda: None
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)]
        self.mounted = shutil.which("mount") is not None and self._did(mount)
        (folder / "outputs").mkdir()
        Path("outputs").symlink_to(folder / "outputs")

    def refuse(self, number):
        """Refuse every write, until mend()."""
        if not self.mounted:  # no right to mount: refuse where files are flushed
            self._refuse_to_flush(number)
        elif number == errno.EROFS:
            assert self._did(["mount", "-o", "remount,ro", str(self.folder)])
            self.mend = lambda: self._did(["mount", "-o", "remount,rw", str(self.folder)])
        else:
            filler = self.folder / "filler"
            for size in (2**16, 1):
                with pytest.raises(OSError), filler.open("ab", buffering=0) as file:
                    while True:
                        file.write(bytes(size))
            self.mend = filler.unlink

    def _refuse_to_flush(self, number):
        fsync = os.fsync

        def refused(handle):
            raise OSError(number, os.strerror(number))

        def mended():
            os.fsync = fsync

        os.fsync, self.mend = refused, mended

    def clear(self):
        for path in (self.folder / "outputs").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def close(self):
        self.mend()
        if self.mounted:
            self._did(["umount", "-l", str(self.folder)])

    def _did(self, command):
        return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def small_disk(study, tmp_path):
    """Where study_of works, which is tmp_path."""
    made = Disk(tmp_path / "disk")
    yield made
    made.close()


SAID = {
    errno.ENOSPC: "cannot be written, the disk is full .*: make room there and run again",
    errno.EROFS: "cannot be opened or written .*: mend its permissions and run again",
}


@pytest.fixture
def fails(small_disk):
    """Call with a disk that refuses, or begins to: one sentence; then the disk is mended."""

    def check(call, *arguments, number=errno.ENOSPC, at_once=True):
        if at_once:
            small_disk.refuse(number)
        with pytest.raises(UserError, match=SAID[number]) as raised:
            call(*arguments)
        assert "\n" not in str(raised.value)
        small_disk.mend()
        small_disk.mend = lambda: None

    return check


def test_a_full_disk_is_one_sentence_in_each_stage(study, small_disk, fails, monkeypatch):
    config = study("js")
    data = load_data(config)
    undisturbed = complete(config)
    small_disk.clear()
    fails(write_data_report, config, data)
    write_data_report(config, data)
    build, save = targets_module.build, trainer.DistilTrainer._save_checkpoint

    def building(*arguments):
        small_disk.refuse(errno.ENOSPC)
        build(*arguments)

    def saving(self, *arguments):
        if self.state.global_step == 6:
            small_disk.refuse(errno.ENOSPC)
        save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(targets_module, "build", building)
        fails(kit.train, config, data, at_once=False)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.DistilTrainer, "_save_checkpoint", saving)
        fails(kit.train, config, data, at_once=False)
    assert kit.last_checkpoint(config.output_dir / "checkpoints").endswith("checkpoint-3")
    trained = kit.train(config, data)
    fails(evaluate, trained, data)
    evaluations = evaluate(trained, data)
    fails(record_run, trained, data, evaluations)
    assert faults.timeless(record_run(trained, data, evaluations)) == faults.timeless(undisturbed)


def test_read_only_outputs_are_one_sentence_in_each_call(study, small_disk, fails):
    config = study("zero_shot")
    data = load_data(config)
    undisturbed = complete(config)
    small_disk.clear()
    trained = kit.train(config, data)
    evaluations = evaluate(trained, data)
    for call, *arguments in (
        (write_data_report, config, data),
        (kit.train, config, data),
        (evaluate, trained, data),
        (record_run, trained, data, evaluations),
    ):
        fails(call, *arguments, number=errno.EROFS)
    assert faults.timeless(record_run(trained, data, evaluations)) == faults.timeless(undisturbed)


def test_a_folder_that_disappears_during_a_run_is_one_sentence(study, monkeypatch):
    config = study("clsr")
    data = load_data(config)
    undisturbed = complete(config)
    shutil.rmtree("outputs")
    gone = f"{config.output_dir}/{CLAIM} is gone .*mount the drive again"
    with monkeypatch.context() as patch:
        step = trainer.DistilTrainer.training_step

        def stepped(self, *args, **kwargs):
            if self.state.global_step == 4:
                shutil.rmtree("outputs")
            return step(self, *args, **kwargs)

        patch.setattr(trainer.DistilTrainer, "training_step", stepped)
        with pytest.raises(UserError, match=gone):
            kit.train(config, data)
    trained = kit.train(config, data)
    with monkeypatch.context() as patch:
        transcribe = "distilwhisper_lib.evaluation.decoding.transcribe_batch"
        plain = sys.modules["distilwhisper_lib.evaluation.decoding"].transcribe_batch
        patch.setattr(transcribe, lambda *a, **k: shutil.rmtree("outputs", True) or plain(*a, **k))
        with pytest.raises(UserError, match=gone):
            evaluate(trained, data)
    assert faults.timeless(complete(config)) == faults.timeless(undisturbed)
    shutil.rmtree(config.results_dir)  # made again from the run's folder
    assert complete(config)["run_id"] == config.run_id
    assert (config.results_dir / "runs" / f"{config.run_id}.json").is_file()


def test_what_torch_and_safetensors_say_of_a_disk_becomes_a_sentence(tmp_path):
    from safetensors.torch import load_file, save_file

    lost = tmp_path / "lost" / "a.pt"
    for call in (
        lambda: torch.save({"a": torch.zeros(3)}, lost),
        lambda: save_file({"a": torch.zeros(3)}, lost),
        lambda: load_file(lost),
        lambda: lost.read_bytes(),
    ):
        with (
            pytest.raises(UserError, match=f"^{lost} is gone .* set x to y$"),
            files.told(lost, "set x to y"),
        ):
            call()
    for other in (RuntimeError("size mismatch"), OSError("no such model"), ValueError("no")):
        with pytest.raises(type(other), match=str(other)) as raised, files.told(lost):
            raise other
        assert not isinstance(raised.value, UserError)


# Two at once -----------------------------------------------------------------------------------


def test_of_two_on_the_same_run_one_waits_and_reads_back(study, capsys, monkeypatch):
    config = study("clsr")
    data = load_data(config)
    go_on, trained, begun, found = trainer.DistilTrainer.go_on, [], threading.Event(), []

    def going_on(self, checkpoint):
        begun.set()
        until = time.monotonic() + 30
        while "waiting" not in capsys.readouterr().out:
            assert time.monotonic() < until
            time.sleep(0.02)
        trained.append(self)
        go_on(self, checkpoint)

    def later():
        begun.wait()
        found.append(kit.train(config, data).training)

    monkeypatch.setattr(trainer.DistilTrainer, "go_on", going_on)
    other = threading.Thread(target=later)
    other.start()
    summary = kit.train(config, data).training
    other.join()
    assert found == [summary] and len(trained) == 1


def test_a_lock_dies_with_its_owner_and_a_helper_takes_none(study, monkeypatch, capsys):
    config = study("clsr")
    script = (
        "import os, sys; from pathlib import Path; from distilwhisper_lib.io.files import alone\n"
        f"with alone(Path({str(config.output_dir)!r}), 'training', '.call.lock'):\n"
        "    print('held', flush=True); os.kill(os.getpid(), 9)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert run.returncode == -9 and run.stdout == b"held\n"
    with run_folder_alone(config, "training"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        with run_folder_alone(config, "training"):
            pass
    assert capsys.readouterr().out == ""


def test_what_a_killed_process_left_half_written_is_removed(study):
    config = study("zero_shot")
    data = load_data(config)
    runs = config.results_dir / "runs"
    mine = [config.output_dir / ".a.jsonl.x1.tmp", runs / f".{config.run_id}.json.x2.tmp"]
    other = runs / ".js-ca-s7-00000000.json.x3.tmp"
    for path in (*mine, other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    kit.train(config, data)
    assert [path.exists() for path in (*mine, other)] == [False, False, True]

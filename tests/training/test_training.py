"""One train() for all methods: what trains, what is saved, and that resuming changes nothing."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from distilwhisper_lib import UserError
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.model import loading
from distilwhisper_lib.training import loop as kit
from distilwhisper_lib.training import trainer


@pytest.fixture
def study(study_of):
    """Factory of (config, data)."""
    configured = study_of(clips=6, epochs=2)

    def make(method, **overrides):
        config = configured(method, **overrides)
        return config, load_data(config)

    return make


@pytest.mark.parametrize("method", ["full", "lora", "clsr", "kl", "js"])
def test_each_method_trains_its_own_weights_and_saves_only_them(method, study, processor):
    config, data = study(method)
    base, _ = loading.load_model("student")
    before = {n: p.clone() for n, p in base.named_parameters()}
    trained = kit.train(config, data)
    moved = set()
    for name, parameter in trained.model.named_parameters():
        name = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if name not in before or not torch.equal(parameter, before[name]):
            moved.add(name)
    trainable = set(kit.trained_tensors(trained.model))
    if method == "full":
        assert "model.encoder.layers.0.fc1.weight" in moved
        assert "model.encoder.embed_positions.weight" not in moved  # Whisper's fixed sinusoids
    elif method == "lora":
        assert all("lora_" in name for name in moved)
        assert len(trainable) == 4 * 2 * 2  # layers x (fc1, fc2) x (A, B)
    else:
        assert all(".clsr.ca." in name for name in moved)
        assert len(trainable) == 4 * 7
    summary = trained.training
    assert summary["steps"] == 6
    assert summary["trainable_parameters"] == sum(
        p.numel() for p in trained.model.parameters() if p.requires_grad
    )
    assert len(summary["validation"]) == 2
    assert [e["step"] for e in summary["log"]] == [1, 2, 3, 4, 5, 6]
    parts = {k for k in summary["log"][0] if k.startswith("loss_")}
    assert parts == {"loss_ce", "loss_gate", "loss_distil"}
    assert (summary["log"][0]["loss_distil"] > 0) is (method in ("kl", "js"))
    files = {p.relative_to(config.output_dir).parts[0] for p in config.output_dir.rglob("*")}
    artifact = {"full": "model", "lora": "adapter"}.get(method, "expert.catalan.safetensors")
    assert files == {artifact, "training.json", "data.json"}


@pytest.mark.parametrize("method", ["clsr", "lora"])
def test_a_finished_run_is_read_back(method, study, monkeypatch):
    config, data = study(method)
    first = kit.train(config, data)
    monkeypatch.setattr(kit.DistilTrainer, "train", None)  # would fail if called
    again = kit.train(config, data)
    assert again.training == first.training
    features = torch.randn(1, 80, 300)
    arguments = dict(input_features=features, language="ca", task="transcribe", max_new_tokens=6)
    assert again.model.generate(**arguments).tolist() == first.model.generate(**arguments).tolist()


@pytest.mark.parametrize("method", ["full", "lora", "js"])
@pytest.mark.parametrize("step", [4, 5])  # in the second epoch, after the first checkpoint
def test_an_interrupted_run_resumes_to_the_same_weights_and_log(method, step, study, monkeypatch):
    config, data = study(method)
    undisturbed = kit.train(config, data).training
    (config.output_dir / "training.json").unlink()

    compute_loss = kit.DistilTrainer.compute_loss

    def killed(self, *args, **kwargs):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(kit.DistilTrainer, "compute_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        kit.train(config, data)
    checkpoints = config.output_dir / "checkpoints"
    saved = load_file(checkpoints / "checkpoint-3" / trainer.WEIGHTS)
    fresh = loading.prepare(loading.load_model("student", gate_dim=8)[0], config)
    assert saved.keys() == kit.trained_tensors(fresh).keys()
    monkeypatch.setattr(kit.DistilTrainer, "compute_loss", compute_loss)
    resumed = kit.train(config, data).training
    for volatile in ("seconds", "peak_memory_bytes"):
        resumed.pop(volatile), undisturbed.pop(volatile)
    for summary in (resumed, undisturbed):  # the second of two runs finds the targets of the first
        summary.get("teacher_targets", {}).pop("built", None)
    for log in (resumed["log"], undisturbed["log"]):
        for entry in log:
            entry.pop("grad_norm", None)
    assert resumed == undisturbed
    assert not checkpoints.exists()


def test_accumulated_micro_batches_report_the_same_loss(study):
    """transformers multiplies Whisper's loss by the accumulation steps unless told otherwise."""
    losses = []
    for micro in (4, 1):
        config, data = study("full", batch_size=4, micro_batch=micro, max_steps=1)
        data.train["text"] = "bon dia"  # equally many tokens in each micro-batch
        losses.append(kit.train(config, data).training["log"][0]["loss"])
        (config.output_dir / "training.json").unlink()
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_training_lowers_the_loss(study):
    config, data = study("clsr", epochs=30, learning_rate=1e-2, skip=0.0, gate_noise=0.0)
    log = kit.train(config, data).training["log"]
    assert log[-1]["loss_ce"] < 0.7 * log[0]["loss_ce"]


def test_both_conventions_train_and_differ(study):
    """Same seed, same noise: the authors' first step is noisy and counts padding."""
    logs = {}
    for conventions in ("corrected", "authors"):
        config, data = study("js", conventions=conventions, max_steps=1)
        logs[conventions] = kit.train(config, data).training["log"][0]
    assert logs["authors"]["loss_distil"] != logs["corrected"]["loss_distil"]
    assert logs["authors"]["gate_mean"] != logs["corrected"]["gate_mean"]
    weighted = 0.5 / 1.41**2 * (logs["authors"]["loss_ce"] + logs["authors"]["loss_gate"])
    weighted += 0.5 * logs["authors"]["loss_distil"]
    assert logs["authors"]["loss"] == pytest.approx(weighted, rel=1e-4)


def test_activation_checkpointing_gives_the_same_weights(study):
    hashes = []
    for checkpointing in (False, True):
        config, data = study("js", activation_checkpointing=checkpointing, max_steps=2)
        hashes.append(kit.train(config, data).training["log"])
        (config.output_dir / "training.json").unlink()
    for plain, recomputed in zip(*hashes, strict=True):
        assert recomputed["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        assert recomputed["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)


def test_a_teacher_of_another_vocabulary_is_refused_before_training(study, tmp_path, tiny_model):
    config, data = study("js")
    other = tiny_model(seed=1)
    other.resize_token_embeddings(other.config.vocab_size + 8)
    other.save_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match="the teacher has vocab_size"):
        kit.train(config, data)
    assert not config.output_dir.exists()


def test_changed_data_is_not_answered_with_old_results(study, tmp_path):
    config, data = study("clsr", max_steps=1)
    kit.train(config, data)
    path = tmp_path / "speech" / "metadata.csv"
    path.write_text(path.read_text().replace("train frase a", "train frase nova"))
    with pytest.raises(UserError, match="data of run .* has changed since the run began"):
        kit.train(config, load_data(config))
    shutil.rmtree(config.output_dir)
    kit.train(config, load_data(config))


def test_a_token_limit_beyond_the_model_is_refused_before_training(study):
    config, data = study("clsr", max_new_tokens=61)
    with pytest.raises(UserError, match="max_new_tokens=61 is out of range: .* room for 60"):
        kit.train(config, data)
    assert not config.output_dir.exists()


def test_training_time_goes_on_after_an_interruption(tmp_path):
    note = tmp_path / "elapsed.json"
    assert trainer.Clock(note).seconds() < 100
    note.write_text("100.5")
    clock = trainer.Clock(note)
    assert clock.seconds() > 100
    clock.on_save(None, None, None)
    assert json.loads(note.read_text()) >= 100.5

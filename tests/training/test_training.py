"""One train() for all methods: what trains, what is saved, and that resuming changes nothing."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from distilwhisper_lib import UserError
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.model import loading
from distilwhisper_lib.results.provenance import provenance
from distilwhisper_lib.training import loop as kit
from distilwhisper_lib.training import stages as staged
from distilwhisper_lib.training import trainer
from distilwhisper_lib.training.stages import Stage, stages


@pytest.fixture
def made(monkeypatch):
    """What the code says of itself: not committed, so that no run finds another's experts."""
    made = provenance() | {"commit": "a" * 40, "dirty": True}
    monkeypatch.setattr(staged, "provenance", lambda: made)
    return made


@pytest.fixture
def study(study_of, made):
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


@pytest.mark.parametrize(
    ("settings", "each", "layers"),
    [
        ({}, 2, ("fc1", "fc2")),
        ({"lora_layers": "attention"}, 2, ("q_proj", "k_proj", "v_proj", "out_proj")),
        ({"lora_layers": "all"}, 2, ("fc1", "fc2", "q_proj", "k_proj", "v_proj", "out_proj")),
        ({"adapter": "dora"}, 3, ("fc1", "fc2")),
        ({"adapter": "token"}, 1, ("embed_tokens",)),
    ],
)
def test_adapters_train_what_their_settings_say(settings, each, layers, study, processor):
    config, data = study("lora", **settings)
    run = kit.train(config, data)
    counts = Counter(
        next(part for part in name.split(".") if part in layers)
        for name in kit.trained_tensors(run.model)
    )
    modules = [name.rsplit(".", 1)[-1] for name, _ in run.model.get_base_model().named_modules()]
    assert counts == {name: each * modules.count(name) for name in layers}
    if settings.get("adapter") == "token":
        assert run.training["trainable_parameters"] == run.model.config.d_model
        row = processor.tokenizer.convert_tokens_to_ids("<|ca|>")
        before = loading.load_model("student")[0].get_input_embeddings().weight
        after = run.model.merge_and_unload().get_input_embeddings().weight
        assert (before != after).any(1).nonzero().flatten().tolist() == [row]


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("distil", ["kl", "js"])
def test_a_baseline_learns_from_the_teacher_as_experts_do(method, distil, study):
    plain, data = study(method)
    config, _ = study(method, distil=distil)
    run = kit.train(config, data)
    first = run.training["log"][0]
    assert first["loss_distil"] > 0 and first["loss_gate"] == 0
    assert first["loss"] == pytest.approx(first["loss_ce"] + 2 * first["loss_distil"], abs=1e-5)
    assert run.models["teacher"] and run.training["teacher_targets"]["mode"] == "hidden"
    alone = kit.train(plain, data)
    assert alone.models["teacher"] is None
    assert alone.training["weights_sha256"] != run.training["weights_sha256"]
    # The first step's loss is the student's own, which no method has changed yet.
    same = {"label_smoothing": 0.0, "lora_dropout": 0.0, "precision": "fp32"}
    losses = [
        kit.train(study(m, distil=distil, **same)[0], data).training["log"][0]["loss_distil"]
        for m in ("full", "lora")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_experts_are_taught_by_their_method_alone(study):
    for method, distil in (("clsr", "js"), ("kl", "js")):
        with pytest.raises(UserError, match=f"distil='js' with method '{method}': expected it of"):
            study(method, distil=distil)
    with pytest.raises(UserError, match="lora_layers='all' with adapter='token', which changes no"):
        study("lora", adapter="token", lora_layers="all")
    assert study("js", distil="js")[0].run_id == study("js")[0].run_id
    assert study("clsr", adapter="dora")[0].run_id == study("clsr")[0].run_id


def wers(monkeypatch, *told):
    """Validations that find these error rates, one after another."""
    left = iter(told)
    monkeypatch.setattr(
        trainer.DistilTrainer, "_validate", lambda _: {"wer": next(left), "cer": 0.5}
    )


def test_the_mean_of_the_best_checkpoints_is_kept_and_heard(study, monkeypatch):
    config, data = study("lora", epochs=4, averaged=2)
    wers(monkeypatch, 0.5, 0.3, 0.9, 0.4, 0.2)
    seen = {}
    save = trainer.DistilTrainer._save

    def remember(self, *args, **kwargs):
        seen[self.state.global_step] = {
            name: tensor.clone() for name, tensor in kit.trained_tensors(self.model).items()
        }
        save(self, *args, **kwargs)

    monkeypatch.setattr(trainer.DistilTrainer, "_save", remember)
    run = kit.train(config, data)
    mean = {name: (seen[6][name] + seen[12][name]) / 2 for name in seen[6]}
    torch.testing.assert_close(kit.trained_tensors(run.model), mean)
    assert run.training["mean"] == {"mean_of": [6, 12], "wer": 0.2, "cer": 0.5}
    assert run.training["best_step"] == 6


def test_patience_ends_a_training_and_is_not_asked_twice(study, monkeypatch):
    config, data = study("lora", epochs=6, patience=2)
    wers(monkeypatch, 0.5, 0.3, 0.3, 0.4)
    assert kit.train(config, data).training["steps"] == 4 * 3

    # Killed after its last checkpoint, before it was read: nothing is trained any more.
    shutil.rmtree(config.output_dir)
    wers(monkeypatch, 0.5, 0.3, 0.3, 0.4)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.DistilTrainer, "_load_best_model", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kit.train(config, data)
    monkeypatch.setattr(trainer.DistilTrainer, "compute_loss", None)
    assert kit.train(config, data).training["steps"] == 4 * 3


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["clsr", "lora"])
def test_a_finished_run_is_read_back(method, study, monkeypatch):
    config, data = study(method)
    first = kit.train(config, data)
    monkeypatch.setattr(trainer.DistilTrainer, "train", None)  # would fail if called
    again = kit.train(config, data)
    assert again.training == first.training
    features = torch.randn(1, 80, 300)
    arguments = dict(input_features=features, language="ca", task="transcribe", max_new_tokens=6)
    assert again.model.generate(**arguments).tolist() == first.model.generate(**arguments).tolist()


PACKED = {"pack": True, "batch_size": 1, "micro_batch": 1}  # three windows, a step each


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("full", {}),
        ("lora", {}),
        ("lora", {"distil": "js", "averaged": 2, "patience": 1}),
        ("js", {}),
        ("js", PACKED),
    ],
)
@pytest.mark.parametrize("step", [4, 5])  # in the second epoch, after the first checkpoint
def test_an_interrupted_run_resumes_to_the_same_weights_and_log(
    method, settings, step, study, monkeypatch
):
    config, data = study(method, **settings)
    undisturbed = kit.train(config, data).training
    (config.output_dir / "training.json").unlink()

    compute_loss = trainer.DistilTrainer.compute_loss

    def killed(self, *args, **kwargs):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(trainer.DistilTrainer, "compute_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        kit.train(config, data)
    checkpoints = config.output_dir / "checkpoints"
    saved = load_file(checkpoints / "checkpoint-3" / trainer.WEIGHTS)
    fresh = loading.prepare(loading.load_model("student", gate_dim=8)[0], config)
    assert saved.keys() == kit.trained_tensors(fresh).keys()
    monkeypatch.setattr(trainer.DistilTrainer, "compute_loss", compute_loss)
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


DECISIVE = {"recipe": "decisive", "expert_rank": 4, "router_epochs": 1}


def experts_and_gates(model):
    tensors = kit.trained_tensors(model)
    return tuple(
        {n: t.clone() for n, t in tensors.items() if (".gate." in n) is gates}
        for gates in (False, True)
    )


def test_experts_come_first_and_their_gates_after(study, monkeypatch):
    config, data = study("js", **DECISIVE, learning_rate=1e-2)
    ended, modes = [], []
    go_on, loss = trainer.DistilTrainer.go_on, trainer.DistilTrainer.compute_loss

    def watched(self, *args):
        ended.append(experts_and_gates(self.model.eval()))
        go_on(self, *args)
        self.model.freeze_all_but_expert("ca")
        ended.append(experts_and_gates(self.model))

    def heard(self, model, *args, **kwargs):
        found = loss(self, model, *args, return_outputs=True, **kwargs)
        gates = torch.cat([g.values.flatten() for g in found[1].gates.encoder])
        modes.append((self.stage.name, gates.unique().tolist()))
        return found[0]

    monkeypatch.setattr(trainer.DistilTrainer, "go_on", watched)
    monkeypatch.setattr(trainer.DistilTrainer, "compute_loss", heard)
    run = kit.train(config, data)
    (experts, gates), (experts_1, gates_1), _, (experts_2, gates_2) = ended

    def same(a, b):
        return all(torch.equal(a[name], b[name]) for name in a)

    assert same(gates, gates_1) and not same(experts, experts_1)
    assert same(experts_1, experts_2) and not same(gates_1, gates_2)
    assert modes[:6] == [("experts", [1.0])] * 6
    assert all(name == "router" and set(v) <= {0.0, 1.0} for name, v in modes[6:])
    assert len(modes) == 9 and any(len(values) == 2 for _, values in modes[6:])
    summary = run.training
    assert summary["steps"] == 9 and summary["epochs"] == 3 and summary["best_step"] == 9
    assert [v["step"] for v in summary["validation"]] == [3, 6, 9]
    assert [v["gate_hard"] == 1 for v in summary["validation"]] == [True, True, False]
    assert [e["step"] for e in summary["log"]] == list(range(1, 10))
    assert all((e["loss_gate"] == 0) is (e["step"] <= 6) for e in summary["log"])
    assert run.model.rank_of("ca") == 4
    assert kit.train(config, data).training == summary  # read back
    assert not (config.output_dir / "checkpoints").exists()


@pytest.mark.parametrize(("step", "again"), [(4, 9), (10, 3)])  # after an epoch of either stage
def test_a_training_of_two_stages_resumes_in_either(step, again, study, monkeypatch):
    config, data = study("clsr", **DECISIVE | {"router_epochs": 2})
    undisturbed = kit.train(config, data).training
    (config.output_dir / "training.json").unlink()
    loss, seen = trainer.DistilTrainer.compute_loss, []

    def killed(self, *args, **kwargs):
        seen.append(self.stage.name)
        if len(seen) == step + 1:
            raise KeyboardInterrupt
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(trainer.DistilTrainer, "compute_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        kit.train(config, data)
    resumed = kit.train(config, data).training
    assert len(seen) == step + 1 + again
    for summary in (resumed, undisturbed):
        for volatile in ("seconds", "peak_memory_bytes"):
            summary.pop(volatile)
        for entry in summary["log"]:
            entry.pop("grad_norm", None)
    assert resumed == undisturbed


def test_runs_that_differ_in_their_gates_train_experts_once(study, made, monkeypatch):
    alone, data = study("clsr", **DECISIVE, budget=0.1)
    expected = kit.train(alone, data).training
    assert not staged.FOLDER.exists()
    shutil.rmtree(alone.output_dir)
    made["dirty"] = False
    steps, loss = [], trainer.DistilTrainer.compute_loss

    def counted(self, *args, **kwargs):
        steps.append(self.stage.name)
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(trainer.DistilTrainer, "compute_loss", counted)
    kit.train(*study("clsr", **DECISIVE, budget=0.9))
    assert steps == ["experts"] * 6 + ["router"] * 3
    kept = {path.name for path in staged.FOLDER.glob("*/checkpoint-*/*")}
    assert kept == {"sealed.json", "trainer_state.json", trainer.WEIGHTS}
    found = kit.train(alone, data).training
    assert steps == ["experts"] * 6 + ["router"] * 6
    assert found["weights_sha256"] == expected["weights_sha256"]
    for summary in (found, expected):
        for volatile in ("seconds", "peak_memory_bytes"):
            summary.pop(volatile)
    assert found == expected

    # A teacher that comes in later is none to them; another seed, clip or commit is another's.
    kit.train(*study("js", **DECISIVE, distil_stage="router"))
    assert steps.count("experts") == 6
    made["commit"] = "b" * 40
    kit.train(*study("clsr", **DECISIVE, budget=0.5))
    kit.train(*study("js", **DECISIVE))
    kit.train(*study("clsr", **DECISIVE, expert_dropout=0.5))
    assert steps.count("experts") == 6 * 4


@pytest.mark.parametrize(("stage", "taught"), [("experts", [1, 0]), ("router", [0, 1])])
def test_a_teacher_can_teach_in_one_stage_alone(stage, taught, study):
    config, data = study("kl", **DECISIVE | {"epochs": 1}, distil_stage=stage)
    log = kit.train(config, data).training["log"]
    assert [int(log[i]["loss_distil"] > 0) for i in (0, 3)] == taught


def test_gates_can_have_a_learning_rate_of_their_own(study, monkeypatch):
    rates = Counter()
    init = torch.optim.lr_scheduler.LambdaLR.__init__

    def watched(self, optimizer, *args, **kwargs):
        for group in optimizer.param_groups:  # with decay and without
            rates[round(group["lr"], 9)] += len(group["params"])
        init(self, optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.lr_scheduler.LambdaLR, "__init__", watched)
    config, data = study("clsr", gate_rate=10.0, learning_rate=1e-3, max_steps=1)
    run = kit.train(config, data)
    assert rates == {1e-3: 4 * 4, 1e-2: 4 * 3}
    assert run.training["steps"] == 1


def test_gates_open_for_a_while_and_hard_later_in_one_stage(study, monkeypatch):
    config, data = study(
        "clsr", expert_warmup=0.5, gate_training="straight_through", straight_through_from=0.8
    )
    (stage,) = stages(config, config.output_dir)
    found = [stage.gates(progress) for progress in (0.0, 0.49, 0.5, 0.79, 0.8)]
    assert found == [("open", False)] * 2 + [("learned", False)] * 2 + [("learned", True)]
    assert stage.heard == "learned"
    soft = Stage(dataclasses.replace(config, gate_mode="soft"), "experts", config.output_dir)
    assert soft.heard == "soft"


@pytest.mark.parametrize("mode", ["soft", "open"])
def test_the_gates_of_inference_go_with_the_run_and_its_expert_file(mode, study):
    config, data = study("clsr", gate_mode=mode, max_steps=3, learning_rate=1e-2)
    run = kit.train(config, data)
    assert run.model.config.gate_mode == mode
    plain = loading.load_model("student", gate_dim=8)[0]
    plain.load_experts("ca", config.output_dir)
    assert plain.config.gate_mode == mode
    features = torch.randn(1, 80, 300)
    prompt = torch.tensor([[5, 6, 7]])
    tokens = dict(decoder_input_ids=prompt, expert_ids=torch.tensor([0]))
    said = plain(features, **tokens).logits
    assert torch.equal(said, plain(features, **tokens, gate_mode=mode).logits)
    assert not torch.equal(said, plain(features, **tokens, gate_mode="closed").logits)


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


@pytest.mark.parametrize("pack", [False, True])
def test_activation_checkpointing_gives_the_same_weights(study, pack):
    hashes = []
    for checkpointing in (False, True):
        config, data = study("js", activation_checkpointing=checkpointing, pack=pack, max_steps=2)
        hashes.append(kit.train(config, data).training["log"])
        (config.output_dir / "training.json").unlink()
    for plain, recomputed in zip(*hashes, strict=True):
        assert recomputed["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        assert recomputed["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)


def test_a_teacher_with_nameless_tokens_is_refused_before_training(study, tmp_path, tiny_model):
    config, data = study("js")
    other = tiny_model(seed=1)
    other.resize_token_embeddings(other.config.vocab_size + 8)
    other.save_pretrained(tmp_path / "teacher")
    with pytest.raises(
        UserError, match="the teacher has 468 tokens in its config.json and names f"
    ):
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


def test_few_clips_are_gone_through_again_until_an_epoch_has_its_number(study):
    config, data = study("clsr", epochs=1, epoch_clips=13, batch_size=4, micro_batch=2)
    trained = kit.train(config, data)  # 6 clips, twice
    assert trained.training["steps"] == 3 and trained.training["epochs"] == 1
    assert [config.passes(clips) for clips in (6, 8, 9, 13, 500)] == [2, 2, 1, 1, 1]


def test_a_training_says_after_each_epoch_how_long_it_has_left(study, capsys, monkeypatch):
    config, data = study("clsr", epochs=2, router_epochs=2, expert_warmup=1.0, batch_size=6)
    begun = trainer.TimeLeft.on_train_begin

    def ten_minutes_ago(self, *args, **kwargs):
        begun(self, *args, **kwargs)
        self.begin -= 600

    monkeypatch.setattr(trainer.TimeLeft, "on_train_begin", ten_minutes_ago)
    kit.train(config, data)
    lines = [line for line in capsys.readouterr().out.splitlines() if "left" in line]
    assert lines == [
        "experts, epoch 1 of 2: about 30 minutes of training left",
        "experts, epoch 2 of 2: about 10 minutes of training left",
        "router, epoch 1 of 2: about 10 minutes of training left",
        "router, epoch 2 of 2: a minute or less of training left",
    ]
    assert not (config.output_dir / "progress.txt").exists()


def test_training_time_goes_on_after_an_interruption(tmp_path):
    note = tmp_path / "elapsed.json"
    assert trainer.Clock(note).seconds() < 100
    note.write_text("100.5")
    clock = trainer.Clock(note)
    assert clock.seconds() > 100
    clock.on_save(None, None, None)
    assert json.loads(note.read_text()) >= 100.5

"""Precision by machine, hardware profiles, and bfloat16 training on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distilwhisper_lib import UserError
from distilwhisper_lib.config.presets import PRESETS, PROFILES
from distilwhisper_lib.config.settings import METHODS, resolve
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.hardware import multiplies_bf16, precision_here
from distilwhisper_lib.losses.divergences import LossParts
from distilwhisper_lib.model import clsr
from distilwhisper_lib.training import loop as kit
from distilwhisper_lib.training import trainer

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
MACHINES = {  # (a GPU, what of it multiplies bfloat16): what each setting becomes
    "A100": (True, "cuda", ("bf16", "fp32", "bf16", "fp16")),
    "T4": (True, "", ("fp16", "fp32", "bf16", "fp16")),
    "CPU with AMX": (False, "amx_bf16", ("bf16", "fp32", "bf16", "fp32")),
    "CPU with AVX-512 BF16": (False, "avx512_bf16", ("bf16", "fp32", "bf16", "fp32")),
    "CPU with AVX-512": (False, "avx512_f", ("fp32", "fp32", "bf16", "fp32")),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_precision_by_machine(monkeypatch, machine):
    gpu, units, expected = MACHINES[machine]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    # A T4 says that it supports bfloat16 when emulation counts.
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or units == "cuda",
    )
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {units: True})
    for setting, here in zip(PRECISIONS, expected, strict=True):
        assert precision_here(setting) == here
    assert multiplies_bf16() is (expected[0] == "bf16")


def test_a_cpu_without_known_capabilities_stays_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert precision_here("auto") == "fp32"


@pytest.mark.parametrize("hardware", PROFILES)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_a_profile_keeps_the_batch_and_gives_way_to_the_user(hardware, preset, method):
    plain = resolve(method, preset, "ca")
    config = resolve(method, preset, "ca", overrides={"hardware": hardware})
    assert config.batch_size == plain.batch_size
    assert config.batch_size % config.micro_batch == 0
    mine = {"hardware": hardware, "precision": "fp32", "micro_batch": 2, "eval_batch_size": 3}
    config = resolve(method, preset, "ca", overrides=mine)
    assert {name: getattr(config, name) for name in mine} == mine


def test_profiles_by_name():
    t4 = resolve("js", "cv10k", "ca", overrides={"hardware": "t4"})
    assert (t4.micro_batch, t4.batch_size, t4.precision) == (8, 16, "fp16")
    assert resolve("lora", "cv10k", "ca", overrides={"hardware": "l4"}).precision == "bf16"
    assert resolve("js", overrides={"hardware": "cpu"}).precision == "auto"
    assert resolve("js", overrides={"hardware": "a100", "batch_size": "20"}).micro_batch == 10
    with pytest.raises(UserError, match="unknown hardware 'h200': expected one of none, auto, cpu"):
        resolve("js", overrides={"hardware": "h200"})
    with pytest.raises(UserError, match="batch_size=0 is out of range"):
        resolve("js", overrides={"hardware": "t4", "batch_size": 0})


def test_the_guide_tells_the_profiles():
    guide = (Path(__file__).parents[2] / "notebooks/GUIDE.md").read_text(encoding="utf-8")
    for name, profile in PROFILES.items():
        row = next(line for line in guide.splitlines() if line.startswith(f"| `{name}`"))
        cells = [cell.strip() for cell in row.split("|")[2:-1]]
        if profile:
            assert cells[:2] == [str(profile["micro_batch"]), str(profile["eval_batch_size"])]
            assert cells[2].startswith(profile["precision"])
            assert cells[3] == ("on" if profile["activation_checkpointing"] else "off")


def test_of_a_profile_precision_and_rows_at_once_are_part_of_the_run_id():
    plain = resolve("js")
    usual = {"precision": plain.precision, "micro_batch": plain.micro_batch}
    same = resolve("js", overrides={"hardware": "t4", **usual})
    assert same.run_id == plain.run_id
    for name in usual:
        other = {k: v for k, v in usual.items() if k != name}
        assert resolve("js", overrides={"hardware": "t4", **other}).run_id != plain.run_id
    again = resolve("js", overrides=same.overrides())
    assert again == same


@pytest.fixture
def study(study_of):
    make_config = study_of(8, epochs=6, learning_rate=1e-2, skip=0.0, gate_noise=0.0)

    def make(method, **overrides):
        config = make_config(method, **overrides)
        return config, load_data(config)

    return make


def test_bfloat16_trains_on_a_cpu_with_gates_and_losses_in_float32(study, monkeypatch):
    seen = {}

    def note(name, function):
        def noting(*arguments, **options):
            result = function(*arguments, **options)
            if torch.is_grad_enabled():
                values = result if isinstance(result, LossParts) else [result]
                seen.setdefault(name, set()).update(v.dtype for v in values if v is not None)
            return result

        return noting

    logs = {}
    for precision in ("fp32", "bf16"):
        with monkeypatch.context() as patch:
            if precision == "bf16":
                patch.setattr(clsr.Gate, "forward", note("gate", clsr.Gate.forward))
                patch.setattr(clsr.Expert, "forward", note("expert", clsr.Expert.forward))
                patch.setattr(trainer, "loss_parts", note("losses", trainer.loss_parts))
            config, data = study("js", precision=precision)
            trained = kit.train(config, data)
        assert trained.training["precision"] == precision
        assert {p.dtype for p in trained.model.parameters()} == {torch.float32}
        logs[precision] = trained.training["log"]
    assert seen == {"gate": {torch.float32}, "expert": {torch.bfloat16}, "losses": {torch.float32}}
    first, last = logs["bf16"][0]["loss"], logs["bf16"][-1]["loss"]
    assert last < 0.9 * first
    assert first == pytest.approx(logs["fp32"][0]["loss"], rel=0.02)
    assert last == pytest.approx(logs["fp32"][-1]["loss"], rel=0.1)
    assert logs["bf16"] != logs["fp32"]


def test_a_model_trained_in_half_precision_transcribes_as_it_is_loaded_again(study):
    """Autocast belongs to training: it must not stay around the model's forward."""
    config, data = study("clsr", precision="bf16", max_steps=2)
    features = torch.randn(1, 80, 300)
    prompt = torch.tensor([[1, 2, 3]])
    outputs = []
    for _ in ("trained", "loaded again"):
        model = kit.train(config, data).model
        with torch.no_grad():
            outputs.append(model(features, prompt).logits)
    assert torch.equal(*outputs)


def test_the_public_lora_recipe_runs_on_a_cpu_in_float32(study, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, data = study("lora", precision="fp16", max_steps=1)
    assert kit.train(config, data).training["precision"] == "fp32"

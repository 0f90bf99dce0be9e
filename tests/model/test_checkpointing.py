"""Activation checkpointing: the same gradients from a second run of each layer, and less memory."""

from __future__ import annotations

import pytest
import torch

from distilwhisper_lib.config.settings import resolve
from distilwhisper_lib.model.loading import model_settings, prepare

RANDOM = dict(skip=0.5, dropout=0.1, attention_dropout=0.1, activation_dropout=0.1)


def step(tiny_model, token, method, checkpointing, autocast=False):
    """Gradients, loss, gates and bytes kept for the backward pass, of one step of a method."""
    config = resolve(method, overrides={"lora_dropout": 0.1, "gate_dim": 8, "skip": 0.5})
    settings = RANDOM | {
        name: value
        for name, value in model_settings(config).items()
        if name not in ("gate_dim", "window_seconds", "language")
    }
    base = tiny_model(**settings)
    torch.manual_seed(1)
    model = prepare(base, config).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide the gradient of lora_A
            torch.nn.init.normal_(parameter, std=0.1)
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    features = torch.randn(4, 80, 300, generator=torch.Generator().manual_seed(2))
    prompt = torch.full((4, 9), token("<|ca|>"))
    prompt[:, 0] = token("<|startoftranscript|>")
    torch.manual_seed(3)
    with (
        torch.profiler.profile(profile_memory=True) as profile,
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        out = model(
            input_features=features, decoder_input_ids=prompt, language_ids=prompt[:, 1],
            gate_noise=5.0, output_gates=True, use_cache=False,
        )  # fmt: skip
        loss = out.logits.float().logsumexp(-1).mean()
        for gates in out.gates.encoder + out.gates.decoder:
            loss = loss + (gates.values.mean() - 0.2) ** 2
    kept = sum(event.self_cpu_memory_usage for event in profile.key_averages())
    gates = [len(out.gates.encoder), len(out.gates.decoder)]
    loss.backward()
    assert [len(out.gates.encoder), len(out.gates.decoder)] == gates == [2, 2]
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return gradients, loss.detach(), out.gates, kept


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["clsr", "lora", "full"])
def test_gradients_are_the_same_and_less_is_kept(tiny_model, token, method, autocast):
    plain = step(tiny_model, token, method, False, autocast)
    again = step(tiny_model, token, method, True, autocast)
    assert torch.equal(plain[1], again[1])
    assert plain[0].keys() == again[0].keys() and plain[0]
    for name, gradient in plain[0].items():
        if gradient is None:  # of an expert that was left out
            assert again[0][name] is None
        else:
            torch.testing.assert_close(again[0][name], gradient, atol=1e-6, rtol=1e-4)
    assert any(g is not None and g.abs().sum() > 0 for g in plain[0].values())
    assert 0 < again[3] < 0.5 * plain[3]


def test_skips_and_noise_are_drawn_once(tiny_model, token):
    plain = step(tiny_model, token, "clsr", False)[2]
    again = step(tiny_model, token, "clsr", True)[2]
    pairs = list(zip(plain.encoder + plain.decoder, again.encoder + again.decoder, strict=True))
    assert {gates.skipped for gates, _ in pairs} == {True, False}
    for first, second in pairs:
        assert first.skipped == second.skipped
        assert torch.equal(first.values, second.values)


def test_the_gates_of_the_trace_carry_gradients(tiny_model, token):
    gradients = step(tiny_model, token, "clsr", True)[0]
    gates = {name: g for name, g in gradients.items() if ".gate." in name}
    assert len(gates) == 4 * 3
    assert all(g is not None and g.abs().sum() > 0 for g in gates.values())

"""What a step minimises, in closed form: the corrected convention and the authors' beside it."""

from __future__ import annotations

import math

import pytest
import torch

from distilwhisper_lib import resolve
from distilwhisper_lib.losses.chunked import States
from distilwhisper_lib.losses.divergences import gate_budget
from distilwhisper_lib.losses.objective import (
    Counted,
    budgeted,
    counted,
    gate_means,
    gate_noise,
    loss_parts,
)
from distilwhisper_lib.model.clsr import Gates, GateTrace
from distilwhisper_lib.speech.features import IGNORE

END = 9


def run_of(method="clsr", **overrides):
    return resolve(method, "cv3k", "ca", 1, overrides)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def states_of(logits):
    """Hidden states and a head that give just these logits."""
    return States(logits, torch.eye(logits.shape[-1]))


@pytest.fixture
def batch():
    """Two clips: 4 and 1 of 5 encoder positions hold audio, 3 and 2 of 3 inputs are text."""
    return {
        "audio_positions": torch.tensor([4, 1]),
        "decoder_input_ids": torch.tensor([[1, 2, 3], [1, 2, END]]),
        "labels": torch.tensor([[2, 3, END], [2, END, IGNORE]]),
    }


@pytest.fixture
def trace():
    encoder = [Gates(draw(i, 2, 5).sigmoid(), skipped=i == 1) for i in range(2)]
    decoder = [Gates(draw(9 + i, 2, 3).sigmoid(), skipped=False) for i in range(2)]
    return GateTrace(encoder, decoder)


def test_gate_noise_grows_with_training():
    run = run_of()
    assert [gate_noise(run, p) for p in (0.0, 0.5, 1.0, 1.2)] == [0.0, 2.5, 5.0, 5.0]


def test_the_authors_first_step_is_as_noisy_as_their_last():
    run = run_of(conventions="authors")
    assert [gate_noise(run, p) for p in (0.0, 0.1, 1.0)] == [5.0, 0.5, 5.0]


def test_only_audio_and_text_count(batch):
    heard, said = counted(run_of(), 5, batch, END)
    assert heard.sum(1).tolist() == [4, 1]
    assert heard[0].tolist() == [True] * 4 + [False]
    assert said.tolist() == [[True] * 3, [True, True, False]]
    assert counted(run_of(conventions="authors"), 5, batch, END) == Counted(None, None)


@pytest.mark.parametrize("scope", ["pooled", "side", "layer"])
def test_a_budget_holds_for_all_positions_for_each_side_or_for_each_layer(scope, batch, trace):
    run = run_of(budget_scope=scope, budget=0.3)
    masks = counted(run, 5, batch, END)
    layers = [
        [g.values[mask].tolist() for g in gates]
        for gates, mask in ((trace.encoder, masks.heard), (trace.decoder, masks.said))
    ]
    sides = [sum(side, []) for side in layers]
    groups = {"pooled": [sum(sides, [])], "side": sides, "layer": layers[0] + layers[1]}[scope]
    away = [abs(sum(group) / len(group) - 0.3) for group in groups]
    means = budgeted(run, trace, masks, gate_means(trace, masks))
    found = gate_budget(means, run.budget)
    assert found.item() == pytest.approx(sum(away) / len(away), rel=1e-5)


def test_while_gates_are_open_there_is_no_budget(batch):
    logits = draw(1, 2, 3, 12)
    parts = loss_parts(run_of(), states_of(logits), batch["labels"], None)
    assert parts.gate == 0 and parts.total == parts.ce


def test_gate_means_pool_layers_and_skipped_ones_too(batch, trace):
    means = gate_means(trace, counted(run_of(), 5, batch, END))
    encoder = [v for g in trace.encoder for v in [*g.values[0, :4].tolist(), g.values[1, 0].item()]]
    decoder = [v for g in trace.decoder for v in [*g.values[0].tolist(), *g.values[1, :2].tolist()]]
    assert len(encoder) == len(decoder) == 10
    assert means.gate_mean_encoder.item() == pytest.approx(sum(encoder) / 10, rel=1e-6)
    assert means.gate_mean_decoder.item() == pytest.approx(sum(decoder) / 10, rel=1e-6)
    assert means.gate_mean.item() == pytest.approx(sum(encoder + decoder) / 20, rel=1e-6)
    everything = torch.cat([g.values.flatten() for g in (*trace.encoder, *trace.decoder)])
    assert gate_means(trace, Counted(None, None)).gate_mean.item() == pytest.approx(
        everything.mean().item(), rel=1e-6
    )


@pytest.mark.parametrize("method", ["kl", "js"])
def test_corrected_parts_have_their_closed_form(method, batch):
    """Student (1/2, 1/2) and teacher (1/4, 3/4) on two tokens, at five labelled positions."""
    vocabulary = 10
    student = torch.full((2, 3, vocabulary), -1e9)
    student[..., 2], student[..., 3] = math.log(0.5), math.log(0.5)
    teacher = torch.full((2, 3, vocabulary), -1e9)
    teacher[..., 2], teacher[..., 3] = math.log(0.25), math.log(0.75)
    student[1, 2] = 100 * draw(0, vocabulary)  # behind the end: must not be seen
    labels = torch.tensor([[2, 3, 2], [3, 2, IGNORE]])
    run = run_of(method, label_smoothing=0.0, budget=0.3)
    parts = loss_parts(run, states_of(student), labels, torch.tensor(0.5), states_of(teacher))
    kl = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    js = 0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625)
    js = (js + 0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625)) / 2
    distil = {"kl": kl, "js": js}[method]
    assert parts.ce.item() == pytest.approx(math.log(2), rel=1e-6)
    assert parts.gate.item() == pytest.approx(0.2, rel=1e-5)
    assert parts.distil.item() == pytest.approx(distil, rel=1e-5)
    assert parts.total.item() == pytest.approx(math.log(2) + 0.2 + 2 * distil, rel=1e-5)


def test_the_authors_divide_by_padding_and_weigh_by_sigma(batch):
    student, teacher = draw(0, 2, 3, 10), draw(1, 2, 3, 10)
    teacher[1, 2] = student[1, 2]  # padding adds nothing here, but is counted
    labels, mean = batch["labels"], torch.tensor(0.5)
    student, teacher = states_of(student), states_of(teacher)
    corrected = loss_parts(run_of("kl"), student, labels, mean, teacher)
    authors = loss_parts(run_of("kl", conventions="authors"), student, labels, mean, teacher)
    assert authors.ce == corrected.ce
    assert authors.distil.item() == pytest.approx(corrected.distil.item() * 5 / 6, rel=1e-5)
    expected = 0.5 * (authors.ce + authors.gate) / 1.41**2 + 0.5 * authors.distil
    assert authors.total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_methods_without_experts_have_cross_entropy_only(batch):
    for method in ("full", "lora"):
        parts = loss_parts(run_of(method), states_of(draw(0, 2, 3, 10)), batch["labels"])
        assert parts.total == parts.ce
        assert parts.gate == parts.distil == 0

"""The chunked losses against the closed forms on logits: values, gradients, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from distilwhisper_lib import resolve
from distilwhisper_lib.losses import chunked as loss_block
from distilwhisper_lib.losses.chunked import States, TopK, token_losses, top_k
from distilwhisper_lib.losses.divergences import AUTHORS_EPSILON, cross_entropy, divergence
from distilwhisper_lib.model.loading import prepare
from distilwhisper_lib.speech.features import IGNORE

B, T, D, V = 3, 7, 12, 50


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(loss_block, "CHUNK_ELEMENTS", 4 * V)  # four positions, the last one fewer


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def labels():
    labels = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(9))
    labels[0, :3] = labels[1, 5:] = IGNORE
    labels[2] = IGNORE  # a row without any
    return labels


def pair():
    student = States(draw(0, B, T, D).requires_grad_(), draw(1, V, D).requires_grad_())
    return student, States(draw(2, B, T, D + 4), draw(3, V, D + 4))


def assert_same(ours, theirs, leaves):
    for mine, plain in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-6)
        gradients = (torch.autograd.grad(x, leaves, retain_graph=True) for x in (mine, plain))
        for mine_of, plain_of in zip(*gradients, strict=True):
            torch.testing.assert_close(mine_of, plain_of, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["kl", "js"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("authors", [False, True])
def test_chunks_sum_to_the_closed_forms(kind, temperature, smoothing, authors, labels):
    student, teacher = pair()
    keep, epsilon = (None, AUTHORS_EPSILON) if authors else (labels != IGNORE, 0.0)
    ours = token_losses(
        student, labels, teacher, kind,
        keep=keep, smoothing=smoothing, temperature=temperature, epsilon=epsilon,
    )  # fmt: skip
    logits, said = (states @ head.T for states, head in (student, teacher))
    plain = (
        cross_entropy(logits, labels, smoothing),
        divergence(logits, said, kind, temperature, keep, epsilon),
    )
    assert_same(ours, plain, list(student))


def test_nothing_labelled_is_zero_with_a_gradient_of_zero():
    student, teacher = pair()
    labels = torch.full((B, T), IGNORE)
    parts = token_losses(student, labels, teacher, "js", keep=labels != IGNORE)
    assert [part.item() for part in parts] == [0, 0]
    sum(parts).backward()
    assert student.states.grad.abs().sum() == 0


def test_padding_may_hold_anything(labels):
    student, teacher = pair()
    keep = labels != IGNORE
    expected = token_losses(student, labels, teacher, "js", keep=keep)
    noisy = States(student.states.detach().clone(), student.head)
    noisy.states[~keep] = float("nan")
    assert token_losses(noisy, labels, teacher, "js", keep=keep) == expected


def test_states_in_half_precision_are_taken(labels):
    """As a teacher's are stored; the losses stay float32."""
    student, teacher = pair()
    half = States(teacher.states.half(), teacher.head)
    for mine, exact in zip(
        token_losses(student, labels, half, "kl", keep=labels != IGNORE),
        token_losses(student, labels, teacher, "kl", keep=labels != IGNORE),
        strict=True,
    ):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, exact, rtol=1e-3, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        ce, distil = token_losses(student, labels, half, "js", keep=labels != IGNORE)
    assert ce.dtype == distil.dtype == torch.float32
    (ce + distil).backward()
    assert torch.isfinite(student.head.grad).all()


@pytest.mark.parametrize("kind", ["kl", "js"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_tokens_but_one_are_the_whole_distribution(kind, temperature, labels):
    student, teacher = pair()
    keep = labels != IGNORE
    whole = token_losses(student, labels, teacher, kind, keep=keep, temperature=temperature)
    best = top_k(teacher, V, temperature)
    assert best.tokens.shape == (B, T, V - 1)
    compact = token_losses(student, labels, best, kind, keep=keep, temperature=temperature)
    assert_same(compact, whole, list(student))


@pytest.mark.parametrize("kind", ["kl", "js"])
def test_what_top_k_leaves_out_is_spread_evenly(kind):
    """Teacher (1/2, 1/4, 1/8, 1/8) of which two tokens are known: that is what it was."""
    said = torch.tensor([[[0.5, 0.25, 0.125, 0.125]]]).log()
    student = States(draw(0, 1, 1, 4).requires_grad_(), torch.eye(4))
    labels = torch.tensor([[1]])
    best = top_k(States(said, torch.eye(4)), 2, 1.0)
    torch.testing.assert_close(best.log_probs.exp(), torch.tensor([[[0.5, 0.25, 0.25]]]))
    assert best.tokens.tolist() == [[[0, 1]]]
    ours = token_losses(student, labels, best, kind)[1]
    torch.testing.assert_close(ours, divergence(student.states, said, kind))


def test_a_certain_teacher_leaves_no_mass_and_stays_finite(labels):
    student, teacher = pair()
    certain = States(teacher.states * 1e4, teacher.head)
    best = top_k(certain, 5, 1.0)
    stored = TopK(best.log_probs.clamp(min=torch.finfo(torch.float16).min).half(), best.tokens)
    for kind in ("kl", "js"):
        parts = token_losses(student, labels, stored, kind, keep=labels != IGNORE)
        gradient = torch.autograd.grad(sum(parts), student.states)[0]
        assert torch.isfinite(sum(parts)) and torch.isfinite(gradient).all()


@pytest.mark.parametrize("method", ["full", "lora", "clsr"])
def test_hidden_states_come_without_logits_through_every_wrapper(method, tiny_model, token):
    settings = {"lora_rank": 4, "recipe": "paper"}
    model = prepare(tiny_model(), resolve(method, "cv3k", "ca", 1, settings))
    prompt = [token(f"<|{name}|>") for name in ("startoftranscript", "ca", "transcribe")]
    inputs = {"input_features": draw(0, 1, 80, 300), "decoder_input_ids": torch.tensor([prompt])}
    out = model(**inputs, with_logits=False, output_gates=True)
    assert out.logits is None
    head = model.get_output_embeddings().weight
    torch.testing.assert_close(out.last_hidden_state @ head.T, model(**inputs).logits)
    assert len(out.gates.encoder) == 2


def test_the_tied_head_learns_in_full_fine_tuning(tiny_model, token):
    """Chunked and plain give every weight the same gradient, the embedding both of its halves."""
    model: nn.Module = prepare(tiny_model(), resolve("full", "cv3k", "ca", 1))
    start = token("<|startoftranscript|>")
    inputs = {
        "input_features": draw(0, 2, 80, 300),
        "decoder_input_ids": torch.tensor([[start, 5, 6], [start, 7, 8]]),
    }
    labels = torch.tensor([[5, 6, 7], [7, 8, IGNORE]])
    gradients = []
    for chunked in (True, False):
        model.zero_grad()
        out = model(**inputs, with_logits=not chunked)
        if chunked:
            student = States(out.last_hidden_state, model.get_output_embeddings().weight)
            token_losses(student, labels, keep=labels != IGNORE)[0].backward()
        else:
            cross_entropy(out.logits, labels).backward()
        gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        )
    embedding = "model.decoder.embed_tokens.weight"
    assert gradients[0][embedding][9].abs().sum() > 0  # a token that only the head sees
    for name, plain in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], plain, rtol=1e-4, atol=1e-6)


MEASURE = """
import resource, sys, torch
from distilwhisper_lib.losses.chunked import States, token_losses
positions, vocabulary = int(sys.argv[1]), 51865
torch.set_num_threads(1)
student = States(torch.randn(1, positions, 8, requires_grad=True), torch.randn(vocabulary, 8))
teacher = States(torch.randn(1, positions, 8), torch.randn(vocabulary, 8))
labels = torch.randint(0, vocabulary, (1, positions))
sum(token_losses(student, labels, teacher, "js")).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_peak_memory_does_not_grow_with_the_batch():
    """600 positions x Whisper's vocabulary are 124 MB a tensor: a plain form holds many."""
    peaks = []
    for positions in ("200", "600"):
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, positions],
            capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip
        peaks.append(int(done.stdout))  # KiB
    assert peaks[1] - peaks[0] < 100 * 1024

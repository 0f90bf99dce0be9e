"""Losses against closed forms and properties that must hold whatever the numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from distilwhisper_lib.losses.divergences import (
    AUTHORS_EPSILON,
    combine,
    cross_entropy,
    divergence,
    gate_budget,
    gate_mean,
)
from distilwhisper_lib.speech.features import IGNORE


def logits_of(*distributions):
    return torch.tensor([distributions]).log()  # (1, T, V)


def draw(seed, *shape, scale=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def test_kl_and_js_have_their_closed_form():
    student, teacher = logits_of([0.5, 0.5]), logits_of([0.25, 0.75])
    kl = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert divergence(student, teacher, "kl").item() == pytest.approx(kl, rel=1e-6)
    js = (
        0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625)
        + 0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625)
    ) / 2  # fmt: skip
    assert divergence(student, teacher, "js").item() == pytest.approx(js, rel=1e-6)


def test_kl_is_of_the_teacher_first():
    """KL(teacher || student) punishes a student that misses what the teacher says."""
    student, teacher = logits_of([0.999, 0.001]), logits_of([0.5, 0.5])
    assert divergence(student, teacher, "kl") > divergence(teacher, student, "kl")


@pytest.mark.parametrize("seed", range(5))
def test_js_is_symmetric_and_bounded(seed):
    a, b = draw(seed, 2, 7, 50, scale=20), draw(seed + 100, 2, 7, 50, scale=20)
    forward, back = divergence(a, b, "js"), divergence(b, a, "js")
    torch.testing.assert_close(forward, back)
    assert 0 <= forward <= math.log(2)


@pytest.mark.parametrize("kind", ["kl", "js"])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_a_student_equal_to_its_teacher_costs_nothing(kind, temperature):
    same = draw(0, 2, 4, 30)
    loss = divergence(same.clone().requires_grad_(), same, kind, temperature)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss.backward()


@pytest.mark.parametrize("kind", ["kl", "js"])
def test_temperature_softens_and_scales(kind):
    a, b = draw(0, 1, 3, 20), draw(1, 1, 3, 20)
    expected = divergence(a / 2, b / 2, kind) * 4
    torch.testing.assert_close(divergence(a, b, kind, temperature=2.0), expected)


@pytest.mark.parametrize("kind", ["kl", "js"])
def test_padding_changes_nothing(kind):
    student, teacher = draw(0, 2, 5, 30), draw(1, 2, 5, 30)
    labels = torch.tensor([[1, 2, 3, IGNORE, IGNORE], [4, 5, IGNORE, IGNORE, IGNORE]])
    keep = labels != IGNORE
    expected = divergence(student, teacher, kind, keep=keep), cross_entropy(student, labels, 0.1)
    noisy = torch.where(keep[..., None], student, draw(2, 2, 5, 30) * 100)
    assert divergence(noisy, teacher, kind, keep=keep) == expected[0]
    assert cross_entropy(noisy, labels, 0.1) == expected[1]
    longer = F.pad(student, (0, 0, 0, 3)), F.pad(teacher, (0, 0, 0, 3), value=9.0)
    longer_labels = F.pad(labels, (0, 3), value=IGNORE)
    assert divergence(*longer, kind, keep=longer_labels != IGNORE) == expected[0]


def test_only_labelled_positions_get_a_gradient():
    student = draw(0, 1, 4, 10).requires_grad_()
    labels = torch.tensor([[3, IGNORE, 2, IGNORE]])
    keep = labels != IGNORE
    loss = cross_entropy(student, labels) + divergence(student, draw(1, 1, 4, 10), "js", keep=keep)
    loss.backward()
    assert (student.grad.abs().sum(-1) > 0).tolist() == keep.tolist()


def test_a_batch_without_labels_gives_zero_and_not_nan():
    student = draw(0, 2, 3, 10).requires_grad_()
    labels = torch.full((2, 3), IGNORE)
    loss = cross_entropy(student, labels, 0.1)
    loss = loss + divergence(student, draw(1, 2, 3, 10), "js", keep=labels != IGNORE)
    assert loss.item() == 0
    loss.backward()
    assert student.grad.abs().sum() == 0


def test_label_smoothing_has_its_closed_form():
    logits, labels = logits_of([0.7, 0.2, 0.1]), torch.tensor([[0]])
    nll = [-math.log(p) for p in (0.7, 0.2, 0.1)]
    expected = 0.9 * nll[0] + 0.1 * sum(nll) / 3
    assert cross_entropy(logits, labels, 0.1).item() == pytest.approx(expected, rel=1e-6)
    assert cross_entropy(logits, labels).item() == pytest.approx(nll[0], rel=1e-6)


def test_extreme_logits_stay_finite_in_half_precision():
    student = (draw(0, 1, 5, 40, scale=100).half()).requires_grad_()
    teacher = draw(1, 1, 5, 40, scale=100).half()
    for kind in ("kl", "js"):
        loss = divergence(student, teacher, kind)
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        (gradient,) = torch.autograd.grad(loss, student)
        assert torch.isfinite(gradient).all()


def test_the_authors_epsilon_matters_only_where_the_mixture_vanishes():
    mild = draw(0, 1, 3, 10, scale=1), draw(1, 1, 3, 10, scale=1)
    exact = divergence(*mild, "js")
    torch.testing.assert_close(divergence(*mild, "js", epsilon=AUTHORS_EPSILON), exact)
    certain = logits_of([1.0, 0.0]).clamp(min=-200), logits_of([0.0, 1.0]).clamp(min=-200)
    assert divergence(*certain, "js", epsilon=0.5) < divergence(*certain, "js")


def test_the_authors_epsilon_stands_inside_the_mixtures_logarithm():
    student, teacher = logits_of([0.9, 0.1]), logits_of([0.1, 0.9])
    expected = 0.9 * math.log(0.9 / (0.5 + 0.1)) + 0.1 * math.log(0.1 / (0.5 + 0.1))
    assert divergence(student, teacher, "js", epsilon=0.1).item() == pytest.approx(expected, 1e-6)
    # Theirs moves a loss by about 1e-10, which no comparison of numbers can see.
    assert AUTHORS_EPSILON == 1e-10


def test_gates_pool_by_position_count_and_real_positions():
    encoder, decoder = torch.full((1, 6), 0.2), torch.full((1, 2), 1.0)
    assert gate_mean([encoder, decoder], [None, None]).item() == pytest.approx((1.2 + 2) / 8)
    heard = torch.tensor([[True, True, False, False, False, False]])
    mean = gate_mean([encoder, decoder], [heard, None])
    assert mean.item() == pytest.approx((0.4 + 2) / 4)
    encoder[0, 3:] = 0.9  # padding
    assert gate_mean([encoder, decoder], [heard, None]) == mean
    assert gate_budget(mean, 0.5).item() == pytest.approx(0.1)
    assert gate_budget(mean, 0.7).item() == pytest.approx(0.1)


def test_parts_are_weighed_in_one_place():
    ce, gate, distil = torch.tensor(3.0), torch.tensor(0.2), torch.tensor(0.5)
    assert combine(ce).total == 3
    assert combine(ce, gate).total.item() == pytest.approx(3.2)
    parts = combine(ce, gate, distil)  # the paper: CE + gate + 2 KD
    assert parts.total.item() == pytest.approx(4.2)
    assert (parts.ce, parts.gate, parts.distil) == (ce, gate, distil)
    authors = combine(ce, gate, distil, task_weight=0.5 / 1.41**2, distil_weight=0.5)
    assert authors.total.item() == pytest.approx(0.5 * 3.2 / 1.41**2 + 0.25)

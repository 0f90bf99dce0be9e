"""Label lengths are those that the collator makes, and are counted only when they matter."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from transformers import tokenization_utils_base

from distilwhisper_lib import UserError, resolve
from distilwhisper_lib.data.splits import LabelLimit, label_limit
from distilwhisper_lib.speech.features import Collator


def never():
    pytest.fail("the tokenizer was loaded")


@pytest.mark.parametrize("conventions", ["corrected", "authors"])
def test_the_count_is_the_collator_s(processor, conventions):
    labels = LabelLimit(448, lambda: processor.tokenizer)
    collator = Collator(processor, conventions)
    for text in ("bon dia", "", "வணக்கம்", "x" * 100):
        row = {"id": "a", "text": text, "language": "ca", "audio": np.zeros(10)}
        assert len(collator.label_tokens(row)[0]) == labels.tokens(text)


def test_over_is_where_the_collator_would_refuse(processor):
    text = "una paraula " * 12
    tokens = LabelLimit(448, lambda: processor.tokenizer).tokens(text)
    row = {"id": "a", "text": text, "language": "ca"}
    assert LabelLimit(tokens, lambda: processor.tokenizer).over(text) is None
    Collator(processor, max_length=tokens).label_tokens(row)
    message = f"{tokens} tokens, at most {tokens - 1}"
    assert LabelLimit(tokens - 1, lambda: processor.tokenizer).over(text) == message
    with pytest.raises(UserError, match="more than the model's"):
        Collator(processor, max_length=tokens - 1).label_tokens(row)


def test_short_texts_need_no_tokenizer():
    assert LabelLimit(20, never).over("a" * 16) is None
    assert LabelLimit(448, never).over("ไทย" * 49) is None  # three bytes a letter


def test_many_are_counted_at_once(processor):
    labels = LabelLimit(448, lambda: processor.tokenizer)
    texts = ["bon dia", "bona nit a tothom"]
    assert labels.count(texts) == [labels.tokens(text) for text in texts]
    assert LabelLimit(448, never).count([]) == []


def test_counting_a_long_text_warns_of_nothing(processor, monkeypatch):
    """transformers would warn of "indexing errors", of a model that is not run."""
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.model_max_length, tokenizer.deprecation_warnings = 64, {}  # it warns once
    warned = []
    monkeypatch.setattr(tokenization_utils_base.logger, "warning", warned.append)
    text = "una paraula " * 400
    assert LabelLimit(64, lambda: tokenizer).over(text).endswith("at most 64")
    assert warned == []
    tokenizer(text)  # shows that it would
    assert len(warned) == 1


def test_the_limit_is_the_student_s(tmp_path):
    config = resolve("clsr", "demo", "ca")
    assert label_limit(config).limit == 64  # the embedded miniature's
    assert label_limit(config).tokens("a") > 4
    (tmp_path / "config.json").write_text('{"model_type": "distilwhisper"}')
    other = resolve("clsr", "demo", "ca", 1, {"student": str(tmp_path)})
    assert label_limit(other).limit == 448
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json of .* cannot be read"):
        label_limit(other)
    with pytest.raises(UserError, match="config.json .*'nobody/nothing'"):
        label_limit(resolve("clsr", "demo", "ca", 1, {"student": "nobody/nothing"}))

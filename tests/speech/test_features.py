"""Batches: the right prompt, labels only where there is something to learn."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from distilwhisper_lib import UserError
from distilwhisper_lib.speech.features import IGNORE, Collator, SpeechDataset, extract_features


def row(text="bon dia", language="ca", seconds=1.0):
    samples = np.random.default_rng(0).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)
    return {"id": "clip", "audio": samples, "text": text, "language": language}


def test_the_prompt_is_start_language_task_and_no_timestamps(processor, token):
    batch = Collator(processor)([row(language="cs")])
    tokenizer = processor.tokenizer
    text = tokenizer("bon dia", add_special_tokens=False).input_ids
    prompt = ["<|startoftranscript|>", "<|cs|>", "<|transcribe|>", "<|notimestamps|>"]
    assert batch["decoder_input_ids"][0].tolist() == [*map(token, prompt), *text]
    assert batch["labels"][0].tolist() == [IGNORE] * 3 + [*text, tokenizer.eos_token_id]
    assert batch["language_ids"].tolist() == [token("<|cs|>")]


def test_labels_are_the_decoder_input_one_step_ahead(processor):
    batch = Collator(processor)([row(), row("una frase força més llarga", "ca")])
    ahead = batch["decoder_input_ids"][:, 1:]
    labels = batch["labels"][:, :-1]
    kept = (labels != IGNORE) & (labels != processor.tokenizer.eos_token_id)
    assert torch.equal(labels[kept], ahead[kept])
    assert (labels[0] == IGNORE).sum() > (labels[1] == IGNORE).sum()  # the shorter one is padded


def test_the_authors_convention_doubles_the_start_and_learns_the_prompt(processor, token):
    batch = Collator(processor, "authors")([row()])
    start = token("<|startoftranscript|>")
    assert batch["decoder_input_ids"][0, :2].tolist() == [start, start]
    assert token("<|ca|>") not in batch["decoder_input_ids"]
    assert batch["labels"][0, 0] == start
    assert not (batch["labels"] == IGNORE).any()


def test_features_fill_the_window_and_audio_is_counted(processor):
    batch = Collator(processor)([row(seconds=1.0), row(seconds=0.5), row(seconds=3.0)])
    assert batch["input_features"].shape == (3, 80, 300)
    assert batch["audio_positions"].tolist() == [50, 25, 150]
    alone = extract_features(processor.feature_extractor, [row(seconds=0.5)["audio"]])
    torch.testing.assert_close(batch["input_features"][1:2], alone, atol=1e-5, rtol=0)


def test_too_many_tokens_are_refused_by_name(processor):
    with pytest.raises(UserError, match=r"'clip' has \d+ tokens, more than the model's 16"):
        Collator(processor, max_length=16)([row("una frase molt i molt llarga " * 5)])


def test_a_dataset_reads_audio_when_asked(speech_folder):
    from distilwhisper_lib.data.corpora import read_folder

    folder = speech_folder()
    dataset = SpeechDataset(read_folder(folder, "ca", "train"))
    assert len(dataset) == 4
    assert dataset[1]["audio"].shape == (12_000,)
    assert dataset[1]["audio"].dtype == np.float32


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|startoftranscript|>", "<|ca|>"])
@pytest.mark.parametrize("conventions", ["corrected", "authors"])
def test_a_special_token_in_a_text_never_becomes_a_label(processor, conventions, token):
    row = {"id": "x", "text": f"bon {token} dia", "language": "ca"}
    with pytest.raises(UserError, match=f"clip 'x' has the special token '{re.escape(token)}' in"):
        Collator(processor, conventions).label_tokens(row)

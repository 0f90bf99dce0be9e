"""Clips that share a window: each in one, none over its room, with their sound and their labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from distilwhisper_lib.config.settings import resolve
from distilwhisper_lib.data.packing import PAUSE, arranged, assigned, described
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.record import evaluate, record_run
from distilwhisper_lib.model.loading import load_model
from distilwhisper_lib.speech.audio import read_audio
from distilwhisper_lib.speech.features import IGNORE, Collator, Room, SpeechDataset
from distilwhisper_lib.training.loop import train

WINDOW = Room(30.0, 444)


def clips_of(count: int, seed: int = 0) -> tuple[list[Room], list[str]]:
    rng = np.random.default_rng(seed)
    takes = [Room(float(s), int(6 * s)) for s in rng.gamma(4, 1.3, count).clip(0.5, 30)]
    return takes, [f"s{i % 7}" if i % 3 else "" for i in range(count)]


@pytest.fixture(scope="module")
def corpus():
    """The demo's Catalan training clips, and a collator for them."""
    _, processor = load_model("embedded/student")
    table = load_data(resolve("js", "demo", "ca", 7, {"train_size": 40})).train
    return table, Collator(processor)


# Which clip goes where -----------------------------------------------------------------------


def test_each_clip_has_one_place_and_no_window_is_over_its_room():
    takes, speakers = clips_of(1000)
    windows = assigned(takes, speakers, WINDOW, seed=77)
    assert sorted(sum(windows, [])) == list(range(1000))
    for window in windows:
        seconds = sum(takes[i].seconds for i in window) + PAUSE * (len(window) - 1)
        assert seconds <= WINDOW.seconds + 1e-9
        assert sum(takes[i].tokens for i in window) <= WINDOW.tokens
    needed = sum(take.seconds + PAUSE for take in takes) / (WINDOW.seconds + PAUSE)
    assert len(windows) <= 1.03 * needed  # nearly as full as can be
    assert assigned(takes, speakers, WINDOW, seed=77) == windows
    assert assigned(takes, speakers, WINDOW, seed=78) != windows


def test_what_is_said_by_one_speaker_comes_together():
    takes, _ = clips_of(400)
    speakers = [f"s{i % 4}" for i in range(400)]
    windows = assigned(takes, speakers, WINDOW, seed=1)
    mixed = [window for window in windows if len({speakers[i] for i in window}) > 1]
    assert len(mixed) <= 4  # what was left over of each


def test_tokens_can_fill_a_window_before_seconds_do():
    takes = [Room(1.0, 200)] * 10
    windows = assigned(takes, [""] * 10, WINDOW, seed=0)
    assert sorted(map(len, windows)) == [2] * 5


def test_a_clip_as_long_as_the_window_is_alone_in_it():
    windows = assigned([Room(30.0, 5), Room(0.1, 1)], ["", ""], WINDOW, seed=0)
    assert sorted(windows) == [[0], [1]]


# What a window is ----------------------------------------------------------------------------


def test_without_the_settings_nothing_is_arranged(corpus):
    table, collator = corpus
    assert arranged(resolve("js"), table, collator) is table


def test_the_sound_of_a_window_is_that_of_its_clips_with_pauses(corpus):
    table, collator = corpus
    rows = arranged(resolve("js", overrides={"pack": True}), table, collator)
    assert len(rows) < 0.75 * len(table) and rows["id"].is_unique
    assert rows["spans"].isna().all()
    alone = table.set_index("id")
    held = []
    for row, item in zip(rows.to_dict("records"), SpeechDataset(rows), strict=True):
        expected, texts = [], []
        for piece in row["pieces"]:
            held.append(piece.clip)
            samples = read_audio(*alone.loc[piece.clip, ["audio", "start", "end"]])
            first = round(piece.at * 16_000)
            np.testing.assert_array_equal(item["audio"][first : first + len(samples)], samples)
            expected.append(samples)
            texts.append(alone.loc[piece.clip, "text"])
        loud = sum(np.square(samples).sum() for samples in expected)
        assert np.square(item["audio"]).sum() == pytest.approx(loud, rel=1e-4)  # pauses are silent
        assert len(item["audio"]) <= collator.extractor.n_samples
        assert len(item["audio"]) / 16_000 == pytest.approx(row["seconds"], abs=0.02)
        assert item["text"] == " ".join(texts)
    assert sorted(held) == sorted(table["id"])
    said = described(rows, collator)
    assert (said["windows"], said["clips"], said["with_timestamps"]) == (len(rows), len(table), 0)
    assert 0.5 < said["fill"] <= 1


def test_labels_of_a_window_are_those_of_its_clips_in_a_row(corpus):
    table, collator = corpus
    rows = arranged(resolve("js", overrides={"pack": True}), table, collator)
    row = next(r for r in rows.to_dict("records") if len(r["pieces"]) > 1)
    inputs, labels = collator.label_tokens(row)
    said = collator.tokenizer.decode([token for token in labels if token != IGNORE][:-1])
    assert said == row["text"]
    single = collator.label_tokens({"id": "a", "text": row["text"], "language": "ca"})
    assert (inputs, labels) == single


class Timed:
    """The demo's tokenizer with Whisper's timestamps, which the demo's models lack."""

    def __init__(self, tokenizer):
        self.inner, self.first = tokenizer, len(tokenizer)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, *args, **kwargs):
        return self.inner(*args, **kwargs)

    def get_added_vocab(self):
        stamps = {f"<|{i * 0.02:.2f}|>": self.first + i for i in range(1501)}
        return self.inner.get_added_vocab() | stamps


def test_timestamps_stand_where_the_sound_of_a_clip_begins_and_ends(corpus):
    table, collator = corpus
    config = resolve("js", overrides={"pack": True, "timestamps": 1})
    _, processor = load_model("embedded/student")
    processor.tokenizer = Timed(processor.tokenizer)
    timed = Collator(processor)
    first = processor.tokenizer.first
    for row in arranged(config, table, timed).to_dict("records"):
        inputs, labels = timed.label_tokens(row)
        said = [token for token in labels if token != IGNORE]
        stamps = [(token - first) * 0.02 for token in said if token >= first]
        borders = [at for span in row["spans"] for at in (span.begin, span.end)]
        assert stamps == pytest.approx(borders, abs=0.0101)
        assert said[-1] == timed.tokenizer.eos_token_id
        assert timed.tokenizer.decode([t for t in said[:-1] if t < first]) == row["text"]
        plain = timed._token("<|notimestamps|>")
        assert plain not in inputs and inputs[3] == first
        assert len(inputs) == len(labels) <= timed.max_length


def test_so_many_rows_have_timestamps_and_the_same_ones_again(corpus):
    table, collator = corpus
    config = resolve("js", overrides={"timestamps": 0.3})
    big = pd.concat([table.assign(id=table["id"] + f"-{i}") for i in range(25)])
    rows = arranged(config, big, collator)
    assert rows["id"].tolist() == big["id"].tolist()
    timed = rows["spans"].notna()
    assert 0.25 < timed.mean() < 0.35
    assert arranged(config, big.iloc[::-1], collator)["spans"].notna().tolist() == list(timed)[::-1]


# Runs ----------------------------------------------------------------------------------------


@pytest.fixture
def configured(study_of):
    return study_of(8, max_steps=2, max_seconds=1.2)


@pytest.mark.parametrize("method", ["full", "lora", "clsr", "kl", "js"])
def test_every_method_trains_packed(configured, method):
    config = configured(method, pack=True)
    assert config.run_id != configured(method).run_id
    data = load_data(config)
    trained = train(config, data)
    record = record_run(trained, data, evaluate(trained, data))
    packing = record["training"]["packing"]
    assert packing["clips"] == len(data.train) > packing["windows"]


def test_runs_of_several_seeds_share_windows_and_what_a_teacher_says_of_them(configured):
    first = configured("kl", pack=True)
    said = []
    for config in (first, replace(first, seed=8)):
        said.append(train(config, load_data(config)).training)
    assert [run["teacher_targets"]["built"] for run in said] == [True, False]
    assert said[0]["packing"] == said[1]["packing"]
    alone = train(config := configured("kl"), load_data(config)).training["teacher_targets"]
    assert alone["built"] and alone["sha256"] != said[0]["teacher_targets"]["sha256"]


def test_what_trains_nothing_is_not_packed():
    packed = resolve("zero_shot", overrides={"pack": True, "timestamps": 0.2})
    assert packed.run_id == resolve("zero_shot").run_id and not packed.pack


def test_a_window_of_one_clip_gives_the_loss_of_the_clip(corpus):
    table, collator = corpus
    model, _ = load_model("embedded/student")
    longest = table.sort_values("seconds").tail(4)
    rows = arranged(resolve("js", overrides={"pack": True}), longest, collator)
    assert len(rows) == 4  # nothing fits beside them
    losses = []
    for given in (longest, rows.set_index("id").loc[longest["id"]].reset_index()):
        batch = collator(list(SpeechDataset(given)))
        inputs = {name: batch[name] for name in ("input_features", "decoder_input_ids")}
        with torch.no_grad():
            out = model.eval()(**inputs, labels=batch["labels"])
        losses.append(out.loss)
    torch.testing.assert_close(*losses, rtol=0, atol=0)


def test_settings_that_cannot_be_are_refused(corpus):
    with pytest.raises(UserError, match="timestamps=0.5 with conventions='authors'"):
        resolve("js", overrides={"timestamps": 0.5, "conventions": "authors"})
    with pytest.raises(UserError, match="timestamps=1.5 is out of range"):
        resolve("js", overrides={"timestamps": 1.5})
    table, collator = corpus
    rows = arranged(resolve("js", overrides={"timestamps": 1}), table, collator)
    with pytest.raises(UserError, match="no timestamps in its vocabulary: leave the setting"):
        collator.label_tokens(rows.to_dict("records")[0])

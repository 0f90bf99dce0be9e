"""A model that cannot do what a run asks is one sentence, before a corpus is read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from distilwhisper_lib.config.settings import METHODS
from distilwhisper_lib.data import splits
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.record import evaluate, record_run
from distilwhisper_lib.evaluation.run import load_run
from distilwhisper_lib.explorer.runs import Listener, clips_of, find_runs
from distilwhisper_lib.export.bundle import export_run
from distilwhisper_lib.losses import load_teacher
from distilwhisper_lib.model import loading
from distilwhisper_lib.model.loading import load_model, load_student
from distilwhisper_lib.training.loop import train
from distilwhisper_lib.transcription.transcriber import Transcriber

ROLES = ("student", "teacher")
GENERATION = "generation_config.json"


@pytest.fixture
def study(study_of):
    return study_of(clips=2)


def changed(folder: Path, name: str, **fields) -> None:
    path = folder / name
    kept = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))


def removed(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def refused(config, monkeypatch, message: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(splits, "open_corpus", lambda *_: pytest.fail("a corpus was read"))
        with pytest.raises(UserError, match=message):
            load_data(config)


# Checkpoints that the kit cannot use ---------------------------------------------------------


def english_by_size(folder):
    removed(folder, GENERATION)
    changed(folder, "config.json", vocab_size=51_864)


def without_tokenizer(folder):
    removed(folder, "tokenizer.json", "vocab.json")


def without_tokenizer_and_generation(folder):
    removed(folder, "tokenizer.json", "vocab.json", GENERATION)


def without_features(folder):
    removed(folder, "preprocessor_config.json", "processor_config.json")


def large_v3s_tokenizer(folder):
    """Its tokens stand one further, because it has one more language."""
    fields = json.loads((folder / GENERATION).read_text())
    tasks = {task: token + 1 for task, token in fields["task_to_id"].items()}
    changed(folder, GENERATION, task_to_id=tasks)


def without_a_language_tokens_name(folder):
    """Neither its generation config nor its tokenizer tells the tokens of languages."""
    changed(folder, GENERATION, lang_to_id=None)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|transcribe|>", "<|other|>"))


UNUSABLE = [
    (
        lambda folder: changed(folder, GENERATION, lang_to_id={"<|cs|>": 378}),
        "cannot be used: it has no token for the language 'ca': take a Whisper that has",
    ),
    (without_a_language_tokens_name, "no lang_to_id and no tokenizer tells them: give it the gen"),
    (
        lambda folder: changed(folder, GENERATION, is_multilingual=False),
        "is an English-only Whisper, .*: take the multilingual one",
    ),
    (english_by_size, "is an English-only Whisper, without tokens for languages: take the multi"),
    (without_tokenizer, "no tokenizer.json or vocab.json in .*: the .* needs it; copy it from"),
    (without_tokenizer_and_generation, "no tokenizer.json or vocab.json in .*; copy it from"),
    (without_features, "no preprocessor_config.json or processor_config.json in .*; copy it from"),
    (
        large_v3s_tokenizer,
        r"takes <\|trans.* for token 45\d, its generation_config for 45\d: copy both",
    ),
    (
        lambda folder: changed(folder, "config.json", num_mel_bins=128),
        "makes 80 mel bins and 150 positions, its config.json expects 128 and 150: copy",
    ),
    (
        lambda folder: changed(folder, "config.json", max_source_positions=9),
        "makes 80 mel bins and 150 positions, its config.json expects 80 and 9: copy",
    ),
    (
        lambda folder: (folder / GENERATION).write_text("{"),
        "generation_config.json of '.*' cannot be read .*: get it again",
    ),
    (lambda folder: removed(folder, "config.json"), "no config.json in .*: check the name"),
]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("spoil", "message"), UNUSABLE)
def test_what_cannot_be_used_is_refused_wherever_it_enters(
    study, tmp_path, monkeypatch, processor, spoil, message, role
):
    spoil(tmp_path / role)
    for method in METHODS if role == "student" else ("teacher", "kl", "js"):
        refused(study(method), monkeypatch, message)
    monkeypatch.setattr(
        loading.DistilWhisperForConditionalGeneration,
        "from_pretrained",
        lambda *_, **__: pytest.fail("weights were read"),
    )
    load = load_student if role == "student" else partial(load_teacher, processor=processor)
    for enter in (
        lambda: load(study("js")),
        lambda: load_model(str(tmp_path / role), language="catalan"),
        lambda: train(study("js"), None),
    ):
        with pytest.raises(UserError, match=message) as error:
            enter()
        assert role in str(error.value) and "\n" not in str(error.value)
    if "'ca'" not in message:
        with pytest.raises(UserError, match=message):
            Transcriber.load(tmp_path / role)


def test_a_language_to_be_heard_later_is_asked_for_at_once(study, tmp_path, monkeypatch):
    tokens = json.loads((tmp_path / "student" / GENERATION).read_text())["lang_to_id"]
    kept = {name: token for name, token in tokens.items() if name != "<|cs|>"}
    changed(tmp_path / "student", GENERATION, lang_to_id=kept)
    config = study("lora", forgetting="ca cs")
    refused(config, monkeypatch, "it has no token for the language 'cs'")
    load_data(study("lora", forgetting="ca"))


def test_a_model_alone_takes_no_language_without_a_token(tiny_model, processor):
    model = tiny_model()
    features, samples = torch.zeros(1, 80, 300), np.ones(16_000, np.float32)
    hearer = Transcriber(model, processor)
    fields = model.generation_config

    def refuses(message, *, detected=True):
        with pytest.raises(UserError, match=message):
            model.set_language_task("cantonese")
        with pytest.raises(UserError, match=message):
            model.generate(features, language="cantonese", max_new_tokens=2)
        with pytest.raises(UserError, match=message):
            model.encode(features, ["cantonese"])
        with pytest.raises(UserError, match=message):
            model.add_expert("cantonese")
        with pytest.raises(UserError, match=message):
            hearer.transcribe(samples, "cantonese")
        if not detected:
            with pytest.raises(UserError, match=message):
                hearer.transcribe(samples)

    del fields.lang_to_id["<|yue|>"]
    refuses("it has no token for the language 'yue'")
    fields.is_multilingual = False
    refuses("is an English-only Whisper, without tokens", detected=False)
    del fields.is_multilingual, fields.lang_to_id
    refuses("has no lang_to_id and no tokenizer tells them", detected=False)


# A pair ---------------------------------------------------------------------------------------


def hears(folder: Path, mels: int, tiny_model, **settings) -> None:
    """Put a Whisper of so many mel bins into a folder, with features that fit."""
    tiny_model(num_mel_bins=mels, **settings).save_pretrained(folder)
    tokenizer = WhisperTokenizer.from_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=3)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    extractor.save_pretrained(folder)


def shorter(folder: Path, positions: int) -> None:
    changed(folder, "config.json", max_source_positions=positions)
    for name in ("preprocessor_config.json", "processor_config.json"):
        removed(folder, name)
    WhisperFeatureExtractor(chunk_length=positions // 50).save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder, _: shorter(folder, 100),
            "the teacher hears 2 s at once, the student 3: set window_seconds to the shorter of",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_it_decodes(
    study, tmp_path, tiny_model, monkeypatch, spoil, message
):
    spoil(tmp_path / "teacher", tiny_model)
    for method in ("teacher", "kl", "js"):
        refused(study(method), monkeypatch, message)
    data = load_data(study("zero_shot"))  # which needs none
    for method in ("teacher", "kl", "js"):  # as notebook 01 does, with the tables of another run
        with pytest.raises(UserError, match=message):
            train(study(method), data)
        assert not study(method).output_dir.exists()


@pytest.mark.parametrize("method", ["teacher", "kl", "js"])
def test_a_run_that_needs_a_teacher_and_has_none_is_refused(study, method):
    with pytest.raises(UserError, match=f"'{method}' needs a teacher, and the setting teacher na"):
        load_data(study(method, teacher=""))


def test_a_run_that_needs_no_teacher_asks_for_none(study):
    load_data(replace(study("lora"), teacher="nowhere"))


# Odd checkpoints that work --------------------------------------------------------------------


def of_2022(folder: Path) -> None:
    """No generation config; config.json forces English."""
    kept = json.loads((folder / GENERATION).read_text())
    removed(folder, GENERATION)
    forced = [kept["lang_to_id"]["<|en|>"], kept["task_to_id"]["transcribe"]]
    forced.append(kept["no_timestamps_token_id"])
    changed(
        folder,
        "config.json",
        forced_decoder_ids=[[i, token] for i, token in enumerate(forced, 1)],
        suppress_tokens=kept["suppress_tokens"],
        max_length=64,
    )


def of_early_2023(folder: Path) -> None:
    """A generation config that forces a prompt, as much that was fine-tuned has one."""
    kept = json.loads((folder / GENERATION).read_text())
    forced = [[1, kept["lang_to_id"]["<|en|>"]], [2, kept["task_to_id"]["translate"]]]
    changed(
        folder, GENERATION, forced_decoder_ids=forced, lang_to_id=None, task_to_id=None,
        no_timestamps_token_id=None, prev_sot_token_id=None, is_multilingual=None,
    )  # fmt: skip


def with_the_tokenizer_in_pieces(folder: Path) -> None:
    """As tokenizers were saved before tokenizer.json: vocabulary, merges and added tokens."""
    of_2022(folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    merges = [" ".join(pair) for pair in whole["model"]["merges"]]
    added = {token["content"]: token["id"] for token in whole["added_tokens"]}
    (folder / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "added_tokens.json").write_text(json.dumps(added))
    removed(folder, "tokenizer.json")


@pytest.mark.parametrize("age", [of_2022, of_early_2023, with_the_tokenizer_in_pieces])
def test_old_checkpoints_learn_the_tokens_from_their_tokenizer(study, tmp_path, age):
    student = tmp_path / "student"
    shutil.copytree(student, tmp_path / "new")
    age(student)
    load_data(study("lora"))
    (old, processor), (new, _) = load_model("student"), load_model("new")
    names = ("lang_to_id", "task_to_id", "no_timestamps_token_id", "prev_sot_token_id")
    for name in (*names, "is_multilingual", "max_length", "suppress_tokens"):
        expected = getattr(new.generation_config, name)
        assert getattr(old.generation_config, name) == expected, name
    samples = np.random.default_rng(0).normal(0, 0.1, 24_000).astype("f4")
    for language in ("catalan", None):
        said = [Transcriber(m, processor).transcribe(samples, language) for m in (old, new)]
        assert said[0] == said[1] and said[0].text
    features = torch.randn(2, 80, 300)
    for options in ({}, {"language": "ca"}, {"language": "ca", "task": "translate"}):
        mine, theirs = (m.generate(features, max_new_tokens=6, **options) for m in (old, new))
        assert mine.tolist() == theirs.tolist(), options


def test_without_any_generation_config_there_is_room_for_a_whole_transcript(study, tmp_path):
    removed(tmp_path / "student", GENERATION)
    model, _ = load_model("student")
    assert model.generation_config.max_length == model.config.max_target_positions == 64
    assert model.generate(torch.randn(1, 80, 300), language="ca").shape[1] > 20


def half(folder: Path, tiny_model) -> None:
    load_model(str(folder))[0].half().save_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        half,
        lambda folder, _: of_2022(folder),
        lambda folder, tiny_model: hears(folder, 128, tiny_model),
    ],
    ids=["half precision", "old", "128 mel bins"],
)
def test_an_odd_pair_trains_transcribes_and_is_exported(study, tmp_path, tiny_model, change):
    for role in ROLES:
        change(tmp_path / role, tiny_model)
    teacher = study("teacher")
    data = load_data(teacher)
    assert evaluate(train(teacher, data), data)
    config = study("js", max_steps=1)
    run = train(config, load_data(config))
    assert {tensor.dtype for tensor in run.model.parameters()} == {torch.float32}
    record_run(run, data, evaluate(run, data))
    recording = tmp_path / "speech" / "test1.wav"
    said = Transcriber.load(config.output_dir, device="cpu").transcribe(recording, "catalan")
    assert said == Transcriber(run.model, run.processor).transcribe(recording, "ca")
    (listed,), _ = find_runs(config)
    assert Listener().hear(listed, clips_of(listed, "in_domain", 1)[0])
    plain = export_run(load_run(config.output_dir), tmp_path / "plain")
    stock = WhisperForConditionalGeneration.from_pretrained(plain)
    mels = stock.config.num_mel_bins
    assert stock.dtype == torch.float32
    stock.generate(torch.zeros(1, mels, 300), language="ca", task="transcribe", max_new_tokens=3)
    assert Transcriber.load(plain, device="cpu").transcribe(recording, "ca").error is None
    tokens = {"<|cs|>": stock.generation_config.lang_to_id["<|cs|>"]}
    removed(tmp_path / "student", GENERATION)
    (tmp_path / "student" / GENERATION).write_text(json.dumps({"lang_to_id": tokens}))
    for enter in (load_run, Transcriber.load, lambda folder: export_run(folder, tmp_path / "no")):
        with pytest.raises(UserError, match="no token for the language 'ca': take a Whisper that"):
            enter(config.output_dir)
    assert not (tmp_path / "no").exists()

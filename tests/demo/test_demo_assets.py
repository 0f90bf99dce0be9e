"""The embedded demo is whole, small, honest about its splits, and loads offline."""

from __future__ import annotations

import csv
import hashlib
import json
import unicodedata
from itertools import combinations
from pathlib import Path

import pytest
import soundfile
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.models.whisper.tokenization_whisper import LANGUAGES

import distilwhisper_lib
from benchmarks.demo import lexicon

DEMO = Path(distilwhisper_lib.__file__).parent / "demo"
MODELS = ("teacher", "student")
CORPORA = ("speech", "speech_ood")


@pytest.fixture(scope="module")
def manifest() -> dict:
    return json.loads((DEMO / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict]]:
    tables = {}
    for corpus in CORPORA:
        with (DEMO / corpus / "metadata.csv").open(encoding="utf-8", newline="") as file:
            tables[corpus] = list(csv.DictReader(file))
    return tables


@pytest.fixture(scope="module", params=MODELS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def processor(name) -> WhisperProcessor:
    return WhisperProcessor.from_pretrained(DEMO / name, local_files_only=True)


def test_every_file_is_the_one_in_the_manifest(manifest):
    on_disk = {
        f"{folder}/{path.name}": path
        for folder in (*MODELS, "experts", *CORPORA)
        for path in (DEMO / folder).iterdir()
    }
    assert set(on_disk) == set(manifest["files"])
    for name, path in on_disk.items():
        content = path.read_bytes()
        assert len(content) == manifest["files"][name]["bytes"], name
        assert hashlib.sha256(content).hexdigest() == manifest["files"][name]["sha256"], name


def test_the_demo_stays_small(manifest):
    total = sum(entry["bytes"] for entry in manifest["files"].values())
    assert total == manifest["total_bytes"]
    assert total <= 22_000_000


def test_manifest_holds_no_host_path(manifest):
    text = json.dumps(manifest)
    for prefix in ("/home/", "/root", "/work", "/tmp", "\\\\"):
        assert prefix not in text


def test_manifest_says_the_gap_that_the_demo_lives_on(manifest):
    table = manifest["word_error_rate_percent"]
    for target in ("ca", "cs"):
        teacher, student = (table[name][target] for name in MODELS)
        assert teacher["test"]["stored"] < 15
        assert student["test"]["stored"] > 40
        assert teacher["ood"]["stored"] < student["ood"]["stored"] - 10
    assert table["student"]["en"]["test"]["stored"] < 10


def test_sizes_of_the_splits(rows):
    def count(corpus: str, language: str, split: str) -> int:
        return sum((r["language"], r["split"]) == (language, split) for r in rows[corpus])

    for target in ("ca", "cs"):
        assert count("speech", target, "train") == 800
        assert count("speech", target, "validation") == 100
    for language in ("en", "ca", "cs"):
        assert count("speech", language, "test") == count("speech_ood", language, "test") == 200


def test_no_sentence_stands_in_two_splits(rows):
    sentences: dict[tuple[str, str, str], set[str]] = {}
    for corpus, table in rows.items():
        for row in table:
            text = unicodedata.normalize("NFKC", row["text"]).casefold()
            key = (corpus, row["language"], row["split"])
            assert text not in sentences.setdefault(key, set()), "said twice in one split"
            sentences[key].add(text)
    for (first, mine), (second, theirs) in combinations(sentences.items(), 2):
        assert first[1] != second[1] or not mine & theirs, (first, second)


def test_no_stored_sentence_was_heard_in_pretraining(rows):
    from benchmarks.demo import build

    for language in build.STORED:
        parts = build.sentences_of(language)
        stored = {r["text"] for table in rows.values() for r in table if r["language"] == language}
        assert stored == {text for name in build.STORED[language] for text in parts[name]}
        pieces = lexicon.fragments(
            language, parts["pretraining"], 1, build.PAIRS, build.SEED, stored
        )
        assert not stored & {*parts["pretraining"], *pieces}


def test_out_of_domain_speakers_are_new(rows):
    seen, unseen = ({row["speaker"] for row in rows[corpus]} for corpus in CORPORA)
    assert len(seen) == 12 and len(unseen) == 8
    assert not seen & unseen


def test_rows_point_into_their_containers(rows):
    for corpus, table in rows.items():
        seconds = {}
        for row in table:
            name = row["file_name"]
            if name not in seconds:
                info = soundfile.info(DEMO / corpus / name)
                assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "OPUS")
                seconds[name] = info.duration
            start, end = float(row["start"]), float(row["end"])
            assert 0 <= start < end <= seconds[name]
            assert float(row["seconds"]) == pytest.approx(end - start, abs=1e-3)
            assert float(row["seconds"]) <= 3.0, "does not fit the model's window"
        ids = [row["id"] for row in table]
        assert len(ids) == len(set(ids))


def test_model_is_a_stock_whisper(name, processor):
    model = WhisperForConditionalGeneration.from_pretrained(DEMO / name, local_files_only=True)
    assert model.dtype == torch.float32
    assert model.config.vocab_size == len(processor.tokenizer)
    assert model.config.max_source_positions == 150
    silence = torch.zeros(16_000).numpy()
    features = processor.feature_extractor(silence, sampling_rate=16_000, return_tensors="pt")
    assert features.input_features.shape == (1, 80, 300)
    tokens = model.generate(
        features.input_features, language="ca", task="transcribe", max_new_tokens=3
    )
    assert tokens.shape[0] == 1


def test_generation_config_knows_languages_and_tasks(name, processor):
    config = json.loads((DEMO / name / "generation_config.json").read_text(encoding="utf-8"))
    token_id = processor.tokenizer.convert_tokens_to_ids
    assert config["is_multilingual"] is True
    assert config["lang_to_id"] == {f"<|{code}|>": token_id(f"<|{code}|>") for code in LANGUAGES}
    assert config["task_to_id"] == {t: token_id(f"<|{t}|>") for t in ("transcribe", "translate")}
    assert config["no_timestamps_token_id"] == token_id("<|notimestamps|>")
    assert config["prev_sot_token_id"] == token_id("<|startofprev|>")
    assert config["decoder_start_token_id"] == token_id("<|startoftranscript|>")
    assert config["max_length"] <= 64


def test_special_tokens_come_in_whispers_order(processor):
    names = ["endoftext", "startoftranscript", *LANGUAGES, "translate", "transcribe"]
    names += ["startoflm", "startofprev", "nospeech", "notimestamps"]
    ids = processor.tokenizer.convert_tokens_to_ids([f"<|{name}|>" for name in names])
    assert ids == list(range(ids[0], ids[0] + len(names)))
    assert ids[-1] == len(processor.tokenizer) - 1
    assert set(ids) <= set(processor.tokenizer.all_special_ids)


@pytest.mark.parametrize(
    "text",
    [
        "la núria compra una pel·lícula i l'aigua",
        "el col·legi és molt bonic",
        "příliš žluťoučký kůň úpěl ďábelské ódy",
        "Ça, naïve – 東京 ไทย 🙂",
    ],
)
def test_tokenizer_gives_back_what_it_got(processor, text):
    ids = processor.tokenizer(text).input_ids
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokenizer_prompts_like_whisper(processor):
    tokenizer = processor.tokenizer
    tokenizer.set_prefix_tokens(language="catalan", task="transcribe")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("gat").input_ids)
    assert tokens[:4] == ["<|startoftranscript|>", "<|ca|>", "<|transcribe|>", "<|notimestamps|>"]
    assert tokens[-1] == "<|endoftext|>"

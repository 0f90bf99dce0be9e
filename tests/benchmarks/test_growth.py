"""What grows with the number of clips is rows of text, not audio: see benchmarks/growth.py."""

from __future__ import annotations

import ctypes
import gc
import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.races.memory import MB, anonymous_bytes, watched
from benchmarks.robustness import clips as made
from benchmarks.robustness import growth
from distilwhisper_lib.config.settings import locate
from distilwhisper_lib.data import fleurs
from distilwhisper_lib.data.corpora import load_corpus
from distilwhisper_lib.data.fleurs import unpack_fleurs
from distilwhisper_lib.losses import target_files
from distilwhisper_lib.speech.features import SpeechDataset

FEW, MANY = 100, 800
# Rows and the allocator's whims take less than half of what the audio of the clips would, that MANY
# has more.
LIMIT = growth.AUDIO * (MANY - FEW) / 2


def taken(call) -> int:
    """Bytes at the peak of a call that were not there before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = anonymous_bytes()
    return watched(call) - before


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Both sizes of every corpus, by the number of clips."""
    root = tmp_path_factory.mktemp("corpora")
    for clips in (10, FEW, MANY):
        folder = root / str(clips)
        (folder / "data").mkdir(parents=True)
        made.common_voice_archive(folder / "ca.tar.gz", clips, growth.WORDS)
        made.fleurs_parquet(folder / "data" / "fleurs" / "ca_es", clips, growth.WORDS)
    return root


def test_data_preparation_holds_rows_and_no_audio(corpora, monkeypatch):
    """Notebook 01's path: archive, parquet, four tables decoded, hashed and reported."""
    config, student = growth._config, locate("embedded/student")
    teacher = locate("embedded/teacher")
    monkeypatch.setattr(
        growth, "_config", lambda clips: replace(config(clips, student), teacher=teacher)
    )
    peaks = {}
    for clips in (10, FEW, MANY):  # the first pays for what is imported
        monkeypatch.chdir(corpora / str(clips))
        stages = growth.unpack_common_voice, growth.unpack_fleurs, growth.data
        peaks[clips] = [taken(lambda s=stage, n=clips: s(n)) for stage in stages]
    for few, many in zip(peaks[FEW], peaks[MANY], strict=True):
        assert many - few < LIMIT


def test_what_held_audio_would_be_noticed(corpora):
    held = {}
    for clips in (FEW, MANY):
        table = load_corpus("fleurs", "ca", "test", corpora / str(clips) / "data")
        rows = SpeechDataset(table)
        # In one piece and returned: new to the process, and there when it is looked at.
        held[clips] = taken(lambda rows=rows: np.stack([r["audio"] for r in rows]))
    assert held[MANY] - held[FEW] > LIMIT


def test_a_parquet_file_passes_by_whatever_its_size(corpora, tmp_path):
    (path,) = (corpora / str(MANY) / "data" / "fleurs" / "ca_es").glob("*.parquet")
    size = path.stat().st_size
    unpack_fleurs([path], tmp_path / "warm")
    assert size > 20 * MB and taken(lambda: unpack_fleurs([path], tmp_path / "cold")) < size / 2
    assert len(json.loads((tmp_path / "cold" / fleurs.INDEX).read_text())["clips"]) == MANY


def test_the_stages_with_models_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    growth.prepare(tmp_path, 3)
    growth.unpack_common_voice(3)
    growth.unpack_fleurs(3)
    monkeypatch.setattr(growth, "WORKERS", 0)
    monkeypatch.setattr(target_files, "SHARD_BYTES", growth.SHARD)  # as the stages set it for good
    growth.targets(3)
    assert list(tmp_path.glob("outputs/teacher_targets/*/index.json"))
    growth.test(3)  # which trains before
    assert len((tmp_path / "test.jsonl").read_text().splitlines()) == 3


def test_growth_is_told_a_stage(tmp_path):
    peaks = {1000: {"peak": 300.0, "seconds": 1.0}, 30_000: {"peak": 880.0, "seconds": 9.0}}
    row = {"stage": "data", "clips": peaks, **growth.growth(peaks)}
    assert (row["bytes_per_clip"], row["flat"]) == (20_000, False)
    peaks[30_000]["peak"] = 310.0
    assert growth.growth(peaks) == {"bytes_per_clip": 345, "flat": True}
    assert "| data | 300 | 880 | 20,000 | no | 9 |" in growth.table(
        [row | {"clips": {"1000": peaks[1000], "30000": {"peak": 880.0, "seconds": 9.0}}}]
    )

"""Long recordings made of test clips, and what is measured on them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from benchmarks.study.longform import PAUSES, border_errors, joined, main, measured
from distilwhisper_lib.config.settings import resolve
from distilwhisper_lib.data.corpora import load_corpus
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.evaluation.record import evaluate, record_run
from distilwhisper_lib.scoring.text import NORMALIZERS
from distilwhisper_lib.speech.audio import SAMPLE_RATE, read_audio
from distilwhisper_lib.training.loop import train
from distilwhisper_lib.transcription.transcriber import Transcriber
from distilwhisper_lib.transcription.transcripts import Segment, Transcript


@pytest.fixture(scope="module")
def table():
    return load_corpus("folder/speech", "ca", "test", "embedded")


def said(*segments: tuple[float, float, str]) -> Transcript:
    return Transcript("long", "ca", 9.0, tuple(Segment(*one) for one in segments))


def test_clips_of_one_speaker_stand_where_they_are_said_to_stand(table):
    long = joined(table, minutes=0.2)
    assert set(long.clips["speaker"]) == {long.speaker} and 2 < len(long.clips)
    assert 8 < len(long.samples) / SAMPLE_RATE <= 12
    for clip in long.clips.itertuples():
        begin, end = (round(at * SAMPLE_RATE) for at in (clip.opens, clip.closes))
        sound = read_audio(clip.audio, clip.start, clip.end)
        np.testing.assert_array_equal(long.samples[begin:end], sound)
    pauses = long.clips["opens"].to_numpy()[1:] - long.clips["closes"].to_numpy()[:-1]
    assert PAUSES[0] - 0.001 <= pauses.min() and pauses.max() <= PAUSES[1]
    again = joined(table.sample(frac=1, random_state=3).sort_index(), minutes=0.2)
    pd.testing.assert_frame_equal(again.clips, long.clips)


def test_a_border_is_as_far_as_the_nearest_that_was_heard():
    clips = pd.DataFrame({"opens": [0.0, 3.0, 6.0], "closes": [2.5, 5.0, 9.0]})
    heard = said((0.2, 2.5, "a"), (3.0, 8.0, "b c"))
    assert border_errors(heard, clips).tolist() == pytest.approx([0.2, 0, 3, 0, 2.5, 1])


def test_lost_words_are_those_that_nothing_stands_for(table):
    long = joined(table, minutes=0.2)
    words = NORMALIZERS["whisper"](" ".join(long.clips["text"])).split()
    heard = said((0, 4, " ".join(words[:3])), (4, 9, " ".join([*words[5:], "bon"])))
    found = measured(heard, long, "ca")
    assert found["lost"] == round(200 / len(words), 2)
    assert found["inserted"] == round(100 / len(words), 2)
    assert found["wer"] == round(300 / len(words), 2) and found["segments"] == 2


def test_a_run_is_measured_both_ways_it_can_decode(tmp_path, monkeypatch):
    """Heard by a stand-in, because the demo's vocabulary has no timestamps."""
    monkeypatch.chdir(tmp_path)
    few = {"train_size": 4, "validation_size": 2, "test_size": 40, "max_steps": 1, "epochs": 1}
    config = resolve("clsr", "demo", "ca", overrides=few)
    data = load_data(config)
    run = train(config, data)
    record_run(run, data, evaluate(run, data))

    def transcribe(self, samples, language, timestamps):
        assert (len(samples) > 0, language) == (True, "ca")
        heard = said((0.0, 1.0, data.in_domain["text"].iloc[0]))
        return replace(heard, timed_by="model" if timestamps else "windows")

    monkeypatch.setattr(Transcriber, "transcribe", transcribe)
    out, subtitles = tmp_path / "long.json", tmp_path / "srt"
    call = [
        str(run.folder),
        str(run.folder),
        "--minutes",
        "0.1",
        "--out",
        str(out),
        "--srt",
        str(subtitles),
    ]
    for _ in range(2):  # again: in the place of what is there
        assert main(call) == 0
        rows = json.loads(out.read_text())
        systems = [f"{config.student}, stock", config.run_id]
        assert [(row["system"], row["timed_by"]) for row in rows] == [
            (system, way) for system in systems for way in ("model", "windows")
        ]
    assert all(row["clips"] > 1 and row["lost"] > 0 for row in rows)
    assert len(list(subtitles.glob("*.srt"))) == 4

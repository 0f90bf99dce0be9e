"""From a recording, a folder or an array to text: the library as people use it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import distilwhisper_lib
from distilwhisper_lib.config.settings import locate, resolve
from distilwhisper_lib.data.corpora import load_corpus
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.decoding import transcribe as transcribe_table
from distilwhisper_lib.gates.recorder import GateRecorder
from distilwhisper_lib.model.loading import load_model
from distilwhisper_lib.model.tensors import read_metadata
from distilwhisper_lib.speech.arrays import samples_of
from distilwhisper_lib.speech.audio import read_audio
from distilwhisper_lib.training.loop import train
from distilwhisper_lib.transcription import recordings
from distilwhisper_lib.transcription import transcriber as module
from distilwhisper_lib.transcription.command import main
from distilwhisper_lib.transcription.recordings import cut_at_silence
from distilwhisper_lib.transcription.transcriber import Transcriber

RATE = 16_000


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


@pytest.fixture
def listener(tiny_model, processor):
    return Transcriber(tiny_model("ca", "cs"), processor)


@pytest.fixture
def timed(tiny_model, processor):
    """Factory of tiny models whose vocabulary has timestamps for the window of three seconds."""

    def make(*languages):
        model = tiny_model(*languages)
        torch.manual_seed(3)
        model.resize_token_embeddings(model.config.vocab_size + 151)
        return Transcriber(model, processor)

    return make


# Samples in memory -----------------------------------------------------------------------------


def test_arrays_of_every_layout_and_type_become_the_samples_of_the_file(tmp_path):
    stereo = np.stack([noise(0.5), noise(0.5, 1)], axis=1).clip(-1, 1)  # (samples, channels)
    soundfile.write(tmp_path / "a.wav", stereo, 44_100, subtype="PCM_16")
    expected = read_audio(tmp_path / "a.wav")
    integers, rate = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert samples_of(integers, rate).dtype == np.float32
    for given in (
        integers,
        integers.T,  # (channels, samples), as torchaudio has them
        integers.astype(np.int32) << 16,
        integers.astype(np.float64) / 2**15,
        torch.tensor(integers) / 2**15,
    ):
        np.testing.assert_allclose(samples_of(given, rate), expected, atol=1e-5)
    mono = samples_of(noise(0.1).tolist())
    np.testing.assert_allclose(mono, noise(0.1))
    eight = samples_of(np.array([0, 128, 255], np.uint8))
    np.testing.assert_allclose(eight, [-1, 0, 127 / 128])


@pytest.mark.parametrize(
    ("array", "rate", "message"),
    [
        (np.zeros((2, 3, 100)), RATE, r"shape \(2, 3, 100\)"),
        (np.zeros((100, 100)), RATE, r"shape \(100, 100\)"),
        (np.zeros(0), RATE, r"shape \(0,\)"),
        (np.zeros(()), RATE, r"shape \(\)"),
        (np.array([0.0, np.nan]), RATE, "NaN or infinite"),
        (np.array([0.0, 12_345.0]), RATE, "floats up to 12345, expected -1 to 1"),
        (np.zeros(100, np.int64), RATE, "holds int64"),
        (np.zeros(100, complex), RATE, "holds complex128"),
        (["a", "b"], RATE, "holds"),
        ([[0.0], [0.0, 1.0]], RATE, "no array of numbers"),
        (np.zeros(100), 100, "Sample rate 100 is out of range"),
        (np.zeros(100), "16k", "Sample rate '16k' is out of range"),
        (np.broadcast_to(np.float32(0), (3 * 3600 + 1) * 4000), 4000, "10801 s long"),
    ],
)
def test_arrays_that_are_no_audio_are_refused(array, rate, message):
    with pytest.raises(UserError, match=message):
        samples_of(array, rate)


# Short recordings --------------------------------------------------------------------------------


def test_a_file_its_bytes_and_its_samples_give_the_text_of_the_evaluation(listener, tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, noise(1.2), RATE, subtype="FLOAT")
    table = load_corpus("folder/speech", "ca", "test", "embedded").head(1)
    table = table.assign(audio=str(path), start=float("nan"), end=float("nan"), seconds=1.2)
    (row,) = transcribe_table(listener.model, listener.processor, table, progress=False,
                              max_new_tokens=60)  # fmt: skip
    heard = listener.transcribe(path, "Catalan")
    assert heard.text == " ".join(row["hypothesis"].split()) and heard.text
    assert (heard.source, heard.language, heard.seconds) == (str(path), "ca", 1.2)
    assert heard.timed_by == "windows" and heard.error is None
    assert [(s.start, s.end) for s in heard.segments] == [(0.0, 1.2)]
    assert listener.transcribe(path.read_bytes(), "ca").text == heard.text
    assert listener.transcribe(noise(1.2), "ca").text == heard.text


def test_translation_and_options_reach_generate(listener):
    audio = noise(1.0)
    shared = Transcriber(listener.model, listener.processor)
    with GateRecorder(listener.model) as recorder:
        shared.transcribe(audio, "ca", task="translate")
        assert not recorder.take()["encoder"].any()
    assert len(shared.transcribe(audio, "ca", max_new_tokens=1).text) <= len(
        shared.transcribe(audio, "ca").text
    )


def test_one_bad_recording_does_not_stop_the_others(listener, tmp_path):
    (tmp_path / "sub").mkdir()
    soundfile.write(tmp_path / "good.wav", noise(0.8), RATE)
    soundfile.write(tmp_path / "sub" / "zero.flac", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "stereo.ogg", np.stack([noise(0.6)] * 2, 1), 48_000)
    (tmp_path / "broken.mp3").write_bytes(b"no audio at all")
    (tmp_path / "notes.txt").write_text("not a recording")
    heard = {Path(t.source).name: t for t in listener.transcribe(tmp_path, "ca")}
    assert list(heard) == ["broken.mp3", "good.wav", "stereo.ogg", "zero.flac"]
    assert heard["good.wav"].text and heard["stereo.ogg"].text
    assert "broken.mp3 cannot be read" in heard["broken.mp3"].error
    assert "zero.flac holds only silence" in heard["zero.flac"].error
    alone = listener.transcribe([tmp_path / "good.wav", noise(0.5)], "ca", batch_size=1)
    assert alone[0].text == heard["good.wav"].text and alone[1].source == "array 2"


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("missing.wav", {}, "missing.wav does not exist"),
        ("empty", {}, "holds no recording"),
        ([], {}, "list of recordings is empty"),
        (np.zeros(RATE), {}, "array holds only silence"),
        (noise(0.1), {"language": "klingon"}, "Unknown language 'klingon'"),
        (noise(0.1), {"task": "summarise"}, "task 'summarise' is unknown"),
        (noise(0.1), {"timestamps": True}, "no timestamps in its vocabulary"),
        (noise(0.1), {"rate": 1}, "Sample rate 1"),
    ],
)
def test_mistakes_are_named(listener, tmp_path, monkeypatch, source, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        listener.transcribe(source, **{"language": "ca"} | options)


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="no file or folder '.*nothing' with config.json"):
        Transcriber.load(tmp_path / "nothing")


# Experts and languages ---------------------------------------------------------------------------


def test_an_expert_is_loaded_when_its_language_is_first_asked_for():
    listener = Transcriber.load("embedded/student", experts="embedded/experts")
    clip = load_corpus("folder/speech", "ca", "test", "embedded").iloc[0]
    audio = read_audio(clip["audio"], clip["start"], clip["end"])
    assert listener.model.languages == []
    with_expert = listener.transcribe(audio, "ca")
    assert listener.model.languages == ["ca"]
    listener.model.remove_expert("ca")
    listener.experts = None
    assert listener.transcribe(audio, "ca").text != with_expert.text
    listener.experts = locate("embedded/experts")
    with pytest.raises(UserError, match="language is missing"):
        listener.transcribe(audio)
    with pytest.raises(UserError, match="no expert.finnish.safetensors"):
        listener.transcribe(audio, "fi")


def test_without_a_language_each_recording_goes_the_way_of_the_detected_one(listener, monkeypatch):
    asked = iter(["<|cs|>", "<|ca|>"])
    token = listener.processor.tokenizer.convert_tokens_to_ids
    monkeypatch.setattr(
        type(listener.model), "detect_language", lambda *_, **__: torch.tensor([token(next(asked))])
    )
    heard = listener.transcribe([noise(1.0), noise(1.0)])
    assert [t.language for t in heard] == ["cs", "ca"]
    for transcript in heard:
        assert transcript.text == listener.transcribe(noise(1.0), transcript.language).text
    assert heard[0].text != heard[1].text


def test_detection_is_whispers_own(listener):
    code = listener.transcribe(noise(1.0)).language
    assert f"<|{code}|>" in listener.model.generation_config.lang_to_id


# Long recordings ---------------------------------------------------------------------------------


def test_cuts_fall_into_pauses_and_lose_nothing():
    speech = noise(10.0)
    for pause in (2.2, 4.6, 7.5):
        speech[int(pause * RATE) : int((pause + 0.2) * RATE)] = 0
    pieces = cut_at_silence(speech, 3 * RATE)
    assert pieces[0][0] == 0 and pieces[-1][1] == len(speech)
    assert all(a[1] == b[0] for a, b in zip(pieces, pieces[1:], strict=False))
    assert all(0 < last - first <= 3 * RATE for first, last in pieces)
    for (_, cut), pause in zip(pieces, (2.2, 4.6), strict=False):
        assert pause < cut / RATE < pause + 0.2
    assert cut_at_silence(speech[: 3 * RATE], 3 * RATE) == [(0, 3 * RATE)]


def test_without_timestamps_windows_are_decoded_one_by_one(listener):
    """Window by window with their times; stretches of silence are left out."""
    audio = np.concatenate([noise(2.5), np.zeros(7 * RATE, np.float32), noise(2.5, 1)])
    heard = listener.transcribe(audio, "ca", batch_size=2)
    assert heard.timed_by == "windows" and heard.seconds == 12.0
    assert all(s.end - s.start <= 3.0 for s in heard.segments)
    assert not any(3.0 <= s.start and s.end <= 9.0 for s in heard.segments)
    first, last = heard.segments[0], heard.segments[-1]
    assert first.start == 0.0 and last.end == 12.0
    piece = audio[int(last.start * RATE) : int(last.end * RATE)]
    assert listener.transcribe(piece, "ca").text == last.text


def test_long_recordings_go_through_transformers_long_form(timed):
    listener = timed("ca")
    assert listener.has_timestamps
    audio = noise(5.0)
    heard = listener.transcribe(audio, "ca")
    assert heard.timed_by == "model" and heard.segments
    times = [(s.start, s.end) for s in heard.segments]
    assert times == sorted(times) and all(0 <= a <= b <= 5.0 for a, b in times)
    extractor = listener.processor.feature_extractor
    inputs = extractor(audio, sampling_rate=RATE, truncation=False, return_tensors="pt")
    out = listener.model.generate(
        inputs.input_features, language="ca", task="transcribe", return_timestamps=True,
        return_segments=True, num_beams=1, do_sample=False,
    )  # fmt: skip
    plain = listener.model.generation_config.no_timestamps_token_id
    texts = [
        listener.processor.tokenizer.decode([t for t in s["tokens"].tolist() if t <= plain],
                                            skip_special_tokens=True)
        for s in out["segments"][0]
        if s["start"] < 5.0  # what it hears in the padding of the last window is left out
    ]  # fmt: skip
    assert heard.text.split() == " ".join(texts).split()
    short = listener.transcribe(noise(1.0), "ca")
    assert short.timed_by == "windows"  # nothing to gain
    asked = listener.transcribe(noise(1.0), "ca", timestamps=True)
    assert asked.timed_by == "model" and all(s.end <= 1.0 for s in asked.segments)
    assert listener.transcribe(audio, "ca", timestamps=False).timed_by == "windows"


def test_timestamps_are_used_where_what_speaks_has_learned_them(timed, tmp_path, monkeypatch):
    """By an expert's file, a run's settings, or what an export says; stock Whisper knows them."""
    audio, teller = noise(5.0), timed("ca")
    teller.model.save_experts("ca", tmp_path / "with", timestamps="0.2")
    teller.model.save_experts("ca", tmp_path / "without")
    for folder, timed_by in (("with", "model"), ("without", "windows")):
        listener = timed()
        assert listener.transcribe(audio, "ca").timed_by == "model"
        listener.experts = str(tmp_path / folder)
        assert listener.transcribe(audio, "ca").timed_by == timed_by
        listener.experts = None
        assert listener.transcribe(audio, "cs").timed_by == "model"  # the shared branch
    listener = timed("ca")
    for share, timed_by in ((0.0, "windows"), (0.2, "model")):
        listener.model.config.learned_timestamps = share
        plain = Transcriber(listener.model, listener.processor)
        assert plain.transcribe(audio, "ca").timed_by == timed_by
        del listener.model.config.learned_timestamps
        for method, others in (("js", "model"), ("lora", timed_by), ("zero_shot", "model")):
            config = resolve(method, "demo", "ca", overrides={"timestamps": share})
            run = SimpleNamespace(model=listener.model, processor=listener.processor, config=config)
            monkeypatch.setattr(module, "is_run", lambda _: True)
            monkeypatch.setattr(module, "load_run", lambda _, run=run: run)
            of_run = Transcriber.load("outputs/it")
            own = "model" if method == "zero_shot" else timed_by
            assert of_run.transcribe(audio, "ca").timed_by == own
            assert of_run.transcribe(audio, "cs").timed_by == others


def test_long_form_in_a_batch_routes_each_row_by_its_own_language(timed, monkeypatch):
    """Rows of different lengths and languages together: each through its own expert, to the end."""
    listener = timed("ca", "cs")
    token = listener.processor.tokenizer.convert_tokens_to_ids
    asked = []
    monkeypatch.setattr(
        type(listener.model), "detect_language", lambda *_, **__: torch.tensor([token(asked.pop())])
    )
    audio, languages = [noise(5.0), noise(3.5, 1), noise(4.5, 2)], ["ca", "cs", "gl"]
    asked[:] = [f"<|{code}|>" for code in reversed(languages)]
    together = listener.transcribe(audio, timestamps=True, batch_size=3)
    assert [t.language for t in together] == languages
    for one, given, code in zip(together, audio, languages, strict=True):
        alone = listener.transcribe(given, code, timestamps=True)
        assert alone.segments == one.segments
    forced = timed("ca", "cs").transcribe(audio[0], "cs", timestamps=True)
    assert forced.segments != together[0].segments  # the experts differ, so the route matters
    for code in ("ca", "cs"):
        listener.model.remove_expert(code)
    assert listener.transcribe(audio[2], "gl", timestamps=True).segments == together[2].segments


def test_very_long_recordings_are_cut_before_long_form(timed, monkeypatch):
    monkeypatch.setattr(module, "TIMED_WINDOWS", 2)
    listener, longest = timed("ca"), []
    decode = listener._decode_timed
    monkeypatch.setattr(
        listener,
        "_decode_timed",
        lambda audio, *rest: (longest.append(max(map(len, audio))), decode(audio, *rest))[1],
    )
    heard = listener.transcribe(noise(14.0), "ca", batch_size=2)
    assert max(longest) <= 6 * RATE and len(longest) > 1
    starts = [s.start for s in heard.segments]
    assert starts == sorted(starts) and heard.segments[-1].end > 8.0


# The command, the package, the README ------------------------------------------------------------


def test_the_command_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    folder, to = tmp_path / "in", tmp_path / "out" / "heard.jsonl"
    folder.mkdir()
    for name in ("a", "b"):
        soundfile.write(folder / f"{name}.wav", noise(0.7), RATE)
    (folder / "c.wav").write_bytes(b"broken")
    call = [str(folder), "--language", "ca", "--model", "embedded/student", "--to", str(to)]
    assert main(call) == 1
    assert "c.wav cannot be read" in capsys.readouterr().err
    lines = to.read_text().splitlines(keepends=True)
    assert [json.loads(line)["error"] is None for line in lines] == [True, True, False]
    to.write_text(lines[0] + lines[1][:20])
    opened = []
    read = recordings.read_audio
    monkeypatch.setattr(
        recordings, "read_audio", lambda p: (opened.append(Path(p).name), read(p))[1]
    )
    assert main(call) == 1
    assert opened == ["b.wav", "c.wav"]
    assert to.read_text().splitlines(keepends=True) == lines
    assert main(call) == 1
    assert to.read_text().splitlines(keepends=True) == lines  # the failure, once
    (folder / "c.wav").unlink()
    assert main(call) == 0
    assert to.read_text().splitlines(keepends=True) == lines[:2]


@pytest.mark.parametrize("mine", [
    '{"id": 1}\n', "[1]\n", "notes\n", "\n", "notes", '{"id": 1}', "\xff\n",
])  # fmt: skip
def test_the_command_keeps_a_file_that_holds_something_else(mine, tmp_path, monkeypatch, capsys):
    soundfile.write(tmp_path / "a.wav", noise(0.7), RATE)
    monkeypatch.setattr(Transcriber, "load", lambda *_: pytest.fail("a model was loaded"))
    to = tmp_path / "mine.jsonl"
    to.write_text(mine, encoding="latin-1")
    assert main([str(tmp_path), "--language", "ca", "--to", str(to)]) == 2
    assert "mine.jsonl: line 1 is no transcript" in capsys.readouterr().err
    assert to.read_text(encoding="latin-1") == mine


def test_the_command_writes_subtitles_and_prints_text(tmp_path, capsys):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", noise(0.7), RATE)
    call = ["--language", "ca", "--model", "embedded/student"]
    assert main([str(tmp_path), *call, "--to", str(tmp_path / "subs"), "--format", "vtt"]) == 0
    assert sorted(p.name for p in (tmp_path / "subs").iterdir()) == ["a.vtt", "b.vtt"]
    capsys.readouterr()
    assert main([str(tmp_path / "a.wav"), *call]) == 0
    assert capsys.readouterr().out.strip()
    (tmp_path / "torn.wav").write_bytes(b"RIFF")
    assert main([str(tmp_path / "torn.wav"), *call, "--to", str(tmp_path / "x.txt")]) == 1
    assert main([str(tmp_path / "torn.wav"), *call, "--to", str(tmp_path / "x.srt")]) == 1
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.parametrize(("names", "said"), [("a", "a does not"), ("ab", "a and 1 more do not")])
def test_the_command_says_before_it_loads_a_model_that_nothing_is_there(
    names, said, monkeypatch, capsys
):
    monkeypatch.setattr(Transcriber, "load", lambda *_: pytest.fail("a model was loaded"))
    assert main([*names, "--language", "ca"]) == 2
    assert f"error: {said} exist" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["x.docx", "x.srt"])
def test_the_command_refuses_a_destination_before_it_listens(to, tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", noise(0.7), RATE)
    monkeypatch.setattr(Transcriber, "load", lambda *_: pytest.fail("a model was loaded"))
    assert main([str(tmp_path), "--language", "ca", "--to", str(tmp_path / to)]) == 2
    assert to in capsys.readouterr().err


def test_the_readmes_lines_run(capsys, monkeypatch, tmp_path):
    """The first Python of the page is what a newcomer pastes into an empty notebook."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", readme, re.S)[1]
    assert len(code.strip().splitlines()) <= 5
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert len(capsys.readouterr().out.split()) > 3


def test_the_package_offers_them():
    assert distilwhisper_lib.transcribe is module.transcribe
    assert distilwhisper_lib.Transcriber is Transcriber


def test_an_expert_is_heard_in_the_window_that_it_was_trained_in(study_of, tmp_path):
    study = study_of(3, max_seconds=2, max_steps=1, recipe="paper")
    short = study("clsr", window_seconds=2)
    run = train(short, load_data(short))
    wav = tmp_path / "speech" / "test2.wav"
    (path,) = run.folder.glob("expert.*")
    metadata = read_metadata(path)
    assert (metadata["window_seconds"], metadata["version"]) == ("2", "2")
    listener = Transcriber.load("student", experts=run.folder)
    heard = listener.transcribe(wav, "ca")
    assert listener.window == 2
    assert heard.text == Transcriber(run.model, run.processor).transcribe(wav, "ca").text
    model = load_model("student")[0]  # in its own window
    model.add_expert("cs")
    model.save_experts("cs", run.folder)
    with pytest.raises(UserError, match="expert for 'cs' was trained in a window of 3 s, those"):
        listener.transcribe(wav, "cs")
    assert listener.model.languages == ["ca"] and listener.transcribe(wav, "ca") == heard

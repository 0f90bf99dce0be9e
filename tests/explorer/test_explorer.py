"""The gate explorer, driven by its controls, and its static twins."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import ipywidgets
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import soundfile
from figures import draw, texts
from make_records import make_record

from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.decoding import read_hypotheses, transcribe
from distilwhisper_lib.evaluation.record import evaluate, record_run
from distilwhisper_lib.evaluation.run import load_run, read_config
from distilwhisper_lib.explorer.app import NONE, OWN, Explorer, uploaded
from distilwhisper_lib.explorer.html import (
    contrast,
    fill,
    notes_html,
    route,
    tokens_html,
    transcripts_html,
)
from distilwhisper_lib.explorer.runs import Heard, ListedRun, Listener, Scene, clips_of, find_runs
from distilwhisper_lib.explorer.static import (
    sound_figure,
    tokens_figure,
    transcripts_figure,
    transcripts_table,
)
from distilwhisper_lib.gates.counts import REST
from distilwhisper_lib.model.loading import load_model
from distilwhisper_lib.training.loop import train

RUNS = ("clsr", "js", "lora")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "runs"


@pytest.fixture
def study(kept, study_of, tmp_path):
    """Configurations of three finished runs, which are trained once and copied to each test."""
    make = study_of(clips=3, max_steps=2, data_dir="data")
    for name in ("speech", "ood"):
        shutil.move(tmp_path / name, tmp_path / "data" / name)
    if kept.exists():
        shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
        return make
    for method in RUNS:
        config = make(method)
        data = load_data(config)
        trained = train(config, data)
        record_run(trained, data, evaluate(trained, data))
    shutil.copytree(tmp_path, kept)
    return make


def choose(dropdown, part):
    """Choose the option whose label holds ``part``."""
    (dropdown.value,) = [value for label, value in dropdown.options if part in label]


def send(explorer, name, content):
    """What a browser sends to the control, in either ipywidgets."""
    about = {"name": name, "type": "audio/wav", "size": len(content)}
    if ipywidgets.__version__ < "8":
        state = {"metadata": [about], "data": [memoryview(content)]}
        state["_counter"] = explorer.upload._counter + 1
    else:
        state = {"value": [about | {"last_modified": 0, "content": memoryview(content)}]}
    explorer.upload.set_state(state)


def wav(samples):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format="WAV")
    return buffer.getvalue()


# Driven --------------------------------------------------------------------------------------


def test_its_transcripts_are_those_of_the_runs(study):
    explorer = Explorer(study("zero_shot"))
    config = study("clsr")
    clips = load_data(config).in_domain
    student, processor = load_model("student")
    limit = {"max_new_tokens": config.max_new_tokens, "progress": False}
    learnt = transcribe(load_run(config.output_dir).model, processor, clips, **limit)
    plain = transcribe(student, processor, clips, **limit)
    assert [value for _, value in explorer.clip.options] == list(clips["id"])
    for place in range(len(clips)):
        explorer.clip.index = place
        said = {heard.mode: heard.text for heard in explorer.scene.modes}
        assert list(said) == ["learned", "open", "closed"]
        assert said["learned"] == learnt[place]["hypothesis"]
        assert said["closed"] == plain[place]["hypothesis"]
        assert explorer.scene.heard.reference == clips["text"][place]
        played, rate = soundfile.read(io.BytesIO(explorer.audio.value))
        original, _ = soundfile.read(clips["audio"][place])
        assert rate == 16_000 and np.allclose(played, original, atol=1e-4)
    assert explorer.notes.value == ""


@pytest.mark.parametrize("gates", ["hard", "soft", "open"])
def test_a_low_rank_expert_is_heard_under_its_own_gates_and_all_others(study_of, gates):
    decisive = {"recipe": "decisive", "expert_rank": 4, "router_epochs": 1}
    config = study_of(clips=3, max_steps=2)("clsr", gate_mode=gates, **decisive)
    data = load_data(config)
    trained = train(config, data)
    record_run(trained, data, evaluate(trained, data))
    (run,), _ = find_runs(config)
    scene = Listener().scene(run, clips_of(run, "in_domain", 1)[0])
    assert not scene.notes and scene.heard is scene.modes[0]
    own, opened, closed = scene.modes
    assert opened.token_gates.all() and not closed.frame_gates.any()
    recorded = read_hypotheses(run.folder / "in_domain-test.jsonl")[0]
    assert own.clip == recorded["id"] and own.text == recorded["hypothesis"]
    assert (own.token_soft is None) == (gates == "open") and (
        gates != "open" or own.frame_gates.all()
    )


def test_gates_are_forced_and_layers_chosen(study):
    explorer = Explorer(study("zero_shot"))
    heard = explorer.scene.heard
    assert heard.token_gates.shape == (2, len(heard.tokens))
    assert ((heard.token_soft >= 0.5) == heard.token_gates.astype(bool)).all()
    assert ((heard.frame_soft >= 0.5) == heard.frame_gates.astype(bool)).all()
    seen = {explorer.tokens.value}
    for layer in (1, 2):
        explorer.layer.value = layer
        assert f"decoder layer {layer}:" in explorer.tokens.value
        seen.add(explorer.tokens.value)
    assert len(seen) == 3
    for mode, share in (("open", 1), ("closed", 0)):
        explorer.mode.value = mode
        heard = explorer.scene.heard
        assert (heard.token_gates == share).all() and (heard.frame_gates == share).all()
        assert heard.token_soft is None
        assert explorer.layer.value == 2
        assert f"gates {mode}" in explorer.tokens.value


def test_two_runs_are_compared_and_one_may_have_no_gates(study):
    explorer = Explorer(study("zero_shot"))
    assert explorer.run.value.startswith("clsr-") and explorer.other.value.startswith("js-")
    explorer.other.value = NONE
    assert "CLSR + JS" not in explorer.tokens.value
    before = explorer.sound.value
    choose(explorer.other, "CLSR + JS")
    assert [heard.run.config.method for heard in explorer.scene.shown] == ["clsr", "js"]
    assert explorer.sound.value != before
    assert "Catalan, CLSR + JS, gates learned" in explorer.tokens.value
    assert "Catalan, CLSR + JS, gates learned" in explorer.transcripts.value
    choose(explorer.other, "LoRA")
    assert explorer.scene.other.token_gates is None
    assert "(no gates)" in explorer.tokens.value
    choose(explorer.run, "CLSR + JS")
    assert explorer.scene.heard.run.config.method == "js"
    assert explorer.scene.other.run.config.method == "lora"
    choose(explorer.clip, "b")
    choose(explorer.domain, "out of domain")
    assert explorer.scene.heard.reference.startswith("test frase")


def test_recordings_are_uploaded_and_bad_ones_told(study):
    explorer = Explorer(study("zero_shot"))
    explorer.domain.value = OWN
    assert "no recording of yours yet" in explorer.notes.value.lower()
    assert explorer.static(Path("nowhere"))[0].data == explorer.notes.value
    good = wav(np.random.default_rng(0).normal(0, 0.1, 16_000))
    send(explorer, "mine.wav", good)
    assert explorer.domain.value == OWN
    assert explorer.scene.heard.clip.startswith("mine.wav (")
    assert "reference above" not in explorer.transcripts.value
    assert explorer.scene.heard.errors() is None
    for name, content, message in (
        ("<script>.wav", b"no audio", "cannot be read"),
        ("empty.wav", b"", "is empty (0 bytes)"),
        ("quiet.wav", wav(np.zeros(8_000)), "holds only silence"),
    ):
        send(explorer, name, content)
        assert message in explorer.notes.value
        assert name.removeprefix("<script>") in explorer.notes.value
        assert "<script>" not in explorer.notes.value
        assert explorer.tokens.value == explorer.transcripts.value == explorer.sound.value == ""
        assert explorer.audio.layout.display == "none"
    assert len(explorer.clip.options) == 4
    choose(explorer.clip, "mine.wav")
    assert explorer.notes.value == "" and explorer.audio.layout.display != "none"
    send(explorer, "long.wav", wav(np.random.default_rng(0).normal(0, 0.1, 16_000 * 5)))
    assert "the first 3.0 s" in explorer.notes.value
    assert explorer.tokens.value


def test_a_recording_can_be_given_by_its_path(study, tmp_path):
    explorer = Explorer(study("zero_shot"))
    (tmp_path / "mine.wav").write_bytes(wav(np.random.default_rng(0).normal(0, 0.1, 16_000)))
    explorer.path.value = "mine.wav"
    assert explorer.domain.value == OWN
    assert explorer.scene.heard.clip == "mine.wav" and explorer.notes.value == ""
    explorer.path.value = "gone.wav"
    assert "gone.wav" in explorer.notes.value and "not exist" in explorer.notes.value
    explorer.path.value = " "
    assert len(explorer.clip.options) == 2


def test_a_clip_that_is_gone_does_not_end_the_session(study):
    explorer = Explorer(study("zero_shot"))
    clips = load_data(study("clsr")).in_domain
    Path(clips["audio"][1]).unlink()
    explorer.clip.index = 1
    assert "does not exist" in explorer.notes.value and explorer.tokens.value == ""
    explorer.clip.index = 2
    assert explorer.notes.value == "" and explorer.tokens.value
    shutil.rmtree("data")
    explorer.domain.value = "out_of_domain"
    assert "ood" in explorer.notes.value and explorer.tokens.value == ""


def test_what_other_libraries_raise_is_told_too(study, monkeypatch):
    explorer = Explorer(study("zero_shot"))

    def fail(*_, **__):
        raise RuntimeError("the device is <b>gone</b>")

    monkeypatch.setattr("distilwhisper_lib.explorer.runs.inspect_clip", fail)
    explorer.clip.index = 1
    assert "RuntimeError: the device is &lt;b&gt;gone&lt;/b&gt;" in explorer.notes.value
    assert explorer.sound.value  # the spectrogram needs no model


def test_recordings_may_lie_in_a_folder_that_records_do_not_tell(study, tmp_path):
    shutil.move("data", tmp_path / "elsewhere" / "data")
    explorer = Explorer(study("zero_shot", data_dir=str(tmp_path / "elsewhere" / "data")))
    assert explorer.tokens.value and explorer.notes.value == ""


# Without models, without a frontend ----------------------------------------------------------


def test_without_models_the_examples_of_gate_files_are_shown(study):
    live = Explorer(study("zero_shot")).scene.heard
    for record in Path("outputs").glob("*/record.json"):
        shutil.rmtree(record.parent)
    explorer = Explorer(study("zero_shot"))
    shown = explorer.scene.heard
    assert (shown.text, list(shown.tokens)) == (live.text, list(live.tokens))
    assert (shown.frame_gates == live.frame_gates).all() and shown.frame_soft is None
    assert explorer.scene.samples is not None  # the corpus is here
    command = "python -m distilwhisper_lib.batch run 04_clsr_only"
    assert "is not in outputs/" in explorer.notes.value and command in explorer.notes.value
    choose(explorer.other, "example only")
    assert len(explorer.scene.shown) == 2
    explorer.mode.value = "open"
    assert explorer.scene.heard is None and explorer.tokens.value == ""
    shutil.rmtree("data")
    explorer = Explorer(study("zero_shot"))
    assert "the recording of" in explorer.notes.value.lower()
    assert explorer.tokens.value and explorer.sound.value
    assert explorer.audio.layout.display == "none"


def test_runs_that_came_with_the_kit_stand_in_and_beside_and_are_marked(study):
    config = study("zero_shot")
    shutil.copytree(config.results_dir, "results/demo")
    own, _ = find_runs(config)
    beside, notes = find_runs(config, published=True)
    assert beside[: len(own)] == own and notes == []
    assert [run.key for run in beside[len(own) :]] == [
        f"{run.run_id} came with the kit" for run in beside[len(own) :]
    ]
    assert {run.run_id for run in beside[len(own) :]} == {r.run_id for r in own if r.has_gates}
    labels = [label for label, _ in Explorer(config, published=True).run.options]
    assert sum(", came with the kit (" in label for label in labels) == len(labels) / 2
    shutil.rmtree("outputs")
    explorer = Explorer(config)
    assert "No run of your own to show in outputs/results/demo" in explorer.notes.value
    assert explorer.tokens.value and "example only" in explorer.run.label
    assert "came with the kit" in explorer.run.label


def test_nothing_to_explore_is_an_error_and_a_broken_record_a_note(study):
    (next(Path("outputs").glob("js-*")) / "record.json").write_text("{}")
    shutil.rmtree("outputs/results")
    explorer = Explorer(study("zero_shot"))
    assert "record.json" in explorer.notes.value and explorer.tokens.value
    shutil.rmtree("outputs")
    with pytest.raises(UserError, match="no run with gates in outputs/ or outputs/results/demo"):
        Explorer(study("zero_shot"))


def test_it_opens_at_a_run_of_the_notebooks_seed_and_training_size(study):
    short = study("clsr", train_size=2)
    data = load_data(short)
    trained = train(short, data)
    record_run(trained, data, evaluate(trained, data))
    for asked in (short, study("clsr")):
        runs, faults = find_runs(asked)
        assert faults == [] and len(runs) == 4
        assert runs[0].run_id == asked.run_id
    shutil.rmtree(study("clsr").output_dir)  # what has no model here comes last, whoever asks
    runs, _ = find_runs(study("clsr"))
    assert runs[-1].run_id == study("clsr").run_id and runs[-1].folder is None


def test_every_view_has_a_static_twin(study, tmp_path):
    explorer = Explorer(study("zero_shot"))
    choose(explorer.other, "CLSR + JS")
    shown = explorer.static(tmp_path / "figures")
    run = explorer.run.value
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"explorer-{view}-{run}.{kind}"
        for view in ("sound", "tokens", "transcripts")
        for kind in ("png", "svg", "csv")
    }
    assert [type(one).__name__ for one in shown] == ["Figure"] * 3 + ["DataFrame"]
    tables = {
        view: pd.read_csv(tmp_path / "figures" / f"explorer-{view}-{run}.csv")
        for view in ("sound", "tokens", "transcripts")
    }
    heard, other = explorer.scene.shown
    for name, table in (("token", "tokens"), ("frame", "sound")):
        mine = tables[table][tables[table]["run"] == run]
        for layer in range(2):
            assert list(mine[f"expert, layer {layer + 1}"]) == list(
                getattr(heard, f"{name}_gates")[layer]
            )
            soft = getattr(heard, f"{name}_soft")[layer]
            assert np.allclose(mine[f"gate, layer {layer + 1}"], soft, atol=1e-4)
        assert set(tables[table]["run"]) == {run, other.run.run_id}
    transcripts = tables["transcripts"]
    assert list(transcripts["gates"]) == ["learned", "open", "closed", "learned"]
    assert transcripts["transcript"][0] == heard.text
    picture = matplotlib.image.imread(tmp_path / "figures" / f"explorer-sound-{run}.png")
    assert picture.std() > 0.1


def test_pages_without_widgets_get_a_picture(study):
    explorer = Explorer(study("zero_shot"))
    bundle = explorer._repr_mimebundle_(include=None, exclude=None)
    view = bundle["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == explorer.box.model_id
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert "VBox" not in bundle["text/plain"]


# Views ---------------------------------------------------------------------------------------


def heard_of(tokens, gates, reference="", text="", mode="learned", language="ca", **run):
    record = make_record("clsr", language, **run)
    run = ListedRun(record, read_config(record), None, None)
    gates = np.array(gates)
    soft = 0.25 + 0.5 * gates
    return Heard(run, mode, "clip", reference, text, tokens, 3, gates, gates[:, :3], soft, None)


def scene_of(*modes, clip="clip"):
    return Scene({"id": clip}, None, modes[0], list(modes))


def test_compared_runs_are_told_apart_by_what_differs():
    def titles(**run):
        gates = np.ones((2, 4))
        one, other = (heard_of(list("abcd"), gates, "a", "a", **given) for given in ({}, run))
        scene = Scene({"id": "clip"}, None, one, [one], other)
        figures = (sound_figure(scene), tokens_figure(scene), transcripts_figure(scene))
        told = [[t for t in texts(draw(figure)) if "gates learned" in t] for figure in figures]
        assert all(len(found) == 2 for found in told)
        for page in (tokens_html(scene), transcripts_html(scene)):
            assert scene.title(other) in page and scene.name(one.run) in page
        (first, second), *others = told
        assert scene.title(one) in first and scene.title(other) in second
        return scene.name(one.run), scene.name(other.run)

    plain = "Catalan, CLSR"
    assert titles(seed=78) == (f"{plain}, seed 77", f"{plain}, seed 78")
    assert titles(budget=0.3) == (plain, f"{plain}, budget=0.3")
    assert titles() == (plain, plain)


EVIL = "<script>alert('1')</script>"


def test_whatever_was_said_or_written_is_escaped():
    tokens = ["a", "b", "c", "d", f' {EVIL}"', REST]
    heard = heard_of(tokens, np.ones((2, 6)), reference=f"{EVIL} u", text=f"{EVIL} dos")
    closed = heard_of(tokens, np.zeros((2, 6)), text=f"{EVIL} {EVIL}", mode="closed")
    scene = scene_of(heard, closed, clip=EVIL)
    pages = [tokens_html(scene), tokens_html(scene, 1), transcripts_html(scene)]
    pages += [notes_html([EVIL, f"`{EVIL}`"])]
    for page in pages:
        assert "<script" not in page and "&lt;script&gt;" in page
        assert all(re.fullmatch(r"[^<>]*", title) for title in re.findall('title="(.*?)"', page))
    assert "the rest of a character" in pages[0]
    for figure in (tokens_figure(scene), transcripts_figure(scene)):
        figure.savefig(io.BytesIO(), format="png")
    assert transcripts_table(scene)["transcript"][0] == heard.text


def test_tokens_can_be_read_in_any_colour_and_without():
    shares = np.linspace(0, 1, 25)
    colours = [fill(share) for share in shares]
    assert min(contrast(text, background) for background, text in colours) >= 4.5
    greys = [contrast(background, "#000000") for background, _ in colours]
    assert all(a > b for a, b in zip(greys, greys[1:], strict=False))
    assert [route(share) for share in (0.0, 0.4, 1.0)] == ["shared", "both", "expert"]
    page = tokens_html(scene_of(heard_of(list("abcdefg"), [[0, 0, 0, 0, 0, 1, 1], [0] * 6 + [1]])))
    assert "layer 1: expert (gate 0.750)\nlayer 2: shared (gate 0.250)" in page
    body = page.split("</b>")[1]
    assert [body.count(line) for line in ("solid #000", "dotted #000")] == [1, 1]


def test_transcripts_are_counted_and_compared():
    base = heard_of(list("abcd"), np.ones((2, 4)), "una casa blava", "una cosa blava")
    same = heard_of(list("abcd"), np.ones((2, 4)), "una casa blava", "una cosa blava", "open")
    none = heard_of(list("abcd"), np.ones((2, 4)), "una casa blava", "", "closed")
    page = transcripts_html(scene_of(base, same, none))
    assert "1 in 3 words" in page and "3 in 3 words" in page and "the same text" in page
    table = transcripts_table(scene_of(base, same, none))
    assert list(table["errors"]) == [1, 1, 3]
    thai = heard_of(list("abcd"), np.ones((2, 4)), "สวัสดี", "สวัสดิ", language="th")
    assert thai.errors() == (1, 6, "characters")


def test_uploads_of_both_ipywidgets_are_read():
    seven = {"a.wav": {"metadata": {"name": "a.wav"}, "content": b"xyz"}}
    eight = ({"name": "a.wav", "content": memoryview(b"xyz")},)
    assert uploaded(seven) == uploaded(eight) == [("a.wav", b"xyz")]
    assert uploaded({}) == uploaded(()) == []

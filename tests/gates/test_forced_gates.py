"""Gates forced, layer by layer: in the model, and in the file and figure made of it."""

from __future__ import annotations

import copy
import json
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from figures import draw
from make_gates import gate_file
from make_records import make_record, make_rows, make_run
from transcribing import run

from distilwhisper_lib import UserError
from distilwhisper_lib.export.bundle import plain_whisper
from distilwhisper_lib.gates import forced as forced_gates
from distilwhisper_lib.gates.forced import count_case, count_clips, differences, read_forced
from distilwhisper_lib.gates.forced_plots import forced_changes
from distilwhisper_lib.model.clsr import CLSR
from distilwhisper_lib.report.report import report_html
from distilwhisper_lib.results.significance import resample

LAYERS = ("encoder.1", "encoder.2", "decoder.1", "decoder.2")


# The model ------------------------------------------------------------------------------------


@pytest.fixture
def features():
    return torch.randn(3, 80, 300, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def said(features, token):
    """What of a model can be compared: logits and gates of a forward pass, ids of generate()."""
    start, task, text = "<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>"
    languages = ["ca", "cs", "ca"]

    def hear(model, **options):
        rows = [
            [token(start), token(f"<|{c}|>"), token(task), token(text), 5, 6] for c in languages
        ]
        out = model(features, torch.tensor(rows), output_gates=True, **options)
        ids = model.generate(
            features, language=languages, task="transcribe", max_new_tokens=8, **options
        )
        gates = [g.values for g in (*out.gates.encoder, *out.gates.decoder)]
        return SimpleNamespace(logits=out.logits, gates=torch.cat(gates, 1), ids=ids)

    return hear


def shut(model, layer):
    """The model with that layer's gates below 0 whatever they hear."""
    model = copy.deepcopy(model)
    (found,) = [each for each in model.routed_layers() if each.route_name == layer]
    for expert in found.clsr.values():
        torch.nn.init.zeros_(expert.gate.inner.weight)
        torch.nn.init.ones_(expert.gate.inner.bias)
        torch.nn.init.constant_(expert.gate.outer.weight, -1.0)
    return model


@torch.no_grad()
@pytest.mark.parametrize("dense", [False, True])
def test_one_layer_off_is_a_model_whose_gate_there_is_shut(tiny_model, said, monkeypatch, dense):
    monkeypatch.setattr(CLSR, "dense", dense)
    model = tiny_model("ca", "cs")
    assert model.layer_names == list(LAYERS)
    learned = said(model)
    assert 0 < learned.gates.mean() < 1
    for layer in LAYERS:
        off, expected = said(model, gate_mode={layer: "closed"}), said(shut(model, layer))
        assert torch.equal(off.logits, expected.logits)
        assert torch.equal(off.gates, expected.gates)
        assert torch.equal(off.ids, expected.ids)
        assert not torch.allclose(off.logits, learned.logits, atol=1e-3)
        monkeypatch.setattr(CLSR, "dense", not dense)
        other = said(model, gate_mode={layer: "closed"})
        monkeypatch.setattr(CLSR, "dense", dense)
        torch.testing.assert_close(off.logits, other.logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(off.gates, other.gates)


@torch.no_grad()
@pytest.mark.parametrize("dense", [False, True])
def test_every_layer_off_is_closed_and_stock_whisper_bit_for_bit(
    tiny_model, said, features, monkeypatch, dense
):
    monkeypatch.setattr(CLSR, "dense", dense)
    model = tiny_model("ca", "cs")
    closed = said(model, gate_mode="closed")
    one_by_one = said(model, gate_mode=dict.fromkeys(LAYERS, "closed"))
    assert torch.equal(one_by_one.logits, closed.logits)
    assert torch.equal(one_by_one.ids, closed.ids)
    assert not closed.gates.any() and not one_by_one.gates.any()
    stock = plain_whisper(model)
    ids = stock.generate(features, language=["ca", "cs", "ca"], task="transcribe", max_new_tokens=8)
    assert torch.equal(ids, closed.ids)
    assert torch.equal(
        stock(features, decoder_input_ids=ids).logits,
        model(features, ids, gate_mode=dict.fromkeys(LAYERS, "closed")).logits,
    )
    assert torch.equal(said(model, gate_mode={}).logits, said(model).logits)


@torch.no_grad()
def test_unknown_layers_and_modes_are_one_sentence(tiny_model, features, said):
    model = tiny_model("ca", "cs")
    for mode, message in (
        ({"encoder.0": "closed"}, "layer 'encoder.0': expected one of encoder.1, encoder.2, dec"),
        ({"encoder.1": "closed", "decoder.3": "open"}, "gate_mode names layer 'decoder.3'"),
        ({"encoder.1": "ajar"}, "gate_mode 'ajar' is unknown: expected one of learned, open"),
    ):
        with pytest.raises(UserError, match=message):
            said(model, gate_mode=mode)
        with pytest.raises(UserError, match=message):
            model.generate(features, language="ca", max_new_tokens=2, gate_mode=mode)


@torch.no_grad()
def test_generate_obeys_a_mode_whatever_the_model_was_loaded_with(tiny_model, features, tmp_path):
    """Also where the checkpoint is our own and a field of its config was given by name."""
    tiny_model("ca").save_pretrained(tmp_path)
    model = type(tiny_model()).from_pretrained(tmp_path, gate_mode="learned").eval()
    options = {"language": "ca", "task": "transcribe", "max_new_tokens": 8}
    said = {
        mode: model.generate(features, gate_mode=mode, **options) for mode in ("learned", "open")
    }
    assert not torch.equal(said["learned"], said["open"])
    assert torch.equal(said["open"], plain_whisper(model, "ca").generate(features, **options))


def test_transcribe_decodes_a_table_under_forced_gates(tiny_model, processor, table):
    model = tiny_model("ca")
    learned = run(model, processor, table)
    assert run(model, processor, table, gate_mode="learned") == learned
    for mode, twin in (
        ("closed", plain_whisper(model)),
        ("open", plain_whisper(model, "ca")),
        ({"decoder.2": "closed"}, shut(model, "decoder.2")),
    ):
        forced = run(model, processor, table, gate_mode=mode)
        texts = [row["hypothesis"] for row in forced]
        assert texts == [row["hypothesis"] for row in run(twin, processor, table)]
        assert isinstance(mode, dict) or texts != [row["hypothesis"] for row in learned]
    assert any(row["gates"]["decoder"][1] for row in learned)
    for row, free in zip(forced, learned, strict=True):  # the others decide as they learned to
        assert row["gates"]["decoder"][1] == 0
        assert row["gates"]["encoder"] == free["gates"]["encoder"]


# The file -------------------------------------------------------------------------------------


@cache
def counted(errors):
    return count_case(make_rows(errors=errors), "ca")


def make_forced(layers=2):
    """A file of 120 clips of 24 speakers, of which each case gets so many words wrong."""
    wrong = {"learned": 0.3, "soft": 0.28, "open": 0.35, "closed": 0.5}
    for side in ("encoder", "decoder"):
        wrong |= {f"{side}.{n}": 0.4 if n == 2 else 0.32 for n in range(1, layers + 1)}
    cases = {name: counted(errors) for name, errors in wrong.items()}
    domain = {"corpus": "folder/speech", "precision": "fp32"} | count_clips(make_rows(), "ca")
    forced = {
        "schema": 1, "run_id": "js-ca-s77-0123abcd", "method": "js", "language": "ca", "seed": 77,
        "weights_sha256": "4" * 64,
    }  # fmt: skip
    domain |= {"cases": cases}
    return forced | {
        "domains": {name: copy.deepcopy(domain) for name in ("in_domain", "out_of_domain")}
    }


def write(folder, forced):
    return forced_gates.write_forced(folder / "gates/forced" / f"{forced['run_id']}.json", forced)


def test_a_file_comes_back_as_it_was_written_and_names_nobody(tmp_path):
    forced = make_forced()
    path = write(tmp_path, forced)
    assert read_forced(path) == forced
    assert forced_gates.load_forced(tmp_path) == [forced]
    assert forced_gates.load_forced(tmp_path / "none") == []
    assert "speaker1" not in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.stat().st_size < 50_000
    domain = forced["domains"]["in_domain"]
    assert forced_gates.missing_cases(domain, ["open", "encoder.3"]) == ["encoder.3"]


def test_differences_are_those_of_two_systems_on_the_same_clips(tmp_path):
    """The same numbers as significance.py makes of the same hypotheses."""
    records = [
        make_run(tmp_path, m, noise=0, errors=e) for m, e in (("zero_shot", 0.5), ("js", 0.3))
    ]
    pairs = resample(records, tmp_path).differences([("zero_shot", "js")])
    (expected,) = pairs.query("domain == 'in_domain' and language == 'ca'").to_dict("records")
    table = differences(make_forced())
    closed = table.loc["closed"]
    for name in ("difference", "low", "high", "p", "clips", "blocks", "blocked on", "note"):
        assert closed[name] == pytest.approx(expected[name]) or closed[name] == expected[name]
    assert closed["low"] > 0 and closed["blocks"] == 24
    assert list(table.index) == ["learned", "soft", "open", "closed", *LAYERS]
    assert table.loc["learned", "difference"] == 0 and np.isnan(table.loc["learned", "p"])
    assert table.attrs == {"metric": "wer", "normalizer": "marks", "domain": "in_domain"}
    in_percent = 100 * records[1]["evaluations"][0]["scores"]["marks"]["wer"]["wer"]
    assert table.loc["learned", "error"] == pytest.approx(in_percent)
    assert (table["p (Holm)"].dropna() >= table["p"].dropna()).all()


def with_random(forced):
    """The same with random gates: three draws in domain, and two even ones."""
    wrong = {"random.1": 0.41, "random.2": 0.45, "random.3": 0.43, "even.1": 0.5, "even.3": 0.54}
    forced["domains"]["in_domain"]["cases"] |= {n: counted(e) for n, e in wrong.items()}
    return forced


def test_the_draws_of_random_gates_are_one_row_of_mean_errors(tmp_path):
    forced = with_random(make_forced())
    assert read_forced(write(tmp_path, forced)) == forced
    table = differences(forced)
    assert list(table.index) == ["learned", "soft", "open", "closed", "random", "even", *LAYERS]
    domain = forced["domains"]["in_domain"]
    for way, draws in (("random", (1, 2, 3)), ("even", (1, 3))):
        rates = [100 * domain["cases"][f"{way}.{n}"]["scores"]["marks"]["wer"] for n in draws]
        row = table.loc[way]
        assert row["error"] == pytest.approx(np.mean(rates))
        assert row["difference"] == pytest.approx(row["error"] - table.loc["learned", "error"])
        assert 0 < row["low"] < row["difference"] < row["high"] and row["p"] < 0.01
    plain = differences(make_forced()).drop(columns="p (Holm)")
    assert plain.equals(table.drop(index=["random", "even"], columns="p (Holm)"))
    # Of draws that are alike the mean is each of them: nothing else is drawn for it.
    one = domain["cases"]["random.1"]
    domain["cases"] |= {f"random.{n}": one for n in (1, 2, 3)} | {"open": one}
    again = differences(forced)
    assert again.loc["random"].drop("p (Holm)").equals(again.loc["open"].drop("p (Holm)"))


def spoilt(change):
    forced = make_forced(layers=1)
    change(forced, forced["domains"]["in_domain"])
    return forced


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, d: f.update(schema=2), "has schema 2, expected 1: update the kit"),
        (lambda f, d: f.pop("weights_sha256"), "field 'weights_sha256' is missing"),
        (lambda f, d: f.update(method="lora"), "field 'method' is 'lora'"),
        (lambda f, d: f.update(language="klingon"), "klingon"),
        (lambda f, d: f.update(run_id="../../x"), "field 'run_id' is '../../x', expected 'js-ca"),
        (lambda f, d: f["domains"].update(elsewhere=d), "unknown domain in .* 'elsewhere'"),
        (lambda f, d: d["cases"].pop("learned"), "'in_domain' has no clips with learned gates"),
        (lambda f, d: d["cases"].update({"<b>": d["cases"]["open"]}), "'<b>' is no case of forced"),
        (lambda f, d: d["cases"].update({"random.4": d["cases"]["open"]}), "'random.4' is no case"),
        (lambda f, d: d["cases"].update({"even": d["cases"]["open"]}), "'even' is no case"),
        (lambda f, d: d["ids"].pop(), "not one number for each of its 119 clips"),
        (lambda f, d: d["units"]["marks"]["wer"].__setitem__(0, -1), r"wer\[0\]' is -1, expected"),
        (lambda f, d: d["units"]["marks"]["wer"].__setitem__(0, 2**70), "expected a whole number"),
        (lambda f, d: d["units"]["marks"]["wer"].__setitem__(0, 99), "wer of 'learned' .* clips"),
        (lambda f, d: d["cases"]["open"]["scores"]["whisper"].update(cer=0.5), "cer of 'open'"),
        (lambda f, d: d["cases"]["open"]["scores"]["marks"].update(wer=float("nan")), "is nan"),
        (lambda f, d: d["cases"]["open"].update(errors=[]), "errors' is .*, expected an object"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_one_sentence(tmp_path, change, message):
    path = tmp_path / "js-ca-s77-0123abcd.json"
    path.write_text(json.dumps(spoilt(change)))
    with pytest.raises(UserError, match=message) as caught:
        read_forced(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 200_000, "null", '"text"', b"\xff\xfe"], ids=repr)
def test_what_is_no_json_object_is_one_sentence(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match="is not JSON|cannot be read as UTF-8|has schema None"):
        read_forced(path)
    with pytest.raises(UserError, match="gates` writes it"):
        read_forced(tmp_path / "b.json")


def test_a_spoilt_file_is_not_written(tmp_path):
    with pytest.raises(UserError, match="schema"):
        write(tmp_path, spoilt(lambda f, d: f.update(schema=3)))
    assert not list(tmp_path.iterdir())


# The figure -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("clean_figures")
@pytest.mark.parametrize("layers", [2, 12])
def test_the_figure_shows_every_case_with_its_interval(layers):
    forced = make_forced(layers)
    figure = draw(forced_changes(forced))
    assert len(figure.axes) == 4
    table = differences(forced)
    whole, single = figure.axes[0], figure.axes[2]
    labels = [tick.get_text() for tick in single.get_yticklabels()]
    assert labels == [f"{s} {n} off" for s in ("encoder", "decoder") for n in range(1, layers + 1)]
    for axis, names in ((whole, ["soft", "open", "closed"]), (single, table.index[4:])):
        shown = dict(
            zip(names, [line for line in axis.lines if len(line.get_xdata()) == 1], strict=True)
        )
        bars = [c.get_segments()[0][:, 0] for c in axis.collections]
        for (name, point), bar in zip(shown.items(), bars, strict=True):
            assert point.get_xdata()[0] == pytest.approx(table.loc[name, "difference"])
            np.testing.assert_allclose(bar, table.loc[name, ["low", "high"]].astype(float))
        heights = [point.get_ydata()[0] for point in shown.values()]
        assert heights == sorted(heights, reverse=True)  # the first on top
    assert "120 clips, 24 blocks" in whole.get_title(loc="left")


@pytest.mark.usefixtures("clean_figures")
def test_the_figure_shows_random_gates_beside_the_others_where_they_were_decoded():
    inside, outside = draw(forced_changes(with_random(make_forced()))).axes[:2]
    labels = [tick.get_text() for tick in inside.get_yticklabels()]
    assert labels[3:] == ["random, share of each layer", "random, share of each side"]
    assert len(inside.lines) == 1 + 5  # the line at 0, and a point a case
    shown = [line.get_xdata()[0] for line in outside.lines if len(line.get_xdata()) == 1]
    assert np.isfinite(shown).tolist() == [True] * 3 + [False] * 2  # not decoded out of domain


@pytest.mark.usefixtures("clean_figures")
def test_a_file_that_is_not_finished_is_drawn_as_far_as_it_goes():
    forced = make_forced()
    part = forced["domains"]["out_of_domain"]
    part["cases"] = {name: part["cases"][name] for name in ("learned", "open")}
    figure = draw(forced_changes(forced))
    labels = [tick.get_text() for tick in figure.axes[2].get_yticklabels()]
    assert labels[0] == "encoder 1 off" and len(labels) == 4
    del forced["domains"]["in_domain"]
    assert len(draw(forced_changes(forced)).axes) == 1  # no layer yet
    del part["cases"]["open"]
    with pytest.raises(UserError, match="has learned gates only"):
        forced_changes(forced)


def test_the_report_shows_it_or_says_how_to_make_it(tmp_path):
    record = make_record("js") | {"run_id": "js-ca-s77-0123abcd"}
    (tmp_path / "gates").mkdir()
    (tmp_path / "gates" / "js-ca-s77-0123abcd.json").write_text(json.dumps(gate_file()))
    missing, shown = "no run of `distilwhisper_lib gates` yet", "js-ca-s77-0123abcd: gates forced"
    page = report_html([record], tmp_path)
    assert missing in page and shown not in page
    write(tmp_path, make_forced())
    page = report_html([record], tmp_path)
    assert missing not in page and shown in page

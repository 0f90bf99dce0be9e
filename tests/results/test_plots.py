"""Figures: what they show is compared with what they were given."""

from __future__ import annotations

import copy
import os

import matplotlib
import numpy as np
import pandas as pd
import pytest
from figures import draw, texts
from make_records import make_record

from distilwhisper_lib import figures as plots
from distilwhisper_lib.data import plots as data_plots
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.gates import routes
from distilwhisper_lib.results import plots as result_plots

pytestmark = pytest.mark.usefixtures("clean_figures")


def test_a_backend_that_the_first_figure_loads_stays_as_it_set_itself():
    """As Jupyter's, which shows what anybody draws later only where pyplot is interactive."""
    for interactive in (True, False):
        with plots.style():
            matplotlib.interactive(interactive)
        assert matplotlib.is_interactive() is interactive


def trained_record(**columns):
    record = make_record("js", "ca")
    log = [{"step": s, "loss": 3.0 / s, "loss_ce": 2.0 / s} for s in (1, 2, 4)]
    for name, values in columns.items():
        for line, value in zip(log, values, strict=True):
            line[name] = value
    record["training"]["log"] = log
    return record


def gate_file(language="ca", layers=3, tokens=("El", "Ġco", "txe", "<|endoftext|>")):
    shares = [round(0.1 * (i + 1), 3) for i in range(layers)]
    domain = {
        "encoder": shares,
        "encoder_interval": [[s - 0.05, s + 0.05] for s in shares],
        "decoder": shares[::-1],
        "decoder_interval": [[s - 0.05, s + 0.05] for s in shares[::-1]],
        "clips": 200,
    }
    return {
        "schema": 1,
        "run_id": f"js-{language}-s77-01234567",
        "language": language,
        "domains": {"in_domain": domain, "out_of_domain": copy.deepcopy(domain)},
        "example": {
            "id": "utt-1",
            "text": "El cotxe",
            "tokens": list(tokens),
            "token_gates": [[(i + j) % 2 for j in range(len(tokens))] for i in range(layers)],
            "seconds": 1.2,
            "frame_gates": [[(i + j) % 2 for j in range(60)] for i in range(layers)],
        },
    }


# ---------------------------------------------------------------------------------- training


def test_training_curves_draw_what_was_logged():
    record = trained_record(gate_mean=[0.7, None, 0.5], learning_rate=[1e-3, 2e-3, 0.0])
    figure = draw(result_plots.training_curves(record))
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        *("Training loss", "Mean gate", "Learning rate", "Validation error")
    ]
    losses, gate, rate, validation = figure.axes
    lines = {line.get_label(): line for line in losses.lines}
    assert set(lines) == {"total", "cross entropy"}
    np.testing.assert_allclose(lines["total"].get_xydata(), [[1, 3], [2, 1.5], [4, 0.75]])
    np.testing.assert_allclose(gate.lines[0].get_xydata(), [[1, 0.7], [4, 0.5]])
    assert len(gate.lines) == 2  # no hard gates were noted
    assert gate.lines[1].get_label() == "budget 0.5"
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [1, 2, 0])
    assert "10^{-3}" in rate.get_ylabel()
    np.testing.assert_allclose(validation.lines[0].get_xydata(), [[250, 30]])
    assert validation.get_ylabel() == "error rate (%)"
    assert all(axis.get_xlabel() == "optimiser step" for axis in figure.axes)
    assert "Catalan, CLSR + JS, seed 77" in texts(figure)


def test_training_curves_show_the_hard_gates_beside_the_soft_ones():
    record = trained_record(gate_mean=[0.7, None, 0.5])
    record["training"]["validation"][0]["gate_hard"] = 0.9
    gate = draw(result_plots.training_curves(record)).axes[1]
    (hard,) = [line for line in gate.lines if line.get_label() == "hard, validation"]
    np.testing.assert_allclose(hard.get_xydata(), [[250, 0.9]])


def test_training_panels_without_data_are_left_out():
    record = trained_record()
    record["training"]["validation"] = []
    assert len(result_plots.training_curves(record).axes) == 1


def test_training_curves_need_a_training():
    record = make_record("zero_shot")
    record["training"] = None
    with pytest.raises(UserError, match=f"run {record['run_id']} has no training log"):
        result_plots.training_curves(record)


# ----------------------------------------------------------------------------------- results


# ------------------------------------------------------------------------------------- gates


def test_gate_shares_show_every_language_part_and_domain():
    files = [gate_file("ca"), gate_file("cs")]
    figure = draw(routes.gate_shares(files))
    axes = np.array(figure.axes).reshape(2, 2)
    assert [axis.get_title(loc="left") for axis in axes[0]] == [
        *("Catalan, CLSR + JS", "Czech, CLSR + JS")
    ]
    for axis in axes.flat:
        assert [line.get_label() for line in axis.lines] == ["in domain", "out of domain"]
        assert len(axis.collections) == 2  # the intervals
    np.testing.assert_allclose(axes[0][1].lines[0].get_xydata(), [[1, 10], [2, 20], [3, 30]])
    np.testing.assert_allclose(axes[1][1].lines[0].get_ydata(), [30, 20, 10])
    band = axes[0][0].collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([band.min(), band.max()], [5, 35])
    assert axes[0][0].get_ylabel() == "audio frames\nthrough the expert (%)"


def test_panels_are_told_apart_by_what_differs_and_by_nothing_else():
    def panels(*files):
        figure = draw(routes.gate_shares(list(files)))
        return [title for axis in figure.axes if (title := axis.get_title(loc="left"))]

    one = gate_file() | {"method": "js", "seed": 77, "preset": "demo", "settings": {"epochs": 3}}
    plain = "Catalan, CLSR + JS"
    assert panels(one) == [plain]
    assert panels(one, one | {"language": "cs"}) == [plain, "Czech, CLSR + JS"]
    assert panels(one, one | {"seed": 78}) == [f"{plain}\nseed 77", f"{plain}\nseed 78"]
    other = one | {"settings": {"epochs": 3, "budget": 0.3}}
    assert panels(one, other) == [plain, f"{plain}\nbudget=0.3"]
    assert panels(one, one | {"preset": "cv3k"}) == [f"{plain}\ndemo", f"{plain}\ncv3k"]
    assert panels(one, other | {"seed": 78, "settings": {}}) == [
        f"{plain}\nseed 77\nepochs=3", f"{plain}\nseed 78",
    ]  # fmt: skip
    twin = one | {"run_id": "js-ca-s77-ffff"}
    assert panels(one, twin) == [f"{plain}\n{gates['run_id']}" for gates in (one, twin)]
    shown = texts(draw(routes.token_heatmap(other, among=[one])))
    assert f"{plain}, budget=0.3: “El cotxe”" in shown
    assert not any("budget" in text for text in texts(draw(routes.token_heatmap(other))))


def test_gate_shares_wrap_many_languages_and_miss_domains():
    files = [gate_file(code, layers=12) for code in ("ca", "cs", "gl", "hu", "pl", "ta")]
    del files[0]["domains"]["out_of_domain"]
    figure = draw(routes.gate_shares(files))
    visible = [axis for axis in figure.axes if axis.get_visible()]
    assert len(visible) == 12
    assert figure.get_size_inches()[0] <= 10.5
    assert len(visible[0].lines) == 1
    with pytest.raises(UserError, match="no gate file was given"):
        routes.gate_shares([])


def test_token_heatmap_shows_every_gate():
    gates = gate_file()
    figure = draw(routes.token_heatmap(gates))
    frames, tokens = figure.axes
    np.testing.assert_array_equal(frames.images[0].get_array(), gates["example"]["frame_gates"])
    np.testing.assert_array_equal(tokens.images[0].get_array(), gates["example"]["token_gates"])
    assert frames.images[0].get_extent() == [0.0, 1.2, 0.5, 3.5]
    assert frames.images[0].origin == "lower"  # layer 1 at the bottom, as its ticks say
    labels = [label.get_text() for label in tokens.get_xticklabels()]
    assert labels == ["El", "␣co", "txe", "<endoftext>"]
    assert {"Catalan expert", "shared", "time (s)"} <= set(texts(figure))


def test_tokens_that_no_font_can_draw_get_their_number(monkeypatch):
    latin = [{code: code for code in range(0x20, 0x250)}]
    monkeypatch.setattr(plots, "_charmaps", lambda: latin)
    gates = gate_file("th", tokens=("สวัส", "a", "$x$", ""))
    gates["example"]["text"] = "สวัส"
    figure = draw(routes.token_heatmap(gates))
    labels = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert labels == ["#1", "a", r"\$x\$", "#4"]
    assert "Thai, CLSR + JS: utterance utt-1" in texts(figure)


def test_a_long_utterance_keeps_readable_labels():
    gates = gate_file(layers=12, tokens=["ab"] * 225)
    figure = draw(routes.token_heatmap(gates))
    assert len(figure.axes[1].get_xticks()) <= 60
    assert figure.get_size_inches()[0] <= 14


def test_token_heatmap_needs_an_example():
    gates = gate_file() | {"example": None}
    with pytest.raises(UserError, match="gate file of js-ca-s77-01234567 has no example"):
        routes.token_heatmap(gates)


# ------------------------------------------------------------------------------------ corpus


def test_corpus_overview_counts_every_clip():
    tables = {
        "train": pd.DataFrame({"seconds": np.linspace(1, 3, 720)}),
        "out_of_domain": pd.DataFrame({"seconds": [3600.0]}),
        "empty": pd.DataFrame({"seconds": []}),
    }
    figure = draw(data_plots.corpus_overview(tables))
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "Train\n720 clips, 0.40 h",
        "Out of domain\n1 clips, 1.00 h",
        "Empty\n0 clips, 0.00 h",
    ]
    assert [sum(p.get_height() for p in axis.patches) for axis in figure.axes] == [720, 1, 0]
    assert "median 2.0 s" in texts(figure)
    assert figure.axes[0].get_xlabel() == "clip length (s)"


def test_corpus_overview_wraps_and_checks():
    tables = {str(i): pd.DataFrame({"seconds": [1.0, 2.0]}) for i in range(6)}
    figure = draw(data_plots.corpus_overview(tables))
    assert sum(axis.get_visible() for axis in figure.axes) == 6
    for wrong in ({}, {"train": pd.DataFrame({"text": ["a"]})}):
        with pytest.raises(UserError, match="expected at least one corpus table"):
            data_plots.corpus_overview(wrong)


# -------------------------------------------------------------------------------------- save


def test_save_writes_both_files_with_the_same_bytes_each_time(tmp_path):
    first = plots.save(routes.gate_shares([gate_file()]), tmp_path / "figures" / "gates.v1")
    assert [path.name for path in first] == ["gates.v1.png", "gates.v1.svg"]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in first[1].read_bytes()
    old = [path.read_bytes() for path in first]
    second = plots.save(routes.gate_shares([gate_file()]), tmp_path / "figures" / "gates.v1")
    assert [path.read_bytes() for path in second] == old
    assert sorted(os.listdir(tmp_path / "figures")) == ["gates.v1.png", "gates.v1.svg"]


def test_save_writes_the_numbers_beside_the_figure(tmp_path):
    numbers = pd.DataFrame({"layer": [1, 2], "share": [0.5, 1.0]})
    written = plots.save(routes.gate_shares([gate_file()]), tmp_path / "gates.v1", numbers)
    assert [path.name for path in written] == ["gates.v1.png", "gates.v1.svg", "gates.v1.csv"]
    assert written[2].read_bytes() == b"layer,share\n1,0.5\n2,1.0\n"

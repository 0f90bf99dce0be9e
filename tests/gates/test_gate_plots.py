"""Figures of gate statistics: what they show is compared with what they were given."""

from __future__ import annotations

import numpy as np
import pytest
from figures import draw
from make_gates import gate_file, make_rows
from make_records import make_record

from distilwhisper_lib import figures as plots
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.gates import plots as gate_plots
from distilwhisper_lib.gates.counts import BINS, SCORE_EDGES, SIDES
from distilwhisper_lib.gates.statistics import agreement, groups_of_languages, summarise

pytestmark = pytest.mark.usefixtures("clean_figures")


def heights(axis):
    return {line.get_label(): line.get_ydata() for line in axis.lines}


def shown(figure):
    return [axis for axis in figure.axes if axis.get_visible()]


@pytest.mark.parametrize("layers", [2, 12])
def test_layer_figures_show_the_files_values(layers):
    files = [gate_file("ca", layers=layers), gate_file("th", layers=layers, number=1)]
    found = [file["domains"]["in_domain"] for file in files]
    for axis, summary in zip(shown(draw(gate_plots.frame_shares(files))), found, strict=True):
        lines = heights(axis)
        np.testing.assert_allclose(lines["audio frames"], 100 * np.array(summary["encoder"]))
        padding = summary["classes"]["padding"]["share"]
        np.testing.assert_allclose(lines["padding frames"], 100 * np.array(padding))
    figure = draw(gate_plots.token_class_shares(files))
    for axis, summary in zip(shown(figure), found, strict=True):
        inside = summary["classes"]["inside"]
        np.testing.assert_allclose(heights(axis)["inside a word"], 100 * np.array(inside["share"]))
        bars = [path.vertices[:, 1] for c in axis.collections for path in c.get_paths()]
        assert any(np.allclose(bar, 100 * np.array(inside["interval"][0])) for bar in bars)
        assert axis.get_xlim() == (0.5, layers + 0.5)
    titles = [axis.get_title(loc="left") for axis in shown(figure)]
    assert titles == ["Catalan, CLSR + JS", "Thai, CLSR + JS\n(no spaces: first of a phrase)"]
    for side, count in (("encoder", 2), ("decoder", 3)):
        for axis, summary in zip(
            shown(draw(gate_plots.entropy_lines(files, side))), found, strict=True
        ):
            lines = heights(axis)
            assert len(lines) == count
            known = 100 * np.array(summary["entropy"][side]["within_utterance"])
            np.testing.assert_allclose(lines["left when the utterance is known"], known)


def test_five_files_wrap_and_equal_values_stay_apart():
    figure = draw(gate_plots.frame_shares([gate_file()] * 5))
    assert len(shown(figure)) == 5 and len(figure.axes) == 8
    audio, padding = (line.get_xdata() for line in shown(figure)[0].lines)
    assert (padding > audio).all()


def test_old_files_are_one_sentence_and_do_not_hide_the_new_ones():
    old = {"run_id": "js-cs-s77-0", "language": "cs", "domains": {"in_domain": {"encoder": [1]}}}
    with pytest.raises(UserError, match="by class for 'in_domain' .js-cs-s77-0.: files of earlier"):
        gate_plots.token_class_shares([old])
    with pytest.raises(UserError, match="none given"):
        gate_plots.frame_shares([])
    assert len(shown(draw(gate_plots.frame_shares([old, gate_file()])))) == 1


def with_scores(layers=3, **about):
    random = np.random.default_rng(0)
    counts = {side: random.integers(0, 50, (layers, BINS)).tolist() for side in SIDES}
    rows, _ = make_rows(layers=layers)
    file = gate_file(layers=layers, gate_noise=5.0, **about)
    summary = summarise(rows, {"edges": list(SCORE_EDGES), **counts}, resamples=100)
    return file | {"domains": {"in_domain": summary}}, counts


def test_score_histograms_show_each_layers_share_of_positions():
    file, counts = with_scores()
    figure = draw(gate_plots.score_histograms(file))
    for axis, side in zip(figure.axes, SIDES, strict=False):
        drawn = np.asarray(axis.images[0].get_array())
        np.testing.assert_allclose(drawn.sum(1), 100)
        expected = np.array(counts[side][1]) / sum(counts[side][1])
        np.testing.assert_allclose(drawn[1], 100 * expected)
        zero, low, high = (line.get_xdata()[0] for line in axis.lines)
        assert zero == BINS / 2  # half of the bins are below the edge 0
        edge = SCORE_EDGES.index(6.31)  # noise 5 lies between the edges 3.98 and 6.31
        assert edge < high < edge + 1 and low == pytest.approx(BINS - high)
        hard = file["domains"]["in_domain"][side]
        labels = [text.get_text() for text in axis.texts]
        assert labels[0].startswith(f"{100 * hard[0]:.0f} % (")
    with pytest.raises(UserError, match="has no scores"):
        gate_plots.score_histograms(gate_file())


def test_soft_and_hard_show_training_and_validation():
    record = make_record("js", "ca")
    training = record["training"]
    training["log"] = [
        {"step": s, "gate_mean": 0.5, "gate_mean_encoder": 0.6, "gate_mean_decoder": 0.4,
         "gate_noise": float(s)} for s in (1, 2)
    ]  # fmt: skip
    ends = {"gate_hard": 0.9, "gate_hard_encoder": 1.0, "gate_hard_decoder": 0.8, "gate_soft": 0.5}
    training["validation"] = [{"step": 2, "wer": 0.3, "cer": 0.2} | ends]
    both, encoder, decoder, noise = draw(gate_plots.soft_and_hard(record)).axes
    assert heights(both)["validation: hard (as used)"].tolist() == [0.9]
    assert heights(both)["budget 0.5"] == [0.5, 0.5]
    assert heights(encoder)["training: soft, with noise"].tolist() == [0.6, 0.6]
    assert "validation: soft, no noise" not in heights(decoder)  # none was noted
    assert noise.lines[0].get_ydata().tolist() == [1.0, 2.0]
    for entry in training["log"]:  # as earlier versions logged
        del entry["gate_noise"]
    training["validation"] = []
    assert len(draw(gate_plots.soft_and_hard(record)).axes) == 3
    training["log"] = [{"step": 1, "loss": 1.0}]
    with pytest.raises(UserError, match="has no gates in its training log"):
        gate_plots.soft_and_hard(record)


def test_languages_are_drawn_beside_each_other_with_their_differences():
    files = [gate_file(c, layers=6, number=i) for i, c in enumerate(("ca", "cs", "th"))]
    others = [gate_file("ca", seed=78, layers=6), gate_file("cs", method="kl", layers=6)]
    assert groups_of_languages([*others, *files]) == [files]
    figure = draw(gate_plots.language_agreement(files))
    assert len(figure.axes) == 4
    lines = heights(figure.axes[1])
    assert list(lines) == ["Catalan", "Czech", "Thai"]
    czech = files[1]["domains"]["in_domain"]["decoder"]
    np.testing.assert_allclose(lines["Czech"], 100 * np.array(czech))
    matrix = np.asarray(figure.axes[3].images[0].get_array(), float)
    table = agreement(files)
    (row,) = table[
        (table.side == "decoder") & (table["first"] == "ca (77)") & (table.second == "th (77)")
    ].to_dict("records")
    assert matrix[0, 2] == matrix[2, 0] == pytest.approx(row["mean difference"])
    assert np.isnan(matrix[1, 1])
    assert len(draw(gate_plots.language_agreement(files[:2])).axes) == 2
    for wrong in (files[:1], [*files, others[0]], []):
        with pytest.raises(UserError, match="cannot be compared: expected two languages"):
            gate_plots.language_agreement(wrong)


def test_figures_are_written_as_png_and_svg_of_the_same_bytes(tmp_path):
    file, _ = with_scores()
    first = plots.save(gate_plots.score_histograms(file), tmp_path / "scores")
    bytes_of = [path.read_bytes() for path in first]
    assert [path.suffix for path in first] == [".png", ".svg"]
    again = plots.save(gate_plots.score_histograms(file), tmp_path / "scores")
    assert [path.read_bytes() for path in again] == bytes_of


def test_what_differs_is_named_and_the_side_and_domain_always():
    files = [gate_file(), gate_file(seed=78), gate_file(settings={"budget": 0.3})]
    named = ["seed 77", "seed 78", "seed 77\nbudget=0.3"]
    for figure in (gate_plots.frame_shares, gate_plots.token_class_shares):
        found = [axis.get_title(loc="left") for axis in shown(draw(figure(files)))]
        assert found == [f"Catalan, CLSR + JS\n{name}" for name in named]
    for side in SIDES:
        figure = draw(gate_plots.entropy_lines(files[:1], side))
        assert figure.get_suptitle() == f"{side.capitalize()}, in domain"
        assert figure.axes[0].get_title(loc="left") == "Catalan, CLSR + JS"
    file, _ = with_scores()
    assert draw(gate_plots.score_histograms(file)).get_suptitle().startswith("Catalan, CLSR + JS: ")
    beside = draw(gate_plots.score_histograms(file, among=files)).get_suptitle()
    assert beside == "Catalan, CLSR + JS, seed 77: scores of the gates, in domain"
    pair = [gate_file(code, seed=78) for code in ("ca", "cs")]
    assert gate_plots.language_agreement(pair).get_suptitle() == "CLSR + JS, in domain"
    beside = gate_plots.language_agreement(pair, among=[*pair, *files[:1]]).get_suptitle()
    assert beside == "CLSR + JS, seed 78, in domain"


def test_curves_of_two_runs_are_told_apart():
    records = [make_record("js", seed=seed, **given) for seed, given in ((1, {}), (2, {}))]
    records.append(make_record("js", seed=1, budget=0.3))
    for record in records:
        record["training"]["log"] = [{"step": 1, "gate_mean": 0.5}]
    found = [gate_plots.soft_and_hard(record, records).get_suptitle() for record in records]
    ends = ["seed 1", "seed 2", "seed 1, budget=0.3"]
    assert found == [f"Catalan, CLSR + JS, {end}" for end in ends]
    assert gate_plots.soft_and_hard(records[0]).get_suptitle() == "Catalan, CLSR + JS"

"""Figures of results: what they show is compared with what they were given."""

from __future__ import annotations

import itertools

import matplotlib
import numpy as np
import pytest
from figures import draw, texts
from make_records import make_pairs, make_record
from matplotlib.colors import to_rgb

from distilwhisper_lib.config.settings import LABELS
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.results import error_analysis, significance, tables
from distilwhisper_lib.results import plots as result_plots

pytestmark = pytest.mark.usefixtures("clean_figures")


def bars(axis) -> dict[str, list[float]]:
    return {
        box.get_label(): [patch.get_height() for patch in box]
        for box in axis.containers
        if isinstance(box, matplotlib.container.BarContainer)
    }


def test_results_bars_show_the_table():
    records = [make_record("teacher", c, wer=0.1, ood=0.2) for c in ("ca", "cs")]
    records += [make_record("js", "ca", s, wer=w) for s, w in ((1, 0.2), (2, 0.4))]
    figure = draw(result_plots.results_bars(tables.results_table(records)))
    inside, outside = figure.axes
    assert inside.get_ylabel() == "WER (%)"
    assert [label.get_text() for label in inside.get_xticklabels()] == [
        *("Catalan", "Czech", "Average")
    ]
    shown = bars(inside)
    assert list(shown) == ["Teacher", "+ CLSR + JS"]
    np.testing.assert_allclose(shown["Teacher"], [10, 10, 10])
    np.testing.assert_allclose(shown["+ CLSR + JS"], [30, np.nan, np.nan])
    np.testing.assert_allclose(bars(outside)["Teacher"], [20, 20, 20])
    assert texts(figure).count("not run") == 4  # Czech and the average, in both domains
    assert "30.0" in texts(figure)
    whiskers = [s for c in inside.collections for s in c.get_segments()]
    spread = 100 * np.std([0.2, 0.4], ddof=1)
    np.testing.assert_allclose([s[:, 1] for s in whiskers], [[30 - spread, 30 + spread]])


def test_results_bars_name_the_rate_of_languages_without_spaces():
    records = [make_record("js", c, wer=0.4) for c in ("ca", "cs", "th")]
    inside = draw(result_plots.results_bars(tables.results_table(records))).axes[0]
    assert inside.get_ylabel() == "WER or CER (%)"
    assert [label.get_text() for label in inside.get_xticklabels()] == [
        *("Catalan", "Czech", "Thai (CER)", "Average (WER)")
    ]
    np.testing.assert_allclose(bars(inside)["+ CLSR + JS"], [40, 40, 20, 40])


def looks_of(records):
    """Of each system's bars, in the order in which they stand: (fill, hatch)."""
    figure = draw(result_plots.results_bars(tables.results_table(records)))
    return {
        box.get_label(): (box[0].get_facecolor(), box[0].get_hatch())
        for box in figure.axes[0].containers
        if isinstance(box, matplotlib.container.BarContainer)
    }


def test_results_bars_take_all_systems_and_their_variants():
    records = [make_record(method, "ca") for method in LABELS]
    records.append(make_record("lora", "ca", max_steps=2, wer=0.9))
    looks = looks_of(records)
    assert len(looks) == 8 and len(set(looks.values())) == 8
    assert looks["+ LoRA"][0] == looks["+ LoRA (max_steps=2)"][0]


def test_no_two_systems_look_alike_in_grey_and_to_any_eye():
    """Neighbouring bars differ in lightness by a tenth or in hatch, without any colour vision."""
    looks = list(looks_of([make_record(method, "ca") for method in LABELS]).values())
    assert len(looks) == len(LABELS)
    light = [np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) for colour, _ in looks]
    for (a, (_, hatch_a)), (b, (_, hatch_b)) in itertools.pairwise(zip(light, looks, strict=True)):
        assert abs(a - b) > 0.1 or hatch_a != hatch_b


def test_results_bars_need_a_number():
    with pytest.raises(UserError, match="the results table holds no number"):
        result_plots.results_bars(tables.results_table([]))


@pytest.fixture
def study(tmp_path):
    return make_pairs(tmp_path)


def test_interval_plot_shows_each_interval(study, tmp_path):
    intervals = significance.resample(study, tmp_path, resamples=200).intervals()
    figure = draw(result_plots.interval_plot(intervals))
    inside, outside = figure.axes
    assert [t.get_text() for t in inside.get_yticklabels()] == ["+ CLSR + JS", "Student zero-shot"]
    average = intervals[(intervals["domain"] == "in_domain") & (intervals["language"] == "average")]
    whiskers = [s[:, 0] for c in inside.collections for s in c.get_segments()]
    expected = average[["low", "high"]].to_numpy()[::-1]
    np.testing.assert_allclose(sorted(map(tuple, whiskers)), sorted(map(tuple, expected)))
    assert texts(figure).count("ca") == 4  # two systems, two domains
    nothing = significance.resample([make_record()], tmp_path).intervals()
    assert texts(draw(result_plots.interval_plot(nothing))) == ["no hypotheses published"]


def test_error_kinds_stack_up_to_the_error_rate(study):
    kinds = error_analysis.error_kinds(study, "wer")
    inside = draw(result_plots.error_kinds_bars(kinds)).axes[0]
    ends = [patch.get_x() + patch.get_width() for patch in inside.containers[-1]]
    mean = kinds[kinds["domain"] == "in_domain"].groupby("system")["error"].mean()
    assert ends == pytest.approx([mean["+ CLSR + JS"], mean["Student zero-shot"]])
    with pytest.raises(UserError, match="no run is recorded"):
        result_plots.error_kinds_bars(error_analysis.error_kinds([]))


def test_length_lines_have_a_panel_per_test_set(study, tmp_path):
    lengths = error_analysis.error_by_length(study, tmp_path, bins=3)
    figure = draw(result_plots.length_lines(lengths))
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "Catalan, in domain", "Czech, in domain", "Catalan, out of domain",
        "Czech, out of domain",
    ]  # fmt: skip
    first = figure.axes[0].lines[0]
    mine = lengths[
        (lengths["system"] == "Student zero-shot")
        & (lengths["language"] == "ca")
        & (lengths["domain"] == "in_domain")
    ]
    np.testing.assert_allclose(first.get_ydata(), mine["error"])
    bottom, top = figure.axes[0].get_ylim()
    assert bottom == 0 and top >= lengths["error"].max()
    nothing = result_plots.length_lines(error_analysis.error_by_length([], tmp_path))
    assert texts(draw(nothing)) == ["no hypotheses published"]


def test_training_sizes_are_told_apart(tmp_path):
    kinds = error_analysis.error_kinds([make_record(train_size=100), make_record(train_size=200)])
    figure = draw(result_plots.error_kinds_bars(kinds))
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [
        "+ CLSR + JS (demo, 200 training clips)", "+ CLSR + JS (demo, 100 training clips)",
    ]  # fmt: skip

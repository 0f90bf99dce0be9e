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
from distilwhisper_lib.results import costs, error_analysis, significance, size_plots, tables
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


def routed(seed=77, language="ca", wer=0.3, shares=(0.2, 0.6), **settings):
    """A run with experts whose encoder and decoder have these mean shares."""
    record = make_record("js", language, seed, wer=wer, **settings)
    for evaluation in record["evaluations"]:
        evaluation["gates"] = {"encoder": [0.0, 2 * shares[0]], "decoder": [shares[1]] * 2}
    return record


def forced_file(record, **errors):
    """Scores alone of forced gates, on as many clips as the test set has."""
    cases = {
        name: {"scores": {"marks": {"wer": error, "cer": error / 2}}}
        for name, error in errors.items()
    }
    return {
        "run_id": record["run_id"], "weights_sha256": "4" * 64,
        "domains": {"in_domain": {"ids": ["clip"] * 200, "cases": cases}},
    }  # fmt: skip


def untrained(method, wer):
    return make_record(method, wer=wer) | {"training": None}


def of(table, system, gates="learned"):
    """The rows (MiB, share, error) of a system by seed."""
    rows = table[(table["system"] == system) & (table["gates"] == gates)]
    return rows[["MiB", "share", "error"]].to_numpy().tolist()


def test_size_and_share_are_of_the_records_and_of_forced_files():
    runs = [routed(1), routed(2, wer=0.4, shares=(0.4, 0.8)), make_record("lora", wer=0.2)]
    runs += [make_record("full", wer=0.25), untrained("zero_shot", 0.6), untrained("teacher", 0.1)]
    runs[2]["training"]["artifact_bytes"] = 2**21
    draws = {"random.1": 0.5, "random.2": 0.52, "random.3": 0.54}
    file = forced_file(runs[0], soft=0.28, open=0.29, closed=0.6, **draws)
    table = costs.size_and_share(runs, [file])
    mib = 5000 / 2**20
    np.testing.assert_allclose(of(table, "+ CLSR + JS"), [[mib, 40, 30], [mib, 60, 40]])
    np.testing.assert_allclose(of(table, "+ CLSR + JS", "soft"), [[mib, 100, 28]])
    np.testing.assert_allclose(of(table, "+ CLSR + JS", "open"), [[mib, 100, 29]])
    np.testing.assert_allclose(of(table, "+ CLSR + JS", "random"), [[mib, 40, 52]])
    np.testing.assert_allclose(of(table, "+ LoRA"), [[2, 100, 20]])
    np.testing.assert_allclose(of(table, "+ full fine-tuning"), [[mib, 100, 25]])
    np.testing.assert_allclose(of(table, "Student zero-shot"), [[0, 0, 60]])
    np.testing.assert_allclose(of(table, "Teacher"), [[np.nan, np.nan, 10]])
    assert set(table["gates"]) == {"learned", "soft", "open", "random"}
    assert set(costs.size_and_share(runs, [file], "out_of_domain")["gates"]) == {"learned"}
    other = file | {"weights_sha256": "5" * 64}
    file["domains"]["in_domain"]["ids"].pop()  # not all clips
    for stale in (file, other):
        assert set(costs.size_and_share(runs, [stale])["gates"]) == {"learned"}
    soft = routed(3)
    soft["config"]["gate_mode"] = "soft"  # both branches, whatever the gates lean to
    assert costs.size_and_share([soft])["share"].tolist() == [100]
    assert costs.size_and_share([]).empty
    with pytest.raises(UserError, match="unknown domain 'elsewhere'"):
        costs.size_and_share(runs, [], "elsewhere")


def test_size_and_share_are_means_over_the_languages_of_seeds_that_ran_in_all():
    runs = [routed(1, "ca", 0.2), routed(1, "cs", 0.4, (0.4, 0.8)), routed(2, "ca", 0.1)]
    table = costs.size_and_share([*runs, routed(1, "th", 0.9)])
    np.testing.assert_allclose(of(table, "+ CLSR + JS"), [[5000 / 2**20, 50, 30]])
    assert table["seed"].tolist() == [1] and table["rate"].tolist() == ["wer"]  # no CER with it


def test_size_and_share_plot_shows_each_seed_and_their_mean():
    runs = [routed(1), routed(2, wer=0.4, shares=(0.4, 0.8)), make_record("lora", wer=0.2)]
    runs += [make_record("kl", wer=0.35), untrained("zero_shot", 0.6), untrained("teacher", 0.1)]
    runs[3]["evaluations"][0]["gates"] = {"encoder": [0.1], "decoder": [0.3]}
    table = costs.size_and_share(runs, [forced_file(r, soft=0.28) for r in runs[:2]])
    figure = draw(size_plots.size_and_share_plot(table))
    size, share = figure.axes
    assert size.get_ylabel() == "WER in domain (%)" and size.get_xscale() == "log"
    for axis in (size, share):
        heights = sorted(y for line in axis.lines for y in set(line.get_ydata()))
        marks = [20, 30, 35, 35, 40, 28, 28, 60, 10]  # LoRA, JS and its mean, KL, JS soft, lines
        expected = sorted([*marks, 60]) if axis is share else sorted(marks)
        np.testing.assert_allclose(heights, expected)
    shares = {tuple(np.ravel(line.get_xdata())) for line in share.lines if line.get_ls() == "None"}
    assert {(40.0, 60.0), (50.0,), (20.0,), (0.0,)} <= {tuple(np.round(s, 6)) for s in shares}
    labels = texts(figure)
    for name in ("+ LoRA", "+ CLSR + KL", "Teacher", "gates as learned", "soft gates", "100"):
        assert name in labels
    # JS and KL are of one size: beside each other, around it.
    places = {round(float(np.ravel(line.get_xdata())[0]), 9) for line in size.lines[2:]}
    assert len(places - {0.0}) >= 2
    looks = {
        (line.get_marker(), line.get_color()) for line in share.lines if line.get_markersize() > 8
    }
    assert len(looks) == 3  # a marker and a colour a system

    alone = size_plots.size_and_share_plot(costs.size_and_share([make_record("js")]))
    assert texts(draw(alone)) == ["fewer than two trained systems: nothing to compare"]
    assert len(draw(alone).axes) == 1


def test_size_and_share_plot_has_a_row_a_training_size():
    runs = [
        make_record(method, train_size=size, **settings)
        for size in (100, 200)
        for method, settings in (("lora", {}), ("full", {}), ("lora", {"max_steps": 2}))
    ]
    table = costs.size_and_share([*runs, make_record("full", train_size=300)])
    figure = draw(size_plots.size_and_share_plot(table))
    assert [axis.get_title(loc="left") for axis in figure.axes[::2]] == [
        "demo, 100 training clips", "demo, 200 training clips",
    ]  # fmt: skip
    assert "+ LoRA (max_steps=2)" in texts(figure)

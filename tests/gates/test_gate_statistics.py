"""Statistics of gates against small independent computations."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from make_gates import DECODER, LAYERS, gate_file, make_rows

from distilwhisper_lib import UserError
from distilwhisper_lib.config.settings import resolve
from distilwhisper_lib.gates.counts import BINS, SCORE_EDGES, SIDES
from distilwhisper_lib.gates.files import gates_of, load_gates, read_gates
from distilwhisper_lib.gates.statistics import (
    agreement,
    difference_interval,
    entropy,
    layer_shares,
    mean_shares,
    summarise,
)
from distilwhisper_lib.scoring import resampling as bootstrap


def pooled(every, name):
    return np.concatenate([gates[name] for gates in every], 1).mean(1)


def bits(p):
    """Entropy by scipy's definition, written with natural logarithms."""
    return np.array([-sum(q * np.log(q) for q in (x, 1 - x) if q > 0) / np.log(2) for x in p])


def test_shares_pool_every_position():
    rows, every = make_rows()
    summary = summarise(rows, resamples=200)
    np.testing.assert_allclose(summary["encoder"], pooled(every, "audio"), atol=5e-5)
    np.testing.assert_allclose(summary["decoder"], pooled(every, "decoder"), atol=5e-5)
    assert set(summary["classes"]) == {"padding", *DECODER}
    for name, found in summary["classes"].items():
        np.testing.assert_allclose(found["share"], pooled(every, name), atol=5e-5)
    assert summary["positions"]["inside"] == sum(g["inside"].shape[1] for g in every)
    assert (summary["clips"], summary["blocks"], summary["blocked_on"]) == (40, 8, "speaker")
    assert layer_shares(rows) == {side: summary[side] for side in SIDES}


def test_intervals_are_those_of_every_possible_draw_of_speakers(monkeypatch):
    """Three speakers have 27 equally likely draws: the bootstrap must find their quantiles."""
    monkeypatch.setattr(bootstrap, "MIN_SPEAKERS", 3)
    rows, every = make_rows(utterances=9, speakers=3)
    summary = summarise(rows, resamples=20_000)
    for name, bounds in (
        ("audio", summary["encoder_interval"]),
        ("decoder", summary["decoder_interval"]),
        ("word_initial", summary["classes"]["word_initial"]["interval"]),
    ):
        speakers = [np.concatenate([g[name] for g in every[s::3]], 1) for s in range(3)]
        draws = [
            np.concatenate([speakers[s] for s in draw], 1).mean(1)
            for draw in itertools.product(range(3), repeat=3)
        ]
        low, high = np.quantile(np.repeat(draws, 100, 0), [0.025, 0.975], axis=0)
        np.testing.assert_allclose(bounds, np.stack([low, high], 1), atol=1e-4)


def test_one_utterance_gives_no_interval_and_those_of_few_speakers_are_drawn():
    summary = summarise(make_rows(utterances=1)[0], resamples=200)
    assert summary["encoder_interval"] is None
    assert summary["classes"]["prompt"]["interval"] is None
    assert summary["entropy"]["decoder"]["interval"] is None
    rows, _ = make_rows(speakers=1)
    for speaker, kind in (("s0", "utterance (1 speaker)"), ("", "utterance")):
        summary = summarise([row | {"speaker": speaker} for row in rows], resamples=200)
        assert (summary["blocks"], summary["blocked_on"]) == (40, kind)
        assert len(summary["encoder_interval"]) == LAYERS


def test_entropies():
    rows, every = make_rows()
    found = summarise(rows, resamples=200)["entropy"]
    for side, name in (("encoder", "audio"), ("decoder", "decoder")):
        np.testing.assert_allclose(found[side]["all"], bits(pooled(every, name)), atol=1e-4)
        lengths = np.array([g[name].shape[1] for g in every])
        each = np.array([bits(g[name].mean(1)) for g in every])
        within = (each * lengths[:, None]).sum(0) / lengths.sum()
        np.testing.assert_allclose(found[side]["within_utterance"], within, atol=1e-4)
        assert (within < found[side]["all"]).all()  # knowing the utterance tells something
        for (low, high), value in zip(found[side]["interval"], found[side]["all"], strict=True):
            assert low <= value <= high <= 1
    sizes = np.array([sum(g[name].shape[1] for g in every) for name in DECODER])
    by_class = np.array([bits(pooled(every, name)) for name in DECODER])
    expected = (by_class * sizes[:, None]).sum(0) / sizes.sum()
    np.testing.assert_allclose(found["decoder"]["within_class"], expected, atol=1e-4)
    assert entropy(np.array([0.0, 0.5, 1.0])).tolist() == [0.0, 1.0, 0.0]


def test_soft_means_weigh_by_positions_and_leave_out_whoever_was_not_asked():
    rows, every = make_rows(utterances=3)
    rows[1]["gates"]["soft"] = {"encoder": None, "decoder": None}
    lengths = [every[i]["audio"].shape[1] for i in (0, 2)]
    a, b = (np.array(rows[i]["gates"]["soft"]["encoder"]) for i in (0, 2))
    expected = (a * lengths[0] + b * lengths[1]) / sum(lengths)
    np.testing.assert_allclose(summarise(rows)["soft"]["encoder"], expected, atol=1e-4)
    for row in rows:
        row["gates"]["soft"] = {"encoder": None, "decoder": None}
    assert summarise(rows)["soft"] == {"encoder": None, "decoder": None}
    assert set(mean_shares(rows)) == {"gate_hard", "gate_hard_encoder", "gate_hard_decoder"}


def test_means_over_layers_pool_both_sides_as_training_does():
    rows, every = make_rows()
    found = mean_shares(rows)
    values = {"encoder": [g["audio"].ravel() for g in every]}
    values["decoder"] = [g["decoder"].ravel() for g in every]
    for side in SIDES:
        assert found[f"gate_hard_{side}"] == pytest.approx(np.concatenate(values[side]).mean())
    everything = np.concatenate(values["encoder"] + values["decoder"])
    assert found["gate_hard"] == pytest.approx(everything.mean())
    sizes = [sum(map(len, values[side])) for side in SIDES]
    soft = [found[f"gate_soft_{side}"] for side in SIDES]
    assert found["gate_soft"] == pytest.approx(np.average(soft, weights=sizes))


def test_scores_of_other_bins_are_left_out():
    rows, _ = make_rows(utterances=4)
    counts = {side: [[1] * BINS] * LAYERS for side in SIDES}
    assert summarise(rows, {"edges": list(SCORE_EDGES), **counts})["scores"] == counts
    assert summarise(rows, {"edges": [0.0], **counts})["scores"] is None
    assert summarise(rows)["scores"] is None


def test_rows_of_earlier_versions_are_refused():
    rows, _ = make_rows(utterances=2)
    del rows[1]["gates"]["positions"]
    with pytest.raises(UserError, match="earlier version of the kit"):
        summarise(rows)


# Between gate files --------------------------------------------------------------------------


def test_agreement_of_two_languages():
    first, second = gate_file("ca", layers=6), gate_file("cs", layers=6, number=1)
    table = agreement([second, first])
    assert list(table.side) == ["encoder", "decoder"] and set(table.kind) == {"languages"}
    row = table.iloc[0]
    a, b = (np.array(g["domains"]["in_domain"]["encoder"]) for g in (first, second))
    assert (row["first"], row["second"], row["layers"]) == ("ca (77)", "cs (77)", 6)
    assert row["mean difference"] == pytest.approx(100 * np.abs(a - b).mean())
    assert row["largest"] == pytest.approx(100 * (a - b)[row["layer"] - 1])
    assert abs(row["largest"]) == pytest.approx(100 * np.abs(a - b).max())
    assert row["low"] < row["largest"] < row["high"]
    ranks = [sorted(values).index(value) for values in (a, b) for value in values]
    apart = sum((ranks[layer] - ranks[6 + layer]) ** 2 for layer in range(6))
    assert row["correlation"] == pytest.approx(1 - 6 * apart / (6 * 35))  # without ties


def test_only_what_can_be_compared_is():
    files = [
        gate_file("ca"),
        gate_file("cs"),
        gate_file("ca", seed=78),
        gate_file("ca", method="kl"),
    ]
    files += [gate_file("gl", layers=2), gate_file("hu", settings={"epochs": 3})]
    table = agreement(files)
    pairs = {(r["first"], r["second"], r["kind"]) for r in table.to_dict("records")}
    assert pairs == {("ca (77)", "cs (77)", "languages"), ("ca (77)", "ca (78)", "seeds")}
    assert table["correlation"].isna().all()  # of three layers
    assert agreement(files[:1]).empty
    assert agreement(files, "out_of_domain").empty
    flat = [gate_file(code, layers=5) for code in ("ca", "cs")]
    flat[0]["domains"]["in_domain"]["encoder"] = [0.5] * 5
    assert np.isnan(agreement(flat)["correlation"][0])


def test_the_interval_of_a_difference_is_that_of_the_normal_case():
    """With symmetric intervals the method is the textbook one: half-widths add as squares."""
    a, b = np.array([0.5, 0.2]), np.array([0.3, 0.4])
    bounds, others = (
        np.stack([centre - half, centre + half], 1) for centre, half in ((a, 0.03), (b, 0.04))
    )
    found = difference_interval(a, b, bounds, others)
    np.testing.assert_allclose(found, [[0.15, 0.25], [-0.25, -0.15]])


# Files ---------------------------------------------------------------------------------------


def test_gate_files_of_the_first_format_are_read(tmp_path):
    old = {"schema": 1, "run_id": "js-ca-s77-e3ebbf23", "language": "ca", "domains": {
        "in_domain": {"clips": 3, "encoder": [0.5], "decoder": [0.1]}}}  # fmt: skip
    (tmp_path / "gates").mkdir()
    path = tmp_path / "gates" / "a.json"
    path.write_text(json.dumps(old))
    (gates,) = load_gates(tmp_path)
    assert gates == old | {"method": "js", "seed": 77}
    new = gate_file()
    path.write_text(json.dumps(new))
    assert load_gates(str(tmp_path)) == [new]
    summary = new["domains"]["in_domain"]
    for change, message in (
        ({"domains": None}, "field 'domains' is None, expected an object"),
        ({"domains": {"in_domain": summary | {"encoder": [7.5]}}}, r"encoder\[0\]' is 7.5, expec"),
        ({"example": {"id": "a"}}, "field 'example.text' is missing, expected text"),
        ({"language": "klingon"}, "'language' is 'klingon', expected a language of Whisper"),
        ({"run_id": "x"}, "'run_id' is 'x', expected <method>-<language>-s<seed>-<hash>"),
    ):
        path.write_text(json.dumps(new | change))
        with pytest.raises(UserError, match=f"gate file .*a.json: .*{message}"):
            read_gates(path)
    without = {name: value for name, value in new.items() if name != "domains"}
    path.write_text(json.dumps(without))
    with pytest.raises(UserError, match="field 'domains' is missing, expected an object"):
        read_gates(path)
    for content, message in (
        ('{"schema": 3}', "schema 3, expected 2 .or 1"),
        ("[]", "schema None, expected 2"),
        ("{", "not JSON"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_gates(path)


def test_a_notebook_shows_the_runs_of_its_parameters_in_every_language():
    """And all there are where none is: of another preset, say, or of other seeds alone."""

    def file_of(method, language, seed, **overrides):
        run_id = resolve(method, "demo", language, seed, overrides).run_id
        return gate_file(language, seed, method, run_id=run_id)

    found = [
        file_of("js", "ca", 77), file_of("kl", "cs", 77), file_of("js", "ca", 78),
        file_of("js", "ca", 77, train_size=200), gate_file("th", preset="elsewhere"),
    ]  # fmt: skip
    assert gates_of(found, "demo", 77, {}) == found[:2]
    assert gates_of(found, "demo", 78, {}) == found[2:3]
    assert gates_of(found, "demo", 77, {"train_size": 200}) == found[3:4]
    assert gates_of(found, "demo", 79, {}) == found
    assert gates_of(found[4:], "demo", 77, {}) == found[4:]

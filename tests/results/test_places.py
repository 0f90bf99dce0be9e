"""Whose runs are shown: one's own, the published ones on request or in their place, and marked."""

from __future__ import annotations

import pytest
from make_records import make_record, make_run

from distilwhisper_lib.config.settings import CAME_WITH_KIT, OWN_RESULTS, WITH_EXPERTS, resolve
from distilwhisper_lib.results import costs
from distilwhisper_lib.results.error_analysis import error_by_length
from distilwhisper_lib.results.exports import formatted
from distilwhisper_lib.results.frame import blocks
from distilwhisper_lib.results.places import find_records
from distilwhisper_lib.results.records import write_record
from distilwhisper_lib.results.significance import resample
from distilwhisper_lib.results.tables import results_table

OWN = OWN_RESULTS / "demo"


@pytest.fixture(autouse=True)
def published(tmp_path, monkeypatch):
    """A folder to work in, with two published runs of the demo and a full one."""
    monkeypatch.chdir(tmp_path)
    write_record(make_record("lora", preset="cv3k"), "results")
    return [make_run("results/demo", method, errors=0.4) for method in ("clsr", "js")]


def ids(found):
    return [record["run_id"] for record in found.records]


def test_a_run_leaves_everything_in_outputs():
    assert resolve("js").results_dir == OWN
    assert resolve("js").record_path.parent == OWN / "runs"
    assert resolve("js", "cv3k").results_dir == OWN_RESULTS
    assert resolve("js").data_report.is_relative_to(OWN)


def test_published_runs_stand_in_for_ones_own_and_a_line_says_so(published):
    found = find_records(OWN)
    assert ids(found) == [record["run_id"] for record in published]
    assert found.note == (
        "No run of your own to show in outputs/results/demo: shown is what came with the kit, in "
        "results/demo."
    )
    assert ids(find_records(OWN_RESULTS)) == [make_record("lora", preset="cv3k")["run_id"]]
    for table in (formatted(results_table(found.records)), costs.cost_table(found.records)):
        assert all(title.endswith(f", {CAME_WITH_KIT}") for title, _ in table.index)
    assert set(costs.overview(found.records)["from"]) == {CAME_WITH_KIT}


def test_ones_own_runs_stand_alone_and_beside_the_published_on_request(published):
    own = make_run(OWN, "js", errors=0.1)
    found = find_records(OWN)
    assert (ids(found), found.note) == ([own["run_id"]], "")
    assert formatted(results_table(found.records)).index.nlevels == 1
    both = find_records(OWN, published=True)
    assert both.note == "" and len(both.records) == 3
    mine, theirs = blocks(both.records)  # never in one mean, though both are the same run
    assert theirs == f"{mine}, {CAME_WITH_KIT}"
    assert list(costs.overview(both.records)["from"]).count("own run") == 1


def test_what_was_said_is_looked_up_where_its_record_was_found(published):
    own = make_run(OWN, "js", errors=0.1)
    assert own["run_id"] == published[1]["run_id"]
    both = find_records(OWN, published=True).records
    errors = resample(both, OWN, resamples=100).intervals()
    js = errors[(errors["system"] == "+ CLSR + JS") & (errors["domain"] == "in_domain")]
    of = dict(zip(js["training"].str.endswith(CAME_WITH_KIT), js["error"], strict=True))
    assert of[False] < 20 < of[True]
    assert len(error_by_length(both, OWN)["training"].unique()) == 2


def test_a_run_of_another_preset_or_method_is_none_of_these(published):
    own = make_run(OWN, "lora", errors=0.1)
    assert ids(find_records(OWN, preset="demo")) == [own["run_id"]]
    assert find_records(OWN, preset="own").records == []
    for found in (find_records(OWN, methods=WITH_EXPERTS), find_records("none", preset="cv3k")):
        assert found.note.startswith("No run of your own to show in ")
        assert all(record["origin"] == CAME_WITH_KIT for record in found.records)
    write_record(make_record("js", preset="cv10k"), OWN_RESULTS)
    assert [r["preset"] for r in find_records(OWN_RESULTS, preset="cv3k").records] == ["cv3k"]


def test_what_came_with_the_kit_is_marked_where_it_is_asked_for_by_name(published):
    found = find_records("results/demo")
    assert found.note == "" and len(found.records) == 2
    assert {record["origin"] for record in found.records} == {CAME_WITH_KIT}

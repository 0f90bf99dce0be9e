"""From one's own results to the published ones, and nothing else gets there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from make_records import make_run

from distilwhisper_lib.config.settings import OWN_RESULTS, PUBLISHED_RESULTS, resolve
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.record import evaluate, record_run
from distilwhisper_lib.gates.forced import load_forced
from distilwhisper_lib.report.command import main
from distilwhisper_lib.report.pages import soft_block
from distilwhisper_lib.report.publishing import publish_run
from distilwhisper_lib.results.records import load_records, write_record
from distilwhisper_lib.training.loop import train

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "results" / "demo"


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A run of one's own with all that can belong to it: a copy of a committed one."""
    monkeypatch.chdir(tmp_path)
    forced, *_ = sorted((COMMITTED / "gates" / "forced").glob("js-ca-*.json"))
    folder = OWN_RESULTS / "demo"
    for path in COMMITTED.rglob(f"{forced.stem}*"):
        target = folder / path.relative_to(COMMITTED)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder, forced.stem


@pytest.mark.parametrize(
    "name", ["{id}", "outputs/{id}/", "outputs/{id}/record.json",
             "outputs/results/demo/runs/{id}.json"],
)  # fmt: skip
def test_a_record_is_published_with_all_that_belongs_to_it(own, capsys, name):
    folder, run_id = own
    (folder / "figures").mkdir()
    (folder / "figures" / f"{run_id}.png").touch()
    assert main(["publish", name.format(id=run_id)]) == 0
    published = contents(PUBLISHED_RESULTS / "demo")
    assert {path.parts[0] for path in published} == {"runs", "hypotheses", "gates"}
    assert len(published) == 1 + 5 + 2
    assert published.items() <= contents(folder).items()
    said = capsys.readouterr().out.splitlines()
    *said, next_ = said
    assert next_.endswith("python -m distilwhisper_lib results readme")
    assert sorted(said) == sorted(f"copied results/demo/{path}" for path in published)
    assert said[-1] == f"copied results/demo/runs/{run_id}.json"  # when the rest is there


def test_a_full_run_goes_beside_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = make_run(OWN_RESULTS, "lora")
    publish_run(record["run_id"])
    assert len(load_records(PUBLISHED_RESULTS)) == 1


def spoil_hypotheses(folder, run_id):
    path = folder / "hypotheses" / f"{run_id}-in_domain.jsonl.gz"
    shutil.copy(folder / "hypotheses" / f"{run_id}-out_of_domain.jsonl.gz", path)


def spoil_forced(folder, run_id):
    path = folder / "gates" / "forced" / f"{run_id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights_sha256": "0" * 64}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_hypotheses, "in_domain.jsonl.gz: is not the file that record"),
        (spoil_forced, "tells of other weights than record"),
        (lambda folder, run: (folder / "runs" / f"{run}.json").unlink(), "is no run of yours"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(own, capsys, spoil, message):
    folder, run_id = own
    spoil(folder, run_id)
    assert main(["publish", run_id]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not PUBLISHED_RESULTS.exists()


def test_forced_gates_of_earlier_weights_do_not_stay_behind(own):
    folder, run_id = own
    publish_run(run_id)
    (folder / "gates" / "forced" / f"{run_id}.json").unlink()
    assert not any(line.startswith("removed") for line in publish_run(run_id))
    path = folder / "runs" / f"{run_id}.json"
    record = json.loads(path.read_text())
    record["training"]["weights_sha256"] = "0" * 64
    path.write_text(json.dumps(record))
    assert publish_run(run_id)[1].startswith("removed results/demo/gates/forced/")
    assert load_forced(PUBLISHED_RESULTS / "demo") == []


def test_unknown_runs_are_refused_with_those_that_there_are(own):
    with pytest.raises(UserError, match=f"'js-xx' is no run .*outputs/results, which has {own[1]}"):
        publish_run("js-xx")


def test_what_nobody_could_make_again_or_is_not_whole_is_not_published(own):
    folder, run_id = own
    publish_run(run_id)
    assert publish_run(run_id)[0].startswith(f"replaces the record of {run_id}")
    before = contents(PUBLISHED_RESULTS)
    path = folder / "runs" / f"{run_id}.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["provenance"]["dirty"] = True
    write_record(record, folder)
    with pytest.raises(UserError, match=f"{run_id} was made by code that no commit holds"):
        publish_run(run_id)
    record["provenance"]["dirty"] = False
    write_record(record, folder)
    (folder / "gates" / f"{run_id}.json").unlink()
    with pytest.raises(UserError, match=f"{run_id} has no .*: run its notebook again"):
        publish_run(run_id)
    assert contents(PUBLISHED_RESULTS) == before


def test_a_run_that_comes_out_otherwise_touches_nothing_published(tmp_path, monkeypatch, capsys):
    """As on another processor, whose sums round otherwise: here a weight is another."""
    monkeypatch.chdir(tmp_path)
    demo = Path(shutil.copytree(COMMITTED, "results/demo"))
    before, soft = contents(demo), soft_block(load_records(demo), demo)
    config = resolve("zero_shot", "demo", "ca", overrides={"forgetting": ""})  # of the same id
    data = load_data(config)
    run = train(config, data)
    with torch.no_grad():
        next(run.model.model.decoder.layers[0].parameters()).mul_(1.5)
    record = record_run(run, data, evaluate(run, data))
    (published,) = (r for r in load_records(demo) if r["run_id"] == config.run_id)
    assert record["evaluations"] != published["evaluations"]
    assert main(["show", "--demo", "--compare"]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert " of 2 error rates within 0.5 points of the published ones; largest " in told
    assert "38 published ones were not run." in told
    assert contents(demo) == before and "(soft gates)" in soft
    assert soft_block(load_records(demo), demo) == soft

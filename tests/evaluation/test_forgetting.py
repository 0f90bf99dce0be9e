"""Languages and tasks that were not trained: experts leave them untouched, others do not."""

from __future__ import annotations

import copy
import math

import pandas as pd
import pytest
import torch

from distilwhisper_lib.config.settings import resolve
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.record import evaluate, record_run
from distilwhisper_lib.results.costs import forgetting_table
from distilwhisper_lib.results.hypotheses import hypotheses_path
from distilwhisper_lib.training.loop import train


@pytest.fixture
def study(study_of, tmp_path):
    """Catalan runs whose out-of-domain folder speaks Czech too."""
    make = study_of(
        clips=4,
        max_steps=12,
        learning_rate=0.05,
        budget=1.0,
        gate_weight=5.0,
        forgetting="ca cs",
        batch_size=4,
    )
    path = tmp_path / "ood" / "metadata.csv"
    table = pd.read_csv(path)
    table.loc[table.index[2:], "language"] = "cs"
    table.to_csv(path, index=False)
    return make


def complete(config):
    data = load_data(config)
    trained = train(config, data)
    torch.manual_seed(0)
    with torch.no_grad():  # three steps teach little: experts that are heard where they speak
        for name, parameter in trained.model.named_parameters():
            if f".{config.language}." in name:
                parameter.add_(torch.randn_like(parameter))
    return record_run(trained, data, evaluate(trained, data))


def test_experts_leave_other_languages_and_translation_untouched_and_full_does_not(study, tmp_path):
    records = [complete(study(method)) for method in ("zero_shot", "clsr", "full")]
    folder = tmp_path / "outputs" / "results" / "demo"
    for record in records:
        assert [(e["task"], e["language"]) for e in record["forgetting"]] == [
            ("transcribe", "cs"), ("translate", "ca"),
        ]  # fmt: skip
        for entry in record["forgetting"]:
            assert entry["clips"] == 2
            assert hypotheses_path(folder, record["run_id"], entry["part"]).exists()
    table = forgetting_table(records, folder)
    clsr, full = (table[table["system"].str.startswith(f"+ {n}")] for n in ("CLSR", "full"))
    assert list(clsr["same outputs"]) == [100, 100]
    assert clsr["difference"].iloc[0] == 0 and math.isnan(clsr["difference"].iloc[1])
    # The experts said something else where they were asked: nothing was untouched by accident.
    shared, expert = (r["evaluations"][0]["published_sha256"] for r in records[:2])
    assert shared != expert
    assert full["same outputs"].max() < 100
    hashes = [[e["published_sha256"] for e in record["forgetting"]] for record in records]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_run_is_heard_once_and_its_record_stays(study, monkeypatch):
    config = study("zero_shot")
    first = complete(config)
    monkeypatch.setattr("distilwhisper_lib.evaluation.decoding.transcribe_batch", None)
    assert complete(config) == first


def test_a_language_that_the_corpus_lacks_is_left_out_with_a_warning(study):
    with pytest.warns(UserWarning, match="forgetting: pl is left out: "):
        record = complete(study("zero_shot", forgetting="pl cs"))
    assert [e["language"] for e in record["forgetting"]] == ["cs", "ca"]


def test_nothing_is_heard_for_the_teacher_or_when_nobody_asks(study):
    assert complete(study("teacher"))["forgetting"] == []
    assert complete(study("zero_shot", forgetting=""))["forgetting"] == []


def test_without_a_student_there_is_nothing_to_compare_with(study, tmp_path):
    record = complete(study("clsr"))
    folder = tmp_path / "outputs" / "results" / "demo"
    table = forgetting_table([record], folder)
    assert table["same outputs"].isna().all() and table["after"].notna().sum() == 1
    assert set(table["note"]) == {"no run of the student on these clips"}
    other = copy.deepcopy(complete(study("zero_shot")))
    other["models"]["student"] = {"name": "another", "sha256": "0" * 64}
    assert forgetting_table([record, other], folder)["before"].isna().all()
    assert forgetting_table([], folder).empty


def test_the_settings_are_checked_and_change_no_run_id():
    plain = resolve("js", "demo", overrides={"forgetting": ""})
    assert plain.run_id == resolve("js", "demo").run_id == "js-ca-s77-e3ebbf23"
    assert resolve("js", "cv10k").forgetting == ""
    with pytest.raises(UserError, match="Unknown language 'elvish'"):
        resolve("js", "demo", overrides={"forgetting": "cs elvish"})
    with pytest.raises(UserError, match="forgetting_clips=0 is out of range"):
        resolve("js", "demo", overrides={"forgetting_clips": 0})

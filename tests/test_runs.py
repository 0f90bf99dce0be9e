"""From a trained model to a record, and the checks before anything is written."""

from __future__ import annotations

import gc
import json
import weakref

import pytest

from distilwhisper_lib import UserError, training
from distilwhisper_lib.clips import TOO_LONG
from distilwhisper_lib.data import load_data, write_data_report
from distilwhisper_lib.evaluation import transcribe
from distilwhisper_lib.gates import gate_path, read_gates
from distilwhisper_lib.hypotheses import read_published
from distilwhisper_lib.runs import evaluate, record_run, scores_table, written
from distilwhisper_lib.scoring import score
from distilwhisper_lib.subsets import read_subset
from distilwhisper_lib.training import train


@pytest.fixture
def study(study_of):
    return study_of(clips=4, max_steps=2)


def complete(config):
    data = load_data(config)
    trained = train(config, data)
    return record_run(config, data, trained, evaluate(config, trained, data))


@pytest.mark.parametrize("method", ["teacher", "zero_shot", "lora", "js"])
def test_a_run_leaves_a_record_and_a_gate_file(method, study):
    config = study(method)
    record = complete(config)
    path = config.results_dir / "runs" / f"{config.run_id}.json"
    assert json.loads(path.read_text()) == record
    assert [e["domain"] for e in record["evaluations"]] == ["in_domain", "out_of_domain"]
    for evaluation in record["evaluations"]:
        rows = read_published(config.results_dir, record, evaluation)
        assert len(rows) == evaluation["clips"] and "gates" not in rows[0]
        assert score(rows, config.language) == evaluation["scores"]
    assert record["demo"] is True
    assert (record["training"] is None) is (method in ("teacher", "zero_shot"))
    assert (record["models"]["teacher"] is not None) is (method == "js")
    assert str(config.output_dir.absolute()) not in path.read_text()
    assert gate_path(config).exists() is (method == "js")
    if method == "js":
        gates = read_gates(gate_path(config))
        means = record["evaluations"][0]["gates"]
        assert gates["domains"]["in_domain"]["encoder"] == means["encoder"]
        assert len(gates["example"]["token_gates"]) == 2
    table = scores_table(record["evaluations"])
    assert list(table["domain"]) == ["in_domain", "out_of_domain"]
    listed = written(config)["file"]
    assert listed.str.contains("runs/").any()
    assert listed.str.contains("hypotheses/").sum() == 2


def test_running_again_keeps_the_record_and_decodes_nothing(study, monkeypatch):
    config = study("clsr")
    first = complete(config)
    before = (config.output_dir / "record.json").stat().st_mtime_ns
    monkeypatch.setattr("distilwhisper_lib.evaluation._transcribe_batch", None)
    assert complete(config) == first
    assert (config.output_dir / "record.json").stat().st_mtime_ns == before


def test_new_weights_do_not_keep_old_hypotheses(study):
    config = study("clsr")
    complete(config)
    (config.output_dir / "training.json").unlink()  # as a run that was stopped before its end
    stale = (config.output_dir / "in_domain-test.jsonl").stat().st_mtime_ns
    complete(config)
    assert (config.output_dir / "in_domain-test.jsonl").stat().st_mtime_ns != stale


def test_a_record_says_how_its_clips_were_decoded(study):
    record = complete(study("clsr", eval_precision="bf16"))
    for evaluation in record["evaluations"]:
        assert evaluation["precision"] == "bf16"
        assert evaluation["batch_size"] == 4
        assert evaluation["rtf"] == pytest.approx(
            evaluation["seconds"] / evaluation["audio_seconds"], abs=1e-4
        )


def test_there_is_no_teacher_in_memory_when_a_run_is_evaluated(study, monkeypatch):
    teachers, alive = [], []
    build = training.Teacher.__init__

    def remember(self, model, *args, **kwargs):
        build(self, model, *args, **kwargs)
        teachers.append(weakref.ref(self.model))

    def look(*args, **kwargs):
        alive.extend(ref() for ref in teachers)
        return transcribe(*args, **kwargs)

    monkeypatch.setattr(training.Teacher, "__init__", remember)
    monkeypatch.setattr("distilwhisper_lib.runs.transcribe", look)
    gc.disable()  # nobody comes by
    try:
        complete(study("js"))
    finally:
        gc.enable()
    assert len(teachers) == 1 and alive == [None, None]


def test_a_data_report_lists_what_a_run_reads(study):
    config = study("zero_shot", train_size=3)
    data = load_data(config)
    paths = write_data_report(config, data)
    assert [p.split("/")[-2] for p in paths] == ["data"] + ["subsets"] * 4
    report = json.loads(open(paths[0]).read())
    assert report["parts"]["train"]["clips"] == 3
    assert read_subset(paths[1]) == list(data.train["id"])


def test_long_clips_are_dropped_and_counted(study):
    data = load_data(study("zero_shot", max_seconds=1.0))
    assert [clip.reason for clip in data.dropped["train"]] == [TOO_LONG]
    assert data.train["seconds"].max() <= 1.0
    with pytest.raises(UserError, match="no train clip in 'ca' of at most 0.1 s"):
        load_data(study("zero_shot", max_seconds=0.1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "train1.wav").unlink(), "train1.wav does not exist"),
        (lambda f: (f / "train1.wav").write_bytes(b"no audio at all" * 9), "cannot be read"),
        (lambda f: (f / "train1.wav").write_bytes(b""), "empty"),
        (lambda f: (f / "metadata.csv").write_text("file_name,words\na.wav,hi\n"), "no text, lang"),
        (lambda f: (f / "metadata.csv").unlink(), "neither metadata.csv nor metadata.jsonl"),
    ],
)
def test_bad_data_is_one_sentence_and_nothing_is_written(study, tmp_path, spoil, message):
    spoil(tmp_path / "speech")
    config = study("clsr")
    with pytest.raises(UserError, match=message) as error:
        complete(config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "outputs").exists()
    assert not (tmp_path / "results").exists()


def test_leaks_between_parts_are_found_and_equal_ids_of_other_corpora_are_not(study, tmp_path):
    config = study("zero_shot")
    # Both corpora have the ids test0 to test3, and the same sentences.
    assert {leak.kind for leak in load_data(config).leaks} == {"text"}
    path = tmp_path / "ood" / "metadata.csv"
    path.write_text(path.read_text().replace("frase", "altra"))
    assert load_data(config).leaks == []
    path = tmp_path / "speech" / "metadata.csv"
    path.write_text(path.read_text().replace("test frase a", "Train: frase A!"))
    (leak,) = load_data(config).leaks
    assert leak == ("text", "train frase a", ("in_domain", "train"))

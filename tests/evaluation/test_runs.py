"""From a trained model to a record, and the checks before anything is written."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from importlib.metadata import version
from pathlib import Path

import pytest
from stand_ins import encoded

from distilwhisper_lib import UserError
from distilwhisper_lib.data.checklist import write_data_report
from distilwhisper_lib.data.clips import TOO_LONG
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.data.subsets import read_subset
from distilwhisper_lib.evaluation import record as records
from distilwhisper_lib.evaluation.decoding import read_hypotheses, transcribe
from distilwhisper_lib.evaluation.forced import hear_forced
from distilwhisper_lib.evaluation.record import evaluate, record_run, scores_table, written
from distilwhisper_lib.evaluation.run import load_run
from distilwhisper_lib.export.bundle import export_run
from distilwhisper_lib.gates.files import gate_path, read_gates
from distilwhisper_lib.model.tensors import weights_hash
from distilwhisper_lib.results.hypotheses import read_published
from distilwhisper_lib.scoring.rates import score
from distilwhisper_lib.training import loop as training
from distilwhisper_lib.training.loop import train


@pytest.fixture
def study(study_of):
    return study_of(clips=4, max_steps=2)


def complete(config):
    data = load_data(config)
    trained = train(config, data)
    return record_run(trained, data, evaluate(trained, data))


def test_a_run_is_the_same_as_it_was_trained_and_as_it_was_read_back(study):
    config = study("js")
    data = load_data(config)
    run = train(config, data)
    with pytest.raises(UserError, match="holds no finished run"):
        _ = run.record  # so it says to whoever wants to export it now
    record = record_run(run, data, evaluate(run, data))
    again = load_run(run.folder)
    assert run.record == again.record == record
    assert (run.folder, run.models, run.training) == (again.folder, again.models, again.training)
    assert weights_hash(run.model.state_dict()) == weights_hash(again.model.state_dict())
    hear_forced(run, cases=["closed"], progress=False)
    assert export_run(run, "from-training", "trained").is_dir()


def test_who_waits_outside_is_told_which_test_is_heard(study, monkeypatch):
    config = study("zero_shot")
    data, told = load_data(config), []
    note = config.output_dir / "progress.txt"
    heard = records._evaluate_domain
    monkeypatch.setattr(
        records, "_evaluate_domain", lambda *a: told.append(note.read_text()) or heard(*a)
    )
    evaluate(train(config, data), data)
    clips = [len(data.in_domain), len(data.out_of_domain)]
    assert told == [f"test {what}: {n} clips to hear" for what, n in zip(
        ("in domain", "out of domain"), clips, strict=True)]  # fmt: skip
    assert not note.exists()


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
        _check_gate_file(gates, config, read_hypotheses(config.output_dir / "in_domain-test.jsonl"))
    table = scores_table(record["evaluations"])
    assert list(table["domain"]) == ["in_domain", "out_of_domain"]
    listed = written(config)["file"]
    assert listed.str.contains("runs/").any()
    assert listed.str.contains("hypotheses/").sum() == 2


def _check_gate_file(gates, config, rows):
    assert (gates["method"], gates["language"], gates["seed"]) == ("js", "ca", 7)
    assert gates["settings"]["max_steps"] == 2
    assert "eval_batch_size" not in gates["settings"]  # decides no weight
    assert str(config.data_dir) not in json.dumps(gates)
    summary = gates["domains"]["in_domain"]
    assert summary["blocked_on"] == "utterance (2 speakers)"
    assert summary["blocks"] == len(rows)
    frames = sum(row["gates"]["positions"]["audio"] for row in rows)
    assert summary["positions"]["audio"] == frames
    for counts, share in zip(summary["scores"]["encoder"], summary["encoder"], strict=True):
        assert sum(counts) == frames
        assert sum(counts[len(gates["score_edges"]) // 2 + 1 :]) == round(share * frames)


def test_training_notes_its_noise_and_every_validation_its_hard_gates(study):
    record = complete(study("clsr", max_steps=-1, epochs=2))
    log, validation = record["training"]["log"], record["training"]["validation"]
    assert [line["gate_noise"] for line in log] == sorted(line["gate_noise"] for line in log)
    assert 0 < log[-1]["gate_noise"] < 5
    assert len(validation) == 2
    for entry in validation:
        assert 0 <= entry["gate_hard"] <= 1 and 0 < entry["gate_soft"] < 1
        low, high = sorted((entry["gate_hard_encoder"], entry["gate_hard_decoder"]))
        assert low <= entry["gate_hard"] <= high


def test_hypotheses_of_earlier_versions_are_refused_in_one_sentence(study):
    config = study("clsr")
    complete(config)
    path = config.output_dir / "in_domain-test.jsonl"
    rows = read_hypotheses(path)
    for row in rows:
        row["gates"] = {side: row["gates"][side] for side in ("encoder", "decoder")}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="earlier version of the kit.*remove the .jsonl files"):
        complete(config)
    path.unlink()
    complete(config)


def test_running_again_keeps_the_record_and_decodes_nothing(study, monkeypatch):
    config = study("clsr")
    first = complete(config)
    before = (config.output_dir / "record.json").stat().st_mtime_ns
    monkeypatch.setattr("distilwhisper_lib.evaluation.decoding.transcribe_batch", None)
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
    monkeypatch.setattr("distilwhisper_lib.evaluation.record.transcribe", look)
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
    assert [p.split("/")[-2] for p in paths] == ["data", *["subsets"] * 4, "data", "data"]
    report = json.loads(open(paths[0]).read())
    assert report["parts"]["train"]["clips"] == 3
    assert read_subset(paths[1]) == list(data.train["id"])


def test_long_clips_are_dropped_and_counted(study):
    data = load_data(study("zero_shot", max_seconds=1.0))
    assert [clip.reason for clip in data.dropped["train"]] == [TOO_LONG]
    assert data.train["seconds"].max() <= 1.0
    with pytest.raises(UserError, match="no train clip in 'ca' that .* clips of at most 0.1 s"):
        load_data(study("zero_shot", max_seconds=0.1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "train1.wav").unlink(), "train1.wav does not exist"),
        (lambda f: (f / "train1.wav").write_bytes(b"no audio at all" * 9), "cannot be read"),
        (lambda f: (f / "train1.wav").write_bytes(b""), "empty"),
        (
            lambda f: (f / "train1.wav").write_bytes(encoded(1.0, 3, "FLAC")[:9000]),
            r"metadata.csv, line \d: .*train1.wav is damaged or cut",
        ),
        (
            lambda f: (f / "metadata.csv").write_text("file_name,words\na.wav,hi\n"),
            "no column text, lang",
        ),
        (lambda f: (f / "metadata.csv").unlink(), "neither metadata.csv nor metadata.jsonl"),
    ],
)
def test_bad_data_is_one_sentence_and_nothing_else_than_its_page_is_written(
    study, tmp_path, spoil, message
):
    spoil(tmp_path / "speech")
    config = study("clsr")
    with pytest.raises(UserError, match=message) as error:
        complete(config)
    assert "\n" not in str(error.value)
    page = config.data_report.with_suffix(".html")
    written = [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
    assert {path.name for path in written} <= {page.name, page.with_suffix(".csv").name}
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


def test_a_record_names_the_decoder_where_it_was_not_libsndfile(study_of, tmp_path):
    configure = study_of(2)
    phone = Path(__file__).parents[1] / "speech" / "recordings" / "phone.m4a"
    shutil.copy(phone, tmp_path / "ood" / "test0.m4a")
    (tmp_path / "ood" / "test0.wav").unlink()
    sheet = tmp_path / "ood" / "metadata.csv"
    sheet.write_text(sheet.read_text().replace("test0.wav", "test0.m4a"))
    config = configure("zero_shot")
    data = load_data(config)
    run = train(config, data)
    record = record_run(run, data, evaluate(run, data))
    assert record["data"]["out_of_domain"]["by_ffmpeg"] == {"clips": 1, "av": version("av")}
    assert "by_ffmpeg" not in record["data"]["in_domain"]

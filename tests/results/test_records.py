"""Run records: checked on every write and every read."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from make_records import make_record

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io import checked as schema
from distilwhisper_lib.results import records


def test_record_round_trip_is_stable(tmp_path):
    record = make_record()
    path = records.write_record(record, tmp_path)
    assert path == tmp_path / "runs" / f"{record['run_id']}.json"
    assert records.read_record(path) == record
    assert path.read_text() == records.record_text(records.read_record(path))


REQUIRED = sorted(n for n, kind in records.SCHEMA.items() if not isinstance(kind, schema.Optional))


def test_fields_that_came_later_may_be_missing():
    record = make_record()
    assert "forgetting" not in record and "published_sha256" not in record["evaluations"][0]
    records.validate_record(record)
    record["forgetting"] = [{"task": "dance"}]
    with pytest.raises(UserError, match=r"'forgetting\[0\].task' is 'dance', expected one of"):
        records.validate_record(record)


def test_a_record_of_another_normaliser_is_one_sentence():
    record = make_record()
    scores = record["evaluations"][1]["scores"]
    scores["nfkd"] = scores.pop("marks")
    with pytest.raises(UserError) as error:
        records.validate_record(record, "x.json")
    assert str(error.value) == (
        "x.json: field 'evaluations[1].scores' is scored under 'whisper' and 'nfkd', expected "
        "'marks' and 'whisper', which this version knows: run its notebook again (what was trained "
        "and decoded is read back from outputs/, only the scores are made anew), or update the kit"
    )
    scores["marks"] = scores["nfkd"]
    records.validate_record(record)  # one more than ours is none of our business


@pytest.mark.parametrize("field", REQUIRED)
def test_every_missing_field_is_named(field):
    record = make_record()
    del record[field]
    with pytest.raises(UserError, match=rf"^runs/x\.json: field '{field}' is missing, expected"):
        records.validate_record(record, "runs/x.json")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("demo",), 1, "field 'demo' is 1, expected true or false"),
        (("config", "seed"), "77", "field 'config.seed' is '77', expected a whole number"),
        (("config", "seed"), True, "field 'config.seed' is True"),
        (("config", "method"), "js5", "'config.method' is 'js5', expected one of teacher, zero_sh"),
        (("provenance", "versions", "torch"), 2.1, "field 'provenance.versions.torch' is 2.1"),
        (("training", "steps"), 2.5, "field 'training.steps' is 2.5, expected a whole number"),
        (("training", "log", 0, "step"), None, r"field 'training.log\[0\].step' is None"),
        (("training", "teacher_targets"), {"mode": 1}, "'training.teacher_targets.mode' is 1, exp"),
        (("data", "train"), [], r"field 'data.train' is \[\], expected an object"),
        (("evaluations",), {}, "field 'evaluations' is {}, expected a list"),
        (
            ("evaluations", 1, "scores", "marks", "wer", "wer"),
            math.nan,
            r"field 'evaluations\[1\].scores.marks.wer.wer' is nan, expected a number",
        ),
        (("evaluations", 0, "domain"), ["in"], r"'evaluations\[0\].domain' is \['in'\], expected"),
        (("run_id",), "../x", "field 'run_id' is '../x', expected letters"),
        (("config", "train_size"), "many", "'config.train_size' is 'many', expected a whole numb"),
        (("config", "train_size"), 0, "'config.train_size' is 0, expected a whole number of 1 or"),
        (("config", "budget"), "<b>", "field 'config.budget' is '<b>', expected a number"),
        (("config", "language"), "klingon", "'config.language' is 'klingon', expected a language"),
        (("config", "language"), "catalan", "'config.language' is 'catalan', expected a language"),
        (
            ("evaluations", 1, "language"),
            "klingon",
            r"\[1\].language' is 'klingon', expected a la",
        ),
        (("evaluations", 0, "clips"), -5, r"\[0\].clips' is -5, expected a whole number of 1 or m"),
        (("evaluations", 0, "rtf"), -0.1, r"\[0\].rtf' is -0.1, expected a number of 0 or more"),
        (
            ("evaluations", 0, "scores", "marks", "wer", "wer"),
            -3.0,
            r"scores.marks.wer.wer' is -3.0, expected a number of 0 or more",
        ),
        (
            ("evaluations", 0, "scores", "whisper", "cer"),
            {"cer": 0, "substitutions": 0, "deletions": 0, "insertions": 0, "hits": 0},
            "scores.whisper.cer' is .*, expected hits, substitutions and deletions that add up",
        ),
        (
            ("evaluations", 0, "gates"),
            {"encoder": [0.5], "decoder": [1.5]},
            r"decoder\[0\]' is 1.5, expected a number from 0 to 1",
        ),
        (("training", "seconds"), -1, "'training.seconds' is -1, expected a number of 0 or more"),
    ],
)
def test_wrong_types_are_named(path, value, message):
    record = make_record()
    target = record
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(UserError, match=f"^file.json: .*{message}"):
        records.validate_record(record, "file.json")


def test_other_schemas_are_refused_before_anything_else():
    for version, advice in ((2, "newer than the 1 .* update the kit"), (0, "older than")):
        with pytest.raises(UserError, match=f"field 'schema' is {version}, {advice}"):
            records.validate_record({"schema": version}, "file.json")


def test_what_earlier_versions_did_not_write_may_be_missing(tmp_path):
    record = make_record()
    assert "teacher_targets" not in record["training"]
    about = {"mode": "hidden", "bytes": 10, "seconds": 1.5, "built": True}
    for targets in ({"mode": "online"}, about):
        record["training"]["teacher_targets"] = targets
        assert records.read_record(records.write_record(record, tmp_path)) == record


def test_a_bad_record_writes_nothing(tmp_path):
    record = make_record()
    del record["models"]["student"]["name"]
    with pytest.raises(UserError, match=f"record {record['run_id']}: .*'models.student.name'"):
        records.write_record(record, tmp_path)
    record = make_record()
    record["config"]["a_later_setting"] = math.inf  # free, so that the schema lets it through
    with pytest.raises(UserError, match="cannot be written as JSON"):
        records.write_record(record, tmp_path)
    assert os.listdir(tmp_path) == []


def test_unreadable_records_are_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.json: no such record"):
        records.read_record(tmp_path / "gone.json")
    path = tmp_path / "bad.json"
    path.write_text('{\n"schema": 1,,}')
    with pytest.raises(UserError, match=r"bad\.json: line 2 is not JSON"):
        records.read_record(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"bad\.json: cannot be read as UTF-8"):
        records.read_record(path)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"bad\.json: holds \[\], expected a run record"):
        records.read_record(path)


def test_demo_and_full_records_never_mix(tmp_path):
    demo, full = make_record(), make_record(preset="cv3k")
    records.write_record(demo, tmp_path / "results" / "demo")
    records.write_record(full, tmp_path / "results")
    assert records.load_records(tmp_path / "results") == [full]
    assert records.load_records(tmp_path / "results" / "demo") == [demo]
    assert records.load_records(tmp_path / "nothing") == []
    records.write_record(demo, tmp_path / "results")
    with pytest.raises(UserError, match="field 'demo' is True but False in cv3k"):
        records.load_records(tmp_path / "results")


def test_a_renamed_record_is_refused(tmp_path):
    path = records.write_record(make_record(), tmp_path)
    path.rename(path.with_name("other.json"))
    with pytest.raises(UserError, match=r"other\.json: field 'run_id'"):
        records.load_records(tmp_path)


def test_the_committed_records_are_records():
    results = Path(__file__).parents[2] / "results"
    demo, full = records.load_records(results / "demo"), records.load_records(results)
    assert len(demo) >= 14 and all(r["demo"] for r in demo) and not any(r["demo"] for r in full)
    for record in [*demo, *full]:  # settings of other versions are none of our business
        record["config"] |= {"a_later_setting": [1], "precision": "fp8"}
        del record["config"]["budget"]
        records.validate_record(record)

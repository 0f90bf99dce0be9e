"""The races run, say so when they fail, and their page shows what they found."""

from __future__ import annotations

import json

import pytest
import torch
from make_records import make_record

from benchmarks import __main__ as command
from benchmarks.races import harness, inference, report
from benchmarks.races.races import races
from benchmarks.study import repeats
from distilwhisper_lib.results.records import write_record

KEYS = {
    "race", "ratio", "goal", "holds", "unit", "medians", "samples", "checks", "group", "device",
    "size", "dims", "teacher_dims", "threads", "versions", "commit", "dirty", "date", "machine",
}  # fmt: skip


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """The command at its small size, with a results file of its own: (exit status, its rows)."""
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # put back afterwards: the command sets both
    out = tmp_path / "results.json"

    def run(*arguments):
        status = command.main(["--small", "--out", str(out), *arguments])
        return status, json.loads(out.read_text()) if out.exists() else None

    return run


def test_every_race_runs_and_tells_all_of_it(bench):
    status, rows = bench()
    assert status == 0
    assert {row["group"] for row in rows} == set(races("cpu"))
    for row in rows:
        assert KEYS <= set(row)
        assert row["ratio"] > 0 and row["size"] == "small" and row["threads"] == 1
        assert row["holds"] == harness.holds(row["ratio"], row["goal"])
        assert row["checks"] and all(c["value"] <= c["limit"] for c in row["checks"])
        assert set(row["medians"]) == set(row["samples"])
    goals = [row["goal"] for row in rows if row["goal"]]
    experts = "<= 1.03|<= 0.75|<= 1.12|<= 1.30|<= 1.05|<= 1.12" + 4 * "|<= 1.00"
    training = ">= 2.2|<= 1.10|<= 1.6|<= 1.2|>= 5|<= 0.51|<= 0.35|<= 0.35|<= 1.10"
    assert sorted(goals) == sorted(f"{experts}|{training}".split("|"))
    shares = [row["gates_open"] for row in rows if row["group"] == "forward"]
    assert all(0.4 < s < 0.6 for share in shares for side in share.values() for s in side)


def test_sides_that_differ_fail_loudly_and_cost_the_others_nothing(bench, monkeypatch, capsys):
    monkeypatch.setattr(inference, "largest_difference", lambda a, b: 0.5)
    status, rows = bench("--only", "forward", "log_mel")
    assert status == 1
    broken, other = rows
    assert broken["ratio"] is None and broken["holds"] is False
    assert "0.5, expected at most 0.001" in broken["error"]
    assert other["group"] == "log_mel" and other["ratio"] > 0
    told = capsys.readouterr()
    assert "FAILED: forward" in told.err and "failed" in told.out


def test_what_did_not_run_stays(bench, tmp_path):
    older = {"race": "x", "ratio": 1.0, "goal": None, "holds": None, "group": "forward"}
    before = [
        older | {"device": "cpu", "size": "small"},
        older | {"device": "cpu", "size": "small", "group": "log_mel"},
        older | {"device": "cpu", "size": "full", "group": "log_mel"},
        older | {"device": "cuda", "size": "small", "group": "log_mel"},
    ]
    (tmp_path / "results.json").write_text(json.dumps(before))
    status, rows = bench("--only", "log_mel")
    assert status == 0
    assert rows[:3] == [before[0], before[2], before[3]]
    assert [row["group"] for row in rows[3:]] == ["log_mel"]


def test_an_unknown_race_or_a_broken_file_is_one_line(bench, tmp_path, capsys):
    assert bench("--only", "sprint") == (2, None)
    assert "no race sprint: they are routing, forward" in capsys.readouterr().err
    (tmp_path / "results.json").write_text('{"race": 1}')
    assert bench("--only", "log_mel")[0] == 2
    assert "holds no list of races" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ratio", "goal", "expected"),
    [
        (1.03, "<= 1.03", True),
        (1.0301, "<= 1.03", False),
        (2.2, ">= 2.2", True),
        (2.19, ">= 2.2", False),
        (7.0, None, None),
    ],
)
def test_goals(ratio, goal, expected):
    assert harness.holds(ratio, goal) is expected


def test_checks_refuse_what_is_not_a_number():
    assert harness.check("x", 0.1, 0.1) == {"what": "x", "value": 0.1, "limit": 0.1}
    for value in (0.11, float("nan"), torch.tensor(float("inf"))):
        with pytest.raises(harness.Unequal, match="expected at most 0.1"):
            harness.check("x", value, 0.1)


def test_sides_take_turns_and_warm_rounds_do_not_count():
    calls = []
    sides = {name: lambda name=name: calls.append(name) for name in "ab"}
    samples = harness.interleaved(sides, rounds=3, warm=1)
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3}
    assert "".join(calls) == "abbaabba"


def test_a_ratio_is_of_medians():
    row = harness.row("x", {"a": [1, 2, 99], "b": [1, 4, 4]}, checks=[], goal="<= 0.5")
    assert row["ratio"] == 0.5 and row["holds"] is True
    assert row["medians"] == {"a": 2, "b": 4}


def test_the_page_shows_the_committed_results():
    assert report.main(["--check"]) == 0, "run `python -m benchmarks.races.report`"


def test_a_stale_table_is_noticed_and_mended(tmp_path, capsys):
    readme, results = tmp_path / "README.md", tmp_path / "results.json"
    readme.write_text("# A\n<!-- speed:start -->\nSTALE\n<!-- speed:end -->\nrest\n")
    row = harness.row("a race", {"x": [1.0], "y": [2.0]}, checks=[], goal="<= 0.4")
    about = {
        "device": "cpu", "size": "full", "threads": 1, "date": "2025-01-02T03:04:05+00:00",
        "commit": "abcdef0123", "dirty": False, "versions": {"torch": "2", "transformers": "5"},
        "machine": {"cpu": "A CPU", "cores": 2, "device": "cpu"},
    }  # fmt: skip
    failed = harness.failed("b", ValueError("no"))
    small = row | about | {"size": "small", "race": "tiny"}
    report.write_rows(results, [row | about, failed | about, small])
    files = ["--readme", str(readme), "--results", str(results)]
    assert report.main([*files, "--check"]) == 1
    assert "stale" in capsys.readouterr().err
    assert report.main(files) == 0
    assert report.main([*files, "--check"]) == 0
    text = readme.read_text()
    assert "| a race | 0.500 | <= 0.4 | no | x 1, y 2 ms |" in text
    assert "| b | failed |  | no | ValueError: no |" in text
    assert "Made 2025-01-02, commit `abcdef01`, on A CPU (2 cores, 1 thread), torch 2" in text
    assert "tiny" not in text and "STALE" not in text and text.endswith("rest\n")
    assert "GPU: not run yet" in text
    readme.write_text("no markers")
    assert report.main(files) == 2


# Repeats --------------------------------------------------------------------------------------


def test_a_repeat_stands_beside_its_run_and_in_the_place_of_an_earlier_one(tmp_path, capsys):
    first, again = make_record(wer=0.2), make_record(wer=0.21)
    again["evaluations"][0]["hypotheses_sha256"] = "7" * 64
    paths = [str(write_record(r, tmp_path / name)) for r, name in ((first, "a"), (again, "b"))]
    out = tmp_path / "repeats.json"
    for _ in range(2):
        assert repeats.main([*paths, "--note", "again", "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())
    assert row["weights equal"] is True
    assert row["tests"]["in_domain"] == {"first": 20.0, "again": 21.0, "hypotheses equal": False}
    assert row["tests"]["out_of_domain"]["hypotheses equal"] is True
    other, untrained = make_record(seed=78), make_record("zero_shot")
    untrained["training"] = None
    for record, message in ((other, "is another run"), (untrained, "trains nothing")):
        path = str(write_record(record, tmp_path / "c"))
        assert repeats.main([path if record is untrained else paths[0], path]) == 2
        assert message in capsys.readouterr().err

"""Whatever reads files from outside; `python -m benchmarks.robustness.fuzz` tries much more."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath
from random import Random

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.robustness import fuzz
from benchmarks.robustness.fuzz_targets import TARGETS, recording
from benchmarks.robustness.target import Escape, Target
from distilwhisper_lib.data import corpora, fleurs, subsets
from distilwhisper_lib.errors import LONGEST, DiskError, UserError
from distilwhisper_lib.io.files import parse_json
from distilwhisper_lib.results.hypotheses import hypotheses_path, publish, read_published

# Each draws figures or reads a whole folder of results.
FEW = {"report": 1, "records": 3, "gate files": 5, "fleurs parquet": 6}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
HOSTILE = ["../x.wav", "/etc/passwd", "a\0.wav", "x" * 300, "clips/../../x.wav"]
NAMES = TEXT | st.sampled_from(HOSTILE)
DEEP = st.integers(0, 200_000).map(lambda depth: "[" * depth)


@pytest.mark.parametrize("name", TARGETS)
def test_files_that_are_wrong_are_read_or_refused(name):
    """No crash, no hang, no file elsewhere; hypothesis chooses and shrinks the changes."""
    target = TARGETS[name]
    files = target.files()

    @settings(max_examples=FEW.get(name, 10), suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def try_one(random):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder).resolve() / "work"
            place.mkdir()
            result = fuzz.attempt(target, fuzz.changed(random, files), place)
            assert result.kind in fuzz.WELL, result.detail
            assert sorted(p.name for p in place.parent.iterdir()) == ["outside", "work"]
        plt.close("all")

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve() / "work"
        place.mkdir()
        assert fuzz.attempt(target, files, place).kind == "accepted"
    try_one()


def test_every_kind_of_finding_is_found(tmp_path, monkeypatch):
    """With readers that fail in each way."""
    monkeypatch.setattr(fuzz, "HANG", 0.2)

    def loop(folder):
        while True:
            pass

    def leave(folder):
        raise Escape("x")

    def refuse(folder):
        raise UserError("x" * 10_000)

    readers = {
        "accepted": lambda folder: None,
        "refused": refuse,
        "crash": lambda folder: [][0],
        "hang": loop,
        "escape": leave,
    }
    for kind, read in readers.items():
        place = tmp_path / kind
        place.mkdir()
        assert fuzz.attempt(Target(dict, read), {"a/b": b"x"}, place).kind == kind
        assert (place / "a" / "b").read_bytes() == b"x"


def test_a_file_opened_elsewhere_is_an_escape(tmp_path):
    """In a process of its own: what listens to Python's file operations listens for good."""
    script = f"""
from pathlib import Path
from benchmarks.robustness import fuzz
from benchmarks.robustness.target import Target
place = Path({str(tmp_path)!r}) / "work"
place.mkdir()
for path, kind in ((place / "in", "accepted"), (place.parent / "out", "escape")):
    result = fuzz.attempt(Target(dict, lambda _: path.write_text("x")), {{}}, place, watched=True)
    assert result.kind == kind, result
read = lambda _: (place.parent / fuzz.OUTSIDE).read_text()
assert fuzz.attempt(Target(dict, read), {{}}, place, watched=True).kind == "escape"
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_same_seed_gives_the_same_files():
    files = TARGETS["folder csv"].files()
    first, second = (
        [fuzz.changed(random, files) for _ in range(20)] for random in (Random(3), Random(3))
    )
    assert first == second and any(changed != files for changed in first)


def test_the_guide_tells_how_many_kinds_of_files_are_changed():
    guide = (fuzz.ROOT / "notebooks" / "SCALE.md").read_text(encoding="utf-8")
    assert f"changes sound files of {len(TARGETS)} kinds" in guide


# Particular properties -------------------------------------------------------------------------


@given(st.text(max_size=3000))
def test_a_message_is_one_printable_line(text):
    said = str(UserError(text))
    assert said.isprintable() and len(said) <= LONGEST
    assert str(UserError(said)) == said == str(DiskError(28, text))
    if text.isprintable() and len(text) <= LONGEST:
        assert said == text


@given(st.text(max_size=300) | DEEP | st.just('"\\ud800"'))
def test_json_is_read_or_refused_with_one_kind_of_error(text):
    try:
        value = parse_json(text)
    except ValueError:
        return
    json.dumps(value, ensure_ascii=False).encode("utf-8")


@given(NAMES)
def test_no_name_in_metadata_leads_out_of_the_folder(name):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve() / "speech"
        folder.mkdir()
        for path in (folder / "a.wav", folder.parent / "x.wav"):
            path.write_bytes(recording("wav"))
        row = {"file_name": name, "text": "bon dia", "language": "ca", "split": "test"}
        (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        try:
            table = corpora.read_folder(folder, "ca", "test")
        except UserError:
            return
        assert all(Path(audio).resolve().is_relative_to(folder) for audio in table["audio"])


@given(NAMES)
def test_no_name_in_a_release_leads_out_of_its_clips(name):
    with tempfile.TemporaryDirectory() as place:
        clips = Path(place) / "common_voice" / "ca" / "clips"
        clips.mkdir(parents=True)
        table = f"client_id\tpath\tsentence\ns\t{name}\tbon dia\n"
        (clips.parent / "test.tsv").write_text(table, encoding="utf-8", newline="\n")
        corpus = corpora.open_corpus("common_voice", "ca", "test", place)
        assert {Path(audio).parent for audio in corpus.table["audio"]} <= {clips}


@given(st.lists(NAMES, max_size=5))
def test_recordings_of_a_data_set_get_plain_names_of_their_own(names):
    taken: set[str] = set()
    rows = [{"id": 1, "audio": {"bytes": b"", "path": name}} for name in names]
    found = [fleurs.file_name(row, number, taken) for number, row in enumerate(rows)]
    assert len({PurePosixPath(name).stem for name in found}) == len(found)
    for name in found:
        assert PurePosixPath(name).name == name and len(name.encode()) < 256 and "\0" not in name


@given(st.lists(TEXT.filter(lambda t: t.splitlines() == [t]), unique=True, max_size=8))
def test_a_subset_reads_back_as_it_was_written(ids):
    with tempfile.TemporaryDirectory() as folder:
        path = subsets.write_subset(pd.DataFrame({"id": ids}), Path(folder) / "s.txt")
        assert subsets.read_subset(path) == ids


@given(st.lists(st.tuples(TEXT, TEXT, st.floats(0, 1e6)), min_size=1, max_size=4))
def test_published_hypotheses_read_back_as_they_were_written(said):
    rows = [
        {"id": str(number), "reference": one, "hypothesis": other, "language": "ca", "speaker": "",
         "seconds": seconds, "tokens": 1, "capped": False}
        for number, (one, other, seconds) in enumerate(said)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        digest = publish(rows, folder, "run", "in_domain")
        evaluation = {"domain": "in_domain", "published_sha256": digest}
        assert read_published(folder, {"run_id": "run"}, evaluation) == rows
        assert hypotheses_path(folder, "run", "in_domain").is_file()
        assert not any(math.isnan(row["seconds"]) for row in rows)

"""Own recordings with every nuisance; `python -m benchmarks.robustness.nuisances` reads more."""

from __future__ import annotations

import re

import pytest

from benchmarks.robustness.brought import FAULTS, KINDS, PARTS, corpus_of, write_files
from benchmarks.robustness.nuisances import check, compare, mend, told
from distilwhisper_lib.data import splits
from distilwhisper_lib.errors import UserError

CLIPS = 60  # one of every nuisance, and some with none


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """A folder, the clips that were brought there, and what is right beside what is told."""
    folder, rows = tmp_path_factory.mktemp("brought"), corpus_of(CLIPS, seed=5)
    return folder, rows, check(rows, folder)


def test_each_recording_is_in_the_data_report_as_it_is(brought):
    *_, lines = brought
    assert [line for line in lines if not line.agrees] == []
    kinds = [*FAULTS, "as recorded", *KINDS, *PARTS]
    assert [line.nuisance for line in lines] == kinds
    assert sum(line.count for line in lines if line.nuisance in PARTS) == CLIPS - 2  # not read


@pytest.mark.parametrize(
    ("harm", "wrong"),
    [
        (lambda table: table.iloc[1:], "nothing"),
        (lambda table: table.assign(text=table["text"].str.upper()), "its text is"),
        (lambda table: table.assign(seconds=table["seconds"] / 2), r" of \d.\d\d s"),
        (lambda table: table.assign(audio=table["audio"].iloc[0]), "sounds otherwise"),
        (lambda table: table.assign(id="x" + table["id"]), "brought by nobody"),
    ],
    ids=["lost", "another text", "half as long", "another sound", "another name"],
)
def test_what_a_reader_does_without_a_word_is_found(brought, monkeypatch, harm, wrong):
    folder, rows, _ = brought
    usable = splits.take_usable

    def take(*given, **choice):
        table, dropped = usable(*given, **choice)
        return harm(table).reset_index(drop=True), dropped

    monkeypatch.setattr(splits, "take_usable", take)
    monkeypatch.chdir(folder)
    sound, said, data, report = mend([row for row in rows if row.kind not in FAULTS], folder)
    assert said == {}
    lines = compare(sound, told(sound, data, report), report)
    found = [f"{line.nuisance}: {line.told}" for line in lines if not line.agrees]
    assert re.search(wrong, " ".join(found))


def test_a_sentence_about_a_row_without_a_fault_stops_the_check(tmp_path):
    rows = corpus_of(CLIPS, seed=5)
    plain = next(row for row in rows if row.kind == "as recorded")
    plain.sheet["split"] = "nobody knows"
    write_files(rows, tmp_path)
    with pytest.raises(UserError, match="split is 'nobody knows'"):
        mend(rows, tmp_path)

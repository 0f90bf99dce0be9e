"""Published hypotheses: small, reproducible, checked."""

from __future__ import annotations

import gzip
import hashlib
import json

import pytest
from make_records import make_record

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.results.hypotheses import (
    COLUMNS,
    hypotheses_path,
    publish,
    read_published,
    same_clips,
)


def row(number=0, **changes):
    return {
        "id": f"clip{number}",
        "reference": "núria veu el gat",
        "hypothesis": "nuria veu un gat",
        "language": "ca",
        "speaker": "Maria Puig",
        "seconds": 1.5,
        "tokens": 7,
        "capped": False,
        "gates": {"encoder": [1.0], "decoder": [0.5]},
    } | changes


@pytest.fixture
def published(tmp_path):
    """A record whose in-domain rows are published, its evaluation and their file."""
    record = make_record()
    digest = publish([row(0), row(1, speaker="")], tmp_path, record["run_id"], "in_domain")
    record["evaluations"][0]["published_sha256"] = digest
    return (
        record,
        record["evaluations"][0],
        hypotheses_path(tmp_path, record["run_id"], "in_domain"),
    )


def test_rows_come_back_without_gates_and_without_names(published, tmp_path):
    record, evaluation, path = published
    first, second = read_published(tmp_path, record, evaluation)
    assert set(first) == set(COLUMNS)
    assert first["hypothesis"] == "nuria veu un gat"
    assert first["speaker"] == hashlib.sha256(b"Maria Puig").hexdigest()[:12]
    assert second["speaker"] == ""
    assert b"Maria" not in gzip.decompress(path.read_bytes())


def test_the_same_rows_give_the_same_bytes(published, tmp_path):
    _, evaluation, path = published
    before = path.read_bytes()
    digest = publish([row(0), row(1, speaker="")], tmp_path, "again", "in_domain")
    assert hypotheses_path(tmp_path, "again", "in_domain").read_bytes() == before
    assert digest == evaluation["published_sha256"]
    assert digest == hashlib.sha256(gzip.decompress(before)).hexdigest()
    assert before[:10] == b"\x1f\x8b\x08\0\0\0\0\0\x02\x03"  # whatever Python and system
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_a_file_that_says_the_same_is_kept_and_a_damaged_one_written_again(published, tmp_path):
    record, evaluation, path = published
    otherwise = gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1)
    for stands, kept in ((otherwise, True), (otherwise[:40], False)):
        path.write_bytes(stands)
        publish([row(0), row(1, speaker="")], tmp_path, record["run_id"], "in_domain")
        assert (path.read_bytes() == stands) is kept
        assert len(read_published(tmp_path, record, evaluation)) == 2


def test_a_record_without_published_hypotheses_has_none(tmp_path):
    record = make_record()
    assert read_published(tmp_path, record, record["evaluations"][0]) is None


def spoil_rows(path, text):
    content = text.encode()
    path.write_bytes(gzip.compress(content))
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.unlink(), "is missing, expected the hypotheses that record js-ca"),
        (lambda p: p.write_bytes(p.read_bytes()[:40]), "cannot be uncompressed"),
        (lambda p: p.write_bytes(b"no gzip at all"), "cannot be uncompressed"),
        (lambda p: p.write_bytes(gzip.compress(b"{}\n")), "its SHA-256 differs"),
    ],
)
def test_a_spoilt_file_is_one_sentence(published, tmp_path, spoil, message):
    record, evaluation, path = published
    spoil(path)
    with pytest.raises(UserError, match=message) as error:
        read_published(tmp_path, record, evaluation)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n", "line 1: field 'id' is missing, expected text"),
        ("[]\n", r"line 1: holds \[\], expected an object: run"),
        ("{\n", "line 1 is not JSON"),
        (
            json.dumps({**row(), "tokens": True}) + "\n",
            "field 'tokens' is True, expected a whole number",
        ),
        (json.dumps({**row(), "seconds": "1"}) + "\n", "field 'seconds' is '1', expected a number"),
    ],
)
def test_rows_of_another_shape_are_refused(published, tmp_path, text, message):
    record, evaluation, path = published
    evaluation["published_sha256"] = spoil_rows(path, text)
    with pytest.raises(UserError, match=message):
        read_published(tmp_path, record, evaluation)


def test_same_clips_compares_ids_references_and_speakers():
    rows = [row(0), row(1)]
    assert same_clips(rows, [row(0, hypothesis="x"), row(1)])
    assert not same_clips(rows, rows[:1])
    assert not same_clips(rows, [row(0), row(1, reference="altra")])

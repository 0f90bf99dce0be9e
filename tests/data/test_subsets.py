"""Which rows a run uses, and that no sentence is both learnt and tested."""

from __future__ import annotations

import hashlib
import math
import os

import pandas as pd
import pytest

from distilwhisper_lib.data.subsets import (
    Leak,
    by_id,
    by_row_number,
    check_disjoint,
    read_row_numbers,
    read_subset,
    select,
    within_window,
    write_subset,
)
from distilwhisper_lib.errors import UserError


def table(*ids: str, **columns: list) -> pd.DataFrame:
    return pd.DataFrame({"id": list(ids), "text": [f"text of {id_}" for id_ in ids]} | columns)


def test_select_takes_up_votes_then_down_votes_then_id():
    rows = table("d", "c", "b", "a", "e", up_votes=[2, 2, 2, 5, 0], down_votes=[0, 1, 0, 9, 0])
    assert select(rows, 3)["id"].tolist() == ["a", "b", "d"]
    assert select(rows, None)["id"].tolist() == ["a", "b", "d", "c", "e"]
    assert select(rows, 99)["id"].tolist() == ["a", "b", "d", "c", "e"]
    assert select(rows, 3).index.tolist() == [0, 1, 2]


def test_select_does_not_depend_on_the_order_of_the_rows():
    rows = table("d", "c", "b", "a", up_votes=[1, 1, 1, 2], down_votes=[0, 0, 0, 0])
    pd.testing.assert_frame_equal(select(rows, 2), select(rows[::-1], 2))


def test_select_without_votes_goes_by_id():
    assert select(table("b", "c", "a"), 2)["id"].tolist() == ["a", "b"]
    assert select(table("b", "a", up_votes=[3, 1]), 1)["id"].tolist() == ["b"]


@pytest.mark.parametrize("size", [0, -1, 1.5, "10", True])
def test_select_refuses_a_wrong_size(size):
    with pytest.raises(UserError, match=f"Subset size {size!r} is not a whole number"):
        select(table("a"), size)


def test_within_window_keeps_the_limit_itself():
    kept, dropped = within_window(table("a", "b", "c", seconds=[30.0, 30.01, 2.0]), 30)
    assert kept["id"].tolist() == ["a", "c"] and kept.index.tolist() == [0, 1]
    assert dropped["id"].tolist() == ["b"]
    with pytest.raises(UserError, match="max_seconds is 0"):
        within_window(table("a", seconds=[1.0]), 0)


def test_within_window_keeps_what_is_not_known_yet():
    kept, dropped = within_window(table("a", "b", seconds=[math.nan, 31.0]), 30)
    assert kept["id"].tolist() == ["a"] and dropped["id"].tolist() == ["b"]


def test_clips_by_id_come_in_the_order_asked_for():
    rows = table("a", "b", "c")
    assert by_id(rows, ["c", "a"])["id"].tolist() == ["c", "a"]
    assert by_id(rows, ["c", "a"]).index.tolist() == [0, 1]
    with pytest.raises(UserError, match="2 of 3 clips of the subset are not .* first is 'x'"):
        by_id(rows, ["a", "x", "y"])


@pytest.mark.parametrize("text", ["2\n0\n", "[2, 0]", "2 0", "(2,0)\r\n"])
def test_the_authors_row_numbers_become_clips(tmp_path, text):
    (tmp_path / "rows.txt").write_text(text)
    numbers = read_row_numbers(tmp_path / "rows.txt")
    assert numbers == [2, 0]
    old_order = ["ca_train_0/clip9.mp3", "ca_train_0/clip7.mp3", "ca_train_0/clip8.mp3"]
    chosen = by_row_number(table("clip7", "clip8", "clip9", "clip10"), numbers, old_order)
    assert chosen["id"].tolist() == ["clip8", "clip9"]


def test_row_numbers_that_cannot_be_right(tmp_path):
    path = tmp_path / "rows.txt"
    with pytest.raises(UserError, match=r"rows\.txt does not exist"):
        read_row_numbers(path)
    for text, message in (
        ("1\n-2", "holds '-2'"),
        ("1.5", "holds '1.5'"),
        ("clip1", "holds 'clip1'"),
        ("3 4 3", "holds 3 twice"),
        ("", "holds no number"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_row_numbers(path)
    rows = table("a", "b")
    with pytest.raises(UserError, match="Row 2 is beyond the 2 rows of the old order"):
        by_row_number(rows, [0, 2], ["a", "b"])
    with pytest.raises(UserError, match="1 of 1 clips of the subset are not in the corpus"):
        by_row_number(rows, [1], ["a", "z"])


def test_check_disjoint_finds_sentences_behind_case_and_punctuation():
    train = table("1", "2", text=["L’avi diu: «Sí!»", "bon dia"])
    test = table("3", "4", text=["l'avi diu sí", "bona nit"])
    assert check_disjoint({"train": train, "test": test}) == [
        Leak("text", "l'avi diu sí", ("test", "train"))
    ]


def test_check_disjoint_finds_ids_and_all_splits():
    splits = {"train": table("a", "b"), "validation": table("b"), "test": table("b", "c")}
    assert check_disjoint(splits) == [
        Leak("id", "b", ("test", "train", "validation")),
        Leak("text", "text of b", ("test", "train", "validation")),
    ]


def test_check_disjoint_is_empty_when_all_is_well():
    repeated = table("a", "b", text=["bon dia", "bon dia"])  # within a split: no leak
    assert check_disjoint({"train": repeated, "test": table("c")}) == []
    # Accents are letters: not the same sentence.
    assert check_disjoint({"x": table("1", text=["sí"]), "y": table("2", text=["si"])}) == []


def test_a_subset_is_written_and_read(tmp_path):
    path = write_subset(table("z", "à b", "clip-1.mp3"), tmp_path / "new" / "ca.txt")
    assert path == tmp_path / "new" / "ca.txt"
    body = "z\nà b\nclip-1.mp3\n"
    digest = hashlib.sha256(body.encode()).hexdigest()
    assert path.read_text(encoding="utf-8") == f"# sha256 {digest}\n{body}"
    assert read_subset(str(path)) == ["z", "à b", "clip-1.mp3"]
    assert write_subset(table(), path) and read_subset(path) == []
    assert os.listdir(path.parent) == ["ca.txt"]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = write_subset(table("old"), tmp_path / "ca.txt")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_subset(table("new"), path)
    assert read_subset(path) == ["old"] and os.listdir(tmp_path) == ["ca.txt"]


@pytest.mark.parametrize("bad", [["a", "a"], ["a\nb"], ["a\rb"], [""]])
def test_ids_that_do_not_fit_a_line_are_refused_before_writing(tmp_path, bad):
    with pytest.raises(UserError, match="The id .* (cannot stand|stands twice)"):
        write_subset(table(*bad), tmp_path / "ca.txt")
    assert not list(tmp_path.iterdir())


def test_a_missing_or_altered_subset_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.txt does not exist"):
        read_subset(tmp_path / "none.txt")
    path = write_subset(table("a", "b"), tmp_path / "ca.txt")
    path.write_text(path.read_text().replace("b\n", "c\n"))
    with pytest.raises(UserError, match=r"ca\.txt does not match the SHA-256"):
        read_subset(path)

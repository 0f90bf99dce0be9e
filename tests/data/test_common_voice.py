"""A release as Mozilla ships it becomes a table; what cannot be used is named with its reason."""

from __future__ import annotations

import json
import math
import shutil
import time

import pytest
from stand_ins import (
    COLUMNS_13,
    HOSTILE_DROPPED,
    HOSTILE_KEPT,
    clip,
    encoded,
    hostile_release,
    release,
    three_tables,
    tsv,
    write_clip,
)

from distilwhisper_lib import resolve
from distilwhisper_lib.data import inspection
from distilwhisper_lib.data.clips import COLUMNS, TOO_LONG, VOTES
from distilwhisper_lib.data.common_voice import MEMORY, find_release, open_common_voice
from distilwhisper_lib.data.corpora import load_corpus, open_corpus
from distilwhisper_lib.data.splits import LabelLimit, load_data
from distilwhisper_lib.data.subsets import take_usable
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.speech import audio


@pytest.fixture
def place(tmp_path):
    """Where a Catalan release belongs."""
    return tmp_path / "common_voice" / "ca"


def read(data_dir, split="train", name="common_voice"):
    return open_corpus(name, "ca", split, data_dir)


def test_a_release_becomes_a_table(tmp_path, place):
    release(place, three_tables())
    corpus = read(tmp_path)
    assert list(corpus.table.columns) == COLUMNS + VOTES
    first = corpus.table.iloc[0]
    assert first["id"] == "common_voice_ca_train000"
    assert first["audio"] == str(place / "clips" / "common_voice_ca_train000.mp3")
    assert first["speaker"] == "voice-train-0"
    assert (first["language"], first["split"]) == ("ca", "train")
    assert math.isnan(first["seconds"]) and math.isnan(first["start"])
    assert (first["up_votes"], first["down_votes"]) == (2, 0)
    assert corpus.about["licence"] == "CC0-1.0"
    assert read(tmp_path, "validation").table["id"].str.contains("dev").all()
    table = load_corpus("common_voice", "Catalan", "test", tmp_path)
    assert table["seconds"].tolist() == pytest.approx([1.0, 1.1, 1.2], abs=0.01)


def test_the_hostile_release_loses_what_is_broken_and_nothing_else(tmp_path, place, processor):
    hostile_release(place)
    corpus = read(tmp_path)
    labels = LabelLimit(448, lambda: processor.tokenizer)
    table, dropped = take_usable(corpus, None, 30.0, labels.over)
    assert dict(zip(table["id"], table["text"], strict=True)) == HOSTILE_KEPT
    assert {d.id: d.reason for d in dropped} == HOSTILE_DROPPED
    assert len(dropped) == len(HOSTILE_DROPPED)
    assert str(tmp_path) not in json.dumps(dropped)
    details = {d.id: d.detail for d in dropped}
    assert details["common_voice_ca_31s"] == "31.00 s"
    assert details["common_voice_ca_silent"] == "train.tsv, line 9"
    assert details["common_voice_ca_width"] == r"train.tsv, line 10: '\u200b'"
    assert details["common_voice_ca_dots"] == "train.tsv, line 11: '...'"
    assert details["common_voice_ca_label"].endswith("tokens, at most 448")


def test_a_run_reads_the_hostile_release(tmp_path, place):
    hostile_release(place)
    settings = {"in_domain": "common_voice", "out_of_domain": "common_voice", "max_seconds": 30}
    data = load_data(resolve("clsr", "demo", "ca", 1, settings | {"data_dir": str(tmp_path)}))
    assert set(data.train["id"]) == set(HOSTILE_KEPT)
    assert {d.id: d.reason for d in data.dropped["train"]} == HOSTILE_DROPPED
    assert data.dropped["in_domain"] == []


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("common_voice/ca", "common_voice"),
        ("common_voice/ca/ca", "common_voice"),
        ("common_voice/cv-corpus-13.0-2023-03-09/ca", "common_voice"),
        ("common_voice/ca/cv-corpus-13.0-2023-03-09/ca", "common_voice"),
        ("cv-corpus-13.0-2023-03-09/ca", "common_voice"),
        ("common_voice/cv-corpus-13.0-2023-03-09/ca", "common_voice/cv-corpus-13.0-2023-03-09"),
        ("common_voice/mine/ca", "common_voice/mine"),
    ],
)
def test_a_release_is_found_where_people_unpack_it(tmp_path, where, name):
    release(tmp_path / where, three_tables())
    corpus = read(tmp_path, name=name)
    assert len(corpus.table) == 3
    known = "cv-corpus-13.0-2023-03-09" in where
    assert corpus.about["release"] == ("cv-corpus-13.0-2023-03-09" if known else "not named")


def test_a_delta_release_beside_the_whole_one_does_not_count(tmp_path):
    whole = tmp_path / "common_voice" / "cv-corpus-13.0-2023-03-09" / "ca"
    release(whole, three_tables())
    delta = tmp_path / "common_voice" / "cv-corpus-13.0-delta-2023-03-09" / "ca"
    release(delta, {"validated.tsv": [clip("validated", 0)]})
    assert find_release(tmp_path, "ca") == whole
    assert len(read(tmp_path).table) == 3
    shutil.rmtree(whole)  # alone, it is what there is
    assert find_release(tmp_path, "ca") == delta


@pytest.mark.parametrize(
    ("folder", "language", "code"),
    [("sv", "Swedish", "sv"), ("sv-SE", "sv", "sv"), ("nb-NO", "norwegian", "no"),
     ("jv", "javanese", "jw"), ("fil", "tagalog", "tl"), ("ga-IE", "ga", "ga")],
)  # fmt: skip
def test_the_release_s_folder_decides_what_a_language_is_called(tmp_path, folder, language, code):
    release(tmp_path / "common_voice" / "cv-corpus-13.0" / folder, three_tables())
    release(tmp_path / "common_voice" / "cv-corpus-13.0" / "nn-NO", three_tables())
    for name in ("common_voice", f"common_voice/{folder}", f"common_voice/cv-corpus-13.0/{folder}"):
        table = open_corpus(name, language, "train", tmp_path).table
        assert len(table) == 3 and set(table["language"]) == {code}


def test_of_the_three_chinese_locales_one_is_named(tmp_path):
    version = tmp_path / "common_voice" / "cv-corpus-13.0"
    for clips, locale in enumerate(("zh-CN", "zh-HK", "zh-TW"), start=2):
        release(version / locale, three_tables(clips))
    several = r"several releases .*/zh-CN, .*/zh-HK, .*zh-TW: name one, as in 'common_voice/zh-TW'"
    with pytest.raises(UserError, match=several):
        open_corpus("common_voice", "zh-TW", "train", tmp_path)
    for name, clips in (
        ("common_voice/zh-CN", 2), ("common_voice/zh-HK", 3), ("common_voice/zh-TW", 4),
        ("common_voice/cv-corpus-13.0/zh-TW", 4),
    ):  # fmt: skip
        table = open_corpus(name, "zh", "train", tmp_path).table
        assert len(table) == clips and set(table["language"]) == {"zh"}
    for name in ("common_voice/zh-SG", "common_voice/cv-corpus-13.0/zh-SG"):
        with pytest.raises(UserError, match="Common Voice for 'zh-SG' in"):
            open_corpus(name, "zh", "train", tmp_path)


def test_no_release_and_two_releases(tmp_path):
    with pytest.raises(UserError, match=r"no Common Voice for 'ca' .*mozilladatacollective.*Octob"):
        read(tmp_path)
    for version in ("12.0", "13.0"):
        release(tmp_path / "common_voice" / f"cv-corpus-{version}" / "ca", three_tables())
    with pytest.raises(UserError, match=r"several releases .*cv-corpus-12.0/ca, common_voice/cv-"):
        read(tmp_path)
    assert find_release(tmp_path, "ca", "cv-corpus-12.0").parts[-2:] == ("cv-corpus-12.0", "ca")
    with pytest.raises(UserError, match="no release cv-corpus-9 of Common Voice"):
        read(tmp_path, name="common_voice/cv-corpus-9")
    for bad in ("..", "/etc", "a/b", "../x"):
        with pytest.raises(UserError, match="is not the name of a folder"):
            read(tmp_path, name=f"common_voice/{bad}")


def test_other_versions_have_other_columns(tmp_path, place):
    rows = three_tables()
    rows["train.tsv"][0]["path"] = "common_voice_ca_train000"  # early releases: no suffix
    write = release(place, rows, ["path", "sentence"])
    shutil.move(
        write / "clips" / "common_voice_ca_train000",
        write / "clips" / "common_voice_ca_train000.mp3",
    )
    table = read(tmp_path).table
    assert list(table.columns) == COLUMNS
    assert table["id"][0] == "common_voice_ca_train000"
    assert set(table["speaker"]) == {""}
    newer = ["client_id", "path", "sentence_id", "sentence", "sentence_domain", *COLUMNS_13[3:]]
    rows = [clip("train", 0), clip("train", 1, path="ca/clips/common_voice_ca_train001.mp3")]
    text = "\ufeff" + tsv(rows, newer).replace("\n", "\r\n")
    (place / "train.tsv").write_text(text, encoding="utf-8", newline="")
    table = read(tmp_path).table
    assert table["id"].tolist() == ["common_voice_ca_train000", "common_voice_ca_train001"]
    assert table["text"].tolist() == ["frase a de train 0", "frase b de train 1"]


def test_lines_that_an_editor_has_cut_are_rows(tmp_path, place):
    release(place, three_tables())
    path = place / "train.tsv"
    path.write_text("\n".join(line.rstrip("\t") for line in path.read_text().split("\n")) + "\n\n")
    assert len(read(tmp_path).table) == 3


def test_durations_spare_long_clips_from_being_opened(tmp_path, place, monkeypatch):
    release(place, three_tables(4))
    names = [f"common_voice_ca_train00{i}.mp3" for i in range(4)]
    lines = [f"{names[0]}\t900", f"{names[1]}\t31000", f"{names[2]}\tunknown"]
    (place / "clip_durations.tsv").write_text("clip\tduration[ms]\n" + "\n".join(lines) + "\n")
    opened = []
    check = inspection.inspect_clip
    monkeypatch.setattr(
        inspection,
        "inspect_clip",
        lambda path, *more: opened.append(path.name) or check(path, *more),
    )
    table, dropped = take_usable(read(tmp_path), None, 30.0)
    assert table["seconds"].tolist() == pytest.approx([0.9, 1.2, 1.3], abs=0.01)
    assert [d.id for d in dropped] == [names[1][:-4]]
    assert names[1] not in opened


def test_a_wrong_duration_does_not_hide_a_long_clip(tmp_path, place):
    release(place, three_tables(2))
    write_clip(place, "common_voice_ca_train000.mp3", encoded(3.0, 9))
    (place / "clip_durations.tsv").write_text(
        "clip\tduration[ms]\ncommon_voice_ca_train000.mp3\t1000\n"
    )
    table, dropped = take_usable(read(tmp_path), None, 2.0)
    assert table["id"].tolist() == ["common_voice_ca_train001"]
    assert [(d.id, d.detail) for d in dropped] == [("common_voice_ca_train000", "3.00 s")]


def test_only_as_many_clips_are_opened_as_a_subset_needs(tmp_path, place):
    rows = [clip("train", i, up_votes=i) for i in range(10)]
    release(place, three_tables() | {"train.tsv": rows})
    write_clip(place, "common_voice_ca_train009.mp3", b"")
    write_clip(place, "common_voice_ca_train001.mp3", b"")
    table, dropped = take_usable(read(tmp_path), 3, 30.0)
    assert table["id"].str[-1].tolist() == ["8", "7", "6"]
    assert [d.id[-1] for d in dropped] == ["9"]
    memory = json.loads((place / MEMORY).read_text())
    assert sorted(key.split("/")[0][-5] for key in memory) == ["6", "7", "8", "9"]


def test_a_clip_is_decoded_once_until_it_changes(tmp_path, place, monkeypatch):
    release(place, three_tables(2))
    decoded = []
    check = inspection.listen
    monkeypatch.setattr(
        inspection,
        "listen",
        lambda path, far: decoded.append(path.name) or check(path, far),
    )
    first = take_usable(read(tmp_path), None, 30.0)[0]
    assert len(decoded) == 2
    again = take_usable(read(tmp_path), None, 30.0)[0]
    assert len(decoded) == 2
    assert again.equals(first)
    write_clip(place, "common_voice_ca_train000.mp3", encoded(2.0, 5))
    table = take_usable(read(tmp_path), None, 30.0)[0]
    assert len(decoded) == 3 and table["seconds"][0] == pytest.approx(2.0, abs=0.01)
    (place / "clips" / "common_voice_ca_train001.mp3").unlink()
    assert len(take_usable(read(tmp_path), None, 30.0)[0]) == 1
    write_clip(place, "common_voice_ca_train001.mp3", encoded(1.0, 6))
    assert len(take_usable(read(tmp_path), None, 30.0)[0]) == 2


def test_what_could_not_be_read_is_tried_again(tmp_path, place, monkeypatch):
    release(place, three_tables())

    def lost(path, far):
        raise UserError(f"{path} cannot be read (its decoder ended with status 1): leave it out")

    with monkeypatch.context() as short_of_memory:
        short_of_memory.setattr(inspection, "listen", lost)
        assert len(take_usable(read(tmp_path), None, 30.0)[1]) == 3
    assert len(take_usable(read(tmp_path), None, 30.0)[0]) == 3


@pytest.mark.parametrize("memory", ["", "{", "[]", '{"a": 1}', '{"a": ["x", null, ""]}'])
def test_a_spoilt_memory_is_made_anew(tmp_path, place, memory):
    release(place, three_tables())
    (place / MEMORY).write_text(memory)
    assert len(take_usable(read(tmp_path), None, 30.0)[0]) == 3
    assert len(json.loads((place / MEMORY).read_text())) == 3


def test_a_read_only_release_can_be_read(tmp_path, place, monkeypatch):
    release(place, three_tables())

    def refuse(*_):
        raise PermissionError("read-only file system")

    monkeypatch.setattr(inspection, "write_atomic", refuse)
    assert len(take_usable(read(tmp_path), None, 30.0)[0]) == 3
    assert not (place / MEMORY).exists()


def test_a_release_that_was_half_unpacked_is_refused(tmp_path, place):
    rows = [clip("train", i) for i in range(60)]
    (place / "clips").mkdir(parents=True)
    (place / "train.tsv").write_text(tsv(rows))
    for row in rows[:40]:
        write_clip(place, row["path"], encoded(0.1, 0))
    kept, dropped = take_usable(read(tmp_path), None, 30.0)
    assert (len(kept), len(dropped)) == (40, 20)
    (place / "clips" / rows[0]["path"]).unlink()
    with pytest.raises(UserError, match=r"'common_voice' is broken: 21 of 60 .*21 .*missing file"):
        take_usable(read(tmp_path), None, 30.0)
    assert len(take_usable(read(tmp_path), 30, 30.0)[0]) == 30  # these are there


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "dev.tsv").unlink(), r"dev\.tsv does not exist: unpack the whole release"),
        (lambda f: shutil.rmtree(f / "clips"), r"clips does not exist"),
        (lambda f: (f / "dev.tsv").write_bytes(b""), "no column 'path' but nothing"),
        (lambda f: (f / "dev.tsv").write_text("path\ttext\n"), "no column 'sentence' but path"),
        (lambda f: (f / "dev.tsv").write_bytes(b"path\tsentence\nx\t\xff\n"), "is not UTF-8"),
    ],
)
def test_a_table_that_is_none(tmp_path, place, spoil, message):
    release(place, three_tables())
    spoil(place)
    with pytest.raises(UserError, match=message):
        read(tmp_path, "validation")


def test_unknown_split_and_language(tmp_path, place):
    release(place, three_tables())
    with pytest.raises(UserError, match="no split 'dev': choose from train, validation, test, val"):
        read(tmp_path, "dev")
    with pytest.raises(UserError, match="no Common Voice for 'cs'"):
        open_common_voice("", "Czech", "train", str(tmp_path))
    shutil.copy(place / "train.tsv", place / "validated.tsv")
    assert len(read(tmp_path, "validated").table) == 3


def test_bad_rows_of_a_large_table_do_not_spoil_a_small_subset(tmp_path, place):
    release(place, three_tables(5))
    rows = [clip("train", i) for i in range(5)]
    rows += [clip("x", i, " ") for i in range(30)] + [clip("y", i) for i in range(200)]
    (place / "train.tsv").write_text(tsv(rows))
    table, dropped = take_usable(read(tmp_path), 5, 30.0)
    assert (len(table), len(dropped)) == (5, 30)
    (place / "train.tsv").write_text(tsv(rows[:40]))
    with pytest.raises(UserError, match="30 of 40 clips cannot be used, 30 of them for empty text"):
        take_usable(read(tmp_path), 5, 30.0)


def test_ids_are_unique_and_links_in_circles_are_missing_files(tmp_path, place):
    rows = [clip("train", 0), clip("train", 0, path="common_voice_ca_train000.wav")]
    rows += [clip("x", 0, path="common_voice_ca_loop.mp3")]
    release(place, three_tables() | {"train.tsv": rows})
    loop = place / "clips" / "common_voice_ca_loop.mp3"
    loop.unlink()
    loop.symlink_to(loop)
    table, dropped = take_usable(read(tmp_path), None, 30.0)
    assert table["id"].tolist() == ["common_voice_ca_train000"]
    assert [(d.id[-4:], d.reason) for d in dropped] == [
        ("n000", "named twice"), ("loop", "missing file"),
    ]  # fmt: skip


def test_large_tables_are_read_quickly(tmp_path, place):
    (place / "clips").mkdir(parents=True)
    lines = (f"v{i % 999}\tclip{i}.mp3\tfrase {i}\t2\t0" for i in range(50_000))
    header = "client_id\tpath\tsentence\tup_votes\tdown_votes\n"
    (place / "train.tsv").write_text(header + "\n".join(lines) + "\n")
    before = time.process_time()
    assert len(read(tmp_path).table) == 50_000
    assert time.process_time() - before < 5  # measured: 0.7


def test_a_hostile_row_costs_itself_and_no_more(tmp_path, place):
    long, digits = "common_voice_ca_" + "a" * 300, "9" * 5000
    rows = [clip("train", i) for i in range(3)]
    release(place, three_tables() | {"train.tsv": rows})
    rows[1]["up_votes"] = digits
    rows += [clip("x", 0, path=f"{long}.mp3"), clip("x", 1, path="common_voice_ca_x1.raw")]
    (place / "train.tsv").write_text(tsv(rows))
    write_clip(place, "common_voice_ca_x1.raw", b"\0" * 3200)
    (place / "clip_durations.tsv").write_text(
        f"clip\tduration[ms]\n{rows[0]['path']}\t{digits}\n{rows[2]['path']}\t1200\n"
    )
    table, dropped = take_usable(read(tmp_path), None, 30.0)
    assert table["id"].tolist() == ["common_voice_ca_train000", "common_voice_ca_train002"]
    assert {d.id: d.reason for d in dropped} == {
        "common_voice_ca_train001": "malformed row",
        long: "missing file",
        "common_voice_ca_x1": "unreadable audio",
    }
    assert max(len(d.detail) for d in dropped) < 400


def test_a_clip_far_beyond_the_window_is_not_decoded(tmp_path, place, monkeypatch):
    release(place, three_tables(2))
    write_clip(place, "common_voice_ca_train000.mp3", encoded(61.0, 0, "WAV"))
    decoded, decode = [], audio.decode_blocks
    # Here rather than in a child, where it cannot be seen.
    monkeypatch.setattr(inspection, "listen", audio.listen)
    monkeypatch.setattr(
        audio,
        "decode_blocks",
        lambda path, *rest: decoded.append(path.name) or decode(path, *rest),
    )
    table, dropped = take_usable(read(tmp_path), None, 30.0)
    assert [(d.id[-3:], d.reason, d.detail) for d in dropped] == [("000", TOO_LONG, "61.00 s")]
    assert decoded == ["common_voice_ca_train001.mp3"] and len(table) == 1

"""A folder of recordings becomes a checked table; every mistake in it is named with its line."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from distilwhisper_lib.config.settings import locate, resolve
from distilwhisper_lib.data import own_folder
from distilwhisper_lib.data.checklist import clips_table
from distilwhisper_lib.data.clips import SILENT, WHERE
from distilwhisper_lib.data.corpora import (
    COLUMNS,
    corpus_hash,
    load_corpus,
    open_corpus,
    read_folder,
)
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.data.subsets import take_usable
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.scoring.rates import score


def row(name: str, text: str = "bon dia", **others: object) -> dict[str, object]:
    return {"file_name": name, "text": text, "language": "ca", "split": "train", **others}


def write_wav(path: Path, seconds: float = 1.0, level: float = 0.1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(int(seconds * 16_000), level), 16_000)


def write_csv(folder: Path, rows: list[dict]) -> Path:
    """metadata.csv with the columns of the first row, and the files that the rows name."""
    folder.mkdir(exist_ok=True)
    for fields in rows:
        if not (folder / str(fields.get("file_name"))).exists():
            write_wav(folder / str(fields.get("file_name")))
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def write_text(folder: Path, text: str | bytes, name: str = "metadata.csv") -> Path:
    write_wav(folder / "a.wav")
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_columns_and_defaults(tmp_path):
    write_wav(tmp_path / "own" / "clips" / "b.wav", seconds=2.5)
    table = read_folder(
        write_csv(tmp_path / "own", [row("a.wav"), row("clips/b.wav")]), "ca", "train"
    )
    assert list(table.columns) == [*COLUMNS, WHERE]
    assert table[WHERE].tolist() == ["metadata.csv, line 2", "metadata.csv, line 3"]
    assert table["id"].tolist() == ["a", "b"]
    assert table["audio"].tolist() == [str(tmp_path / "own" / n) for n in ("a.wav", "clips/b.wav")]
    assert table["seconds"].tolist() == [1.0, 2.5]
    assert table["start"].isna().all() and table["end"].isna().all()
    assert table["speaker"].tolist() == ["", ""]
    assert set(table["language"]) == {"ca"} and set(table["split"]) == {"train"}


def test_only_the_language_and_split_asked_for(tmp_path):
    rows = [
        row("a.wav"),
        row("b.wav", language="Valencian"),
        row("c.wav", language="czech"),
        row("d.wav", split="test"),
    ]
    folder = write_csv(tmp_path / "own", rows)
    assert read_folder(folder, "Catalan", "train")["id"].tolist() == ["a", "b"]
    assert read_folder(folder, "cs", "train")["id"].tolist() == ["c"]
    assert read_folder(str(folder), "ca", "test")["id"].tolist() == ["d"]
    with pytest.raises(UserError, match=r"rows of language 'gl': it holds ca test \(1\), ca train"):
        read_folder(folder, "gl", "train")


@pytest.mark.parametrize("text", ["null", "NA", "nan", "None", "1.50", "007", "TRUE", 'diu "hola"'])
def test_csv_text_stays_text(tmp_path, text):
    rows = [row("a.wav", text, id="NA", speaker="null"), row("b.wav", "x, y\nz", id="2")]
    table = read_folder(write_csv(tmp_path / "own", rows), "ca", "train")
    assert table["text"].tolist() == [text, "x, y\nz"]
    assert table["id"].tolist() == ["NA", "2"]
    assert table["speaker"].tolist() == ["null", ""]


def test_csv_with_a_byte_order_mark_and_blank_lines(tmp_path):
    text = "\ufefffile_name,transcription,language,split\r\n\r\na.wav,bon dia,ca,train\r\n"
    table = read_folder(write_text(tmp_path, text), "ca", "train")
    assert table["text"].tolist() == ["bon dia"]


def test_jsonl_gives_the_same_table(tmp_path):
    rows = [
        row("a.wav", "null", id="1", start=0.0, end=0.5, up_votes=3, down_votes=0),
        row("a.wav", "així", id="2", start=0.5, end=1.0, up_votes=2, down_votes=1),
    ]
    from_csv = read_folder(write_csv(tmp_path / "own", rows), "ca", "train")
    (tmp_path / "own" / "metadata.csv").unlink()
    rows[0]["speaker"] = None
    lines = "".join(json.dumps(fields) + "\n" for fields in rows)
    from_jsonl = read_folder(write_text(tmp_path / "own", lines, "metadata.jsonl"), "ca", "train")
    pd.testing.assert_frame_equal(from_csv.drop(columns=WHERE), from_jsonl.drop(columns=WHERE))
    assert from_csv["up_votes"].tolist() == [3, 2] and from_csv["down_votes"].tolist() == [0, 1]


def test_segments_and_their_seconds(tmp_path):
    write_wav(tmp_path / "own" / "long.wav", seconds=10)
    segments = [(0, 1.5, ""), (1.5, "", ""), ("", 2, ""), (3, 4, 0.9)]
    rows = [
        row("long.wav", id=f"s{i}", start=start, end=end, seconds=seconds)
        for i, (start, end, seconds) in enumerate(segments)
    ]
    table = read_folder(write_csv(tmp_path / "own", rows), "ca", "train")
    assert table["seconds"].tolist() == [1.5, 8.5, 2.0, 0.9]
    assert table["start"].tolist()[:2] == [0, 1.5] and math.isnan(table["start"][2])
    assert table["end"].tolist()[2:] == [2, 4] and math.isnan(table["end"][1])


def test_a_silent_segment_is_left_out_with_its_place(tmp_path):
    rng, rate = np.random.default_rng(0), 16_000
    parts = [0.1 * rng.standard_normal(2 * rate), np.zeros(2 * rate)] * 2
    folder = tmp_path / "own"
    folder.mkdir()
    soundfile.write(folder / "long.wav", np.concatenate(parts), rate)
    spans = [(0, 2), (2, 4), (1.5, 4), (4.5, 6), (6.05, 7.5)]
    rows = [row("long.wav", id=f"{a}-{b}", start=a, end=b) for a, b in spans]
    write_csv(folder, rows)
    corpus = open_corpus("folder/own", "ca", "train", tmp_path)
    kept, dropped = take_usable(corpus, None, 30.0)
    assert kept["id"].tolist() == ["0-2", "1.5-4", "4.5-6"]
    assert [(d.id, d.reason) for d in dropped] == [("2-4", SILENT), ("6.05-7.5", SILENT)]
    assert dropped[0].detail == "metadata.csv, line 3: 2.00 to 4.00 s"


def test_given_seconds_spare_the_headers(tmp_path, monkeypatch):
    monkeypatch.setattr(own_folder, "audio_seconds", lambda path: pytest.fail("header read"))
    table = read_folder(write_csv(tmp_path / "own", [row("a.wav", seconds=7.25)]), "ca", "train")
    assert table["seconds"].tolist() == [7.25]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"text": "  "}, "the text is empty; write"),
        ({"text": " \u200b..."}, r"the text is empty \('\\u200b...' says nothing\); write"),
        ({"language": "klingon"}, "the language is 'klingon'; write its code"),
        ({"id": "a"}, "the id 'a' stands on line 2 already"),
        ({"id": "x\ny"}, r"the id 'x\\ny' must be one line"),
        ({"id": "# x"}, "the id '# x' must be one line"),
        ({"start": "0", "end": "9"}, "Segment 0 to 9 s is not inside"),
        ({"start": "half"}, "start is 'half'; write seconds"),
        ({"end": "inf"}, "end is 'inf'; write seconds"),
        ({"seconds": "0"}, "seconds is 0; it must be above 0"),
        ({"seconds": "nan"}, "seconds is 'nan'; write seconds"),
        ({"up_votes": "-1"}, "up_votes is '-1'; write a whole number"),
        ({"file_name": ""}, "file_name is ''"),
        ({"file_name": "b\0.wav"}, r"file_name is 'b\\x00.wav'"),
        ({"file_name": "gone.wav"}, r"gone\.wav does not exist"),
        ({"file_name": "../out.wav"}, r"'\.\./out\.wav' leaves the folder"),
        ({"file_name": "link.wav"}, r"'link\.wav' leaves the folder"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path, bad, message):
    write_wav(tmp_path / "out.wav")
    write_wav(tmp_path / "own" / "b.wav")
    (tmp_path / "own" / "link.wav").symlink_to(tmp_path / "out.wav")
    extra = dict.fromkeys(("start", "end", "seconds", "up_votes"), "")
    good = row("a.wav", id="a", **extra)
    folder = write_csv(tmp_path / "own", [good])
    with (folder / "metadata.csv").open("a", encoding="utf-8", newline="") as file:
        csv.DictWriter(file, fieldnames=list(good)).writerow(row("b.wav", id="b", **extra) | bad)
    with pytest.raises(UserError, match=rf"metadata\.csv, line \d: .*{message}"):
        read_folder(folder, "ca", "train")


def test_an_absolute_path_leaves_the_folder(tmp_path):
    write_wav(tmp_path / "out.wav")
    folder = write_csv(tmp_path / "own", [row("a.wav"), row(str(tmp_path / "out.wav"))])
    with pytest.raises(
        UserError, match=r"line 3: file_name is '.*', a place on somebody's computer"
    ):
        read_folder(folder, "ca", "train")


def test_a_recording_that_no_row_names_is_refused(tmp_path):
    folder = write_csv(tmp_path / "own", [row("a.wav"), row("clips/b.wav")])
    write_wav(folder / "clips" / "extra.FLAC.wav")
    with pytest.raises(
        UserError, match=r"clips/extra\.FLAC\.wav: no row of metadata\.csv names it; add one"
    ):
        read_folder(folder, "ca", "train")
    (folder / "c.opus").write_bytes(b"")
    with pytest.raises(UserError, match=r"c\.opus: no row .*extra\.FLAC\.wav: no row"):
        read_folder(folder, "ca", "train")


def test_what_is_no_recording_of_the_corpus_may_lie_in_its_folder(tmp_path):
    folder = write_csv(tmp_path / "own", [row("./a.wav"), row("clips//b.wav")])
    (folder / "notes.txt").write_text("x")
    (folder / "._a.wav").write_bytes(b"x")
    (folder / ".cache").mkdir()
    write_wav(folder / ".cache" / "x.wav")
    write_csv(folder / "another", [row("c.wav")])  # a corpus of its own
    assert read_folder(folder, "ca", "train")["id"].tolist() == ["a", "b"]


@pytest.mark.parametrize("segment", [{}, {"start": "0", "end": "0.5"}])
def test_a_recording_that_two_rows_name_is_refused(tmp_path, segment):
    rows = [row("a.wav", id="1", **segment), row("./a.wav", id="2", split="test", **segment)]
    folder = write_csv(tmp_path / "own", rows)
    with pytest.raises(UserError, match=r"line 3: '\./a\.wav' is named on line 2 already"):
        read_folder(folder, "ca", "train")


def test_a_row_that_stands_twice_is_told_at_once_and_not_asked_for_an_id(tmp_path):
    rows = [row("a.wav"), row("b.wav"), row("a.wav"), row("b.wav", split="test")]
    with pytest.raises(UserError) as error:
        read_folder(write_csv(tmp_path / "own", rows), "ca", "train")
    assert [
        f"line {n}: '{name}.wav' is named on line {n - 2} already; drop one" in str(error.value)
        for n, name in ((4, "a"), (5, "b"))
    ] == [True, True]


def test_a_number_that_is_none_is_told_with_its_line_in_any_split(tmp_path):
    rows = [row("a.wav"), row("b.wav", split="test", start="soon")]
    rows = [{"start": "", **fields} for fields in rows]
    with pytest.raises(UserError, match=r"metadata\.csv, line 3: start is 'soon'; write seconds"):
        read_folder(write_csv(tmp_path / "own", rows), "ca", "train")


def test_a_folder_says_whose_it_is(tmp_path):
    folder = write_csv(tmp_path / "speech", [row("a.wav")])
    assert open_corpus("folder/speech", "ca", "train", tmp_path).about == {
        "name": "folder/speech",
        "licence": "not stated",
        "source": "own recordings in speech",
    }
    (folder / "LICENSE").write_text("\n  CC BY-SA 4.0  \nmore\n")
    assert open_corpus("folder/speech", "ca", "train", tmp_path).about["licence"] == "CC BY-SA 4.0"
    assert open_corpus("folder/speech", "ca", "test", "embedded").about["licence"] == "MIT"


def test_segments_without_ids_are_asked_for_them(tmp_path):
    rows = [row("a.wav", start=0, end=0.5), row("a.wav", start=0.5, end=1)]
    with pytest.raises(UserError, match="the id 'a' stands on line 2 already; give every row its"):
        read_folder(write_csv(tmp_path / "own", rows), "ca", "train")


def test_unreadable_and_empty_audio(tmp_path):
    folder = write_csv(tmp_path / "own", [row("a.wav")])
    for content, message in ((b"\x01\x02" * 99, "cannot be read"), (b"", r"is empty \(0 bytes\)")):
        (folder / "a.wav").write_bytes(content)
        with pytest.raises(UserError, match=rf"a\.wav {message}"):
            read_folder(folder, "ca", "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        ("file_name,text,language,split\n", "holds no rows"),
        ("file_name,text\na.wav,hola\n", "first line: no column language, split, but file_name"),
        ("path,sentence\na.wav,hola\n", "no column file_name, text, language, split, but path"),
        ("file_name,text,text,split\na.wav,x,y,train\n", "the column 'text' twice"),
        ("file_name,text,transcription,language,split\na.wav,x,y,ca,train\n", "both columns"),
        ("file_name,text,language,split\na.wav,hola, món,ca,train\n", "line 2: 5 fields"),
        ("file_name,text,language,split\na.wav,hola\n", "line 2: 2 fields, expected 4"),
        ('file_name,text,language,split\na.wav,"di" x,ca,train\n', "line 2: not CSV"),
        ("file_name,text,language,split\na.wav,caf\xe9,ca,train\n".encode("latin-1"), "not UTF-8"),
    ],
)  # fmt: skip
def test_bad_csv(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        read_folder(write_text(tmp_path, text), "ca", "train")
    assert "metadata.csv" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "a.wav"\n', "line 1: not JSON"),
        ('["a.wav"]\n', "line 1: expected one JSON object"),
        ('\n{"file_name": "a.wav", "text": ["x"]}\n', r"line 2: text is \['x'\]"),
        ('{"file_name": "a.wav", "text": null, "language": "ca", "split": "train"}', "is empty"),
    ],
)
def test_bad_jsonl(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_folder(write_text(tmp_path, text, "metadata.jsonl"), "ca", "train")


def test_missing_folder_and_missing_or_double_metadata(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        read_folder(tmp_path / "nowhere", "ca", "train")
    with pytest.raises(UserError, match=r"neither metadata\.csv nor metadata\.jsonl"):
        read_folder(tmp_path, "ca", "train")
    (tmp_path / "metadata.csv").touch()
    (tmp_path / "metadata.jsonl").touch()
    with pytest.raises(UserError, match=r"both metadata\.csv and metadata\.jsonl"):
        read_folder(tmp_path, "ca", "train")


def test_load_corpus_goes_by_name(tmp_path):
    folder = write_csv(tmp_path / "speech", [row("a.wav")])
    loaded = load_corpus("folder/speech", "ca", "train", tmp_path)
    pd.testing.assert_frame_equal(loaded, read_folder(folder, "ca", "train"))
    loaded = load_corpus("folder/speech", "ca", "test", "embedded")
    expected = read_folder(locate("embedded/speech"), "ca", "test")
    pd.testing.assert_frame_equal(loaded, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("librispeech", "Unknown corpus 'librispeech': the kinds are folder"),
        ("folder", "names no folder"),
        ("folder/", "names no folder"),
        ("folder/../speech", r"'\.\./speech' leaves"),
        ("folder//etc", "'/etc' leaves"),
        ("folder/none", "none does not exist"),
    ],
)
def test_load_corpus_refuses(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        load_corpus(name, "ca", "train", tmp_path)


def test_own_recordings_may_be_in_any_language_of_whisper(tmp_path):
    """Basque and Japanese stand in no table of the kit: data and scores work all the same."""
    rows = [
        row(f"{code}-{split}.wav", f"{text} {split}", language=name, split=split)
        for code, name, text in (
            ("eu", "Basque", "egun on"),
            ("ja", "ja", "おはよう"),
        )
        for split in ("train", "validation", "test")
    ]
    write_csv(tmp_path / "speech", rows)
    settings = {"data_dir": str(tmp_path), "in_domain": "folder/speech"}
    settings["out_of_domain"] = "folder/speech"
    for language, code in (("basque", "eu"), ("Japanese", "ja")):
        config = resolve("clsr", "demo", language, overrides=settings)
        assert config.language == code and f"-{code}-" in config.run_id
        data = load_data(config)
        assert [list(table["id"]) for table in data.tables().values()] == [
            [f"{code}-train"], [f"{code}-validation"], [f"{code}-test"], [f"{code}-test"],
        ]  # fmt: skip
        assert set(data.train["language"]) == {code}
        said = [{"reference": text, "hypothesis": text} for text in data.train["text"]]
        assert score(said, language)["marks"]["cer"]["cer"] == 0
    with pytest.raises(UserError, match="does not have 'eu'.*recordings of your own"):
        resolve("clsr", "demo", "eu", overrides={"in_domain": "fleurs"})


def test_rows_that_no_part_reads_are_told_in_the_data_report(tmp_path):
    """A language by mistake among others, a split that only the other corpus is asked for."""
    splits = ("train", "validation", "test")
    rows = [row(f"{split}.wav", f"{split} x", split=split) for split in splits]
    ood = [row("far.wav", "lluny"), row("far2.wav", "lluny", split="test")]
    spanish = [row(f"es{n}.wav", f"hola {n}", language="es-MX") for n in range(2)]
    write_csv(tmp_path / "speech", rows + spanish)
    write_csv(tmp_path / "ood", ood)
    settings = {"data_dir": str(tmp_path), "in_domain": "folder/speech"}
    data = load_data(resolve("clsr", "demo", "ca", 1, settings | {"out_of_domain": "folder/ood"}))
    report = data.report()
    assert report["unread"] == [
        {"corpus": "folder/speech", "language": "es", "split": "train", "rows": 2,
         "where": ["metadata.csv, line 5", "metadata.csv, line 6"]},
        {"corpus": "folder/ood", "language": "ca", "split": "train", "rows": 1,
         "where": ["metadata.csv, line 2"]},
    ]  # fmt: skip
    assert {name: sheet["rows"] for name, sheet in report["sheets"].items()} == {
        "folder/speech": 5, "folder/ood": 2,
    }  # fmt: skip
    assert clips_table(report).iloc[-2:].values.tolist() == [
        ["folder/speech", "not read", "language es, split train", 2,
         "metadata.csv, line 5; metadata.csv, line 6"],
        ["folder/ood", "not read", "language ca, split train", 1, "metadata.csv, line 2"],
    ]  # fmt: skip
    same = load_data(
        resolve("clsr", "demo", "ca", 1, settings | {"out_of_domain": "folder/speech"})
    )
    assert [rest.corpus for rest in same.unread] == ["folder/speech"]
    assert load_data(resolve("clsr", "demo", "ca")).unread == []  # the demo's other languages


def test_load_corpus_refuses_an_unknown_language(tmp_path):
    write_csv(tmp_path / "speech", [row("a.wav")])
    with pytest.raises(UserError, match="Unknown language 'xx'"):
        load_corpus("folder/speech", "xx", "train", tmp_path)


def test_corpus_hash_knows_ids_texts_audio_and_segments_but_not_order_or_place(tmp_path):
    rows = [row("a.wav", id="1", start=0, end=0.5), row("b.wav", "adéu", id="2", start="", end="")]
    folder = write_csv(tmp_path / "own", rows)
    table = read_folder(folder, "ca", "train")
    value = corpus_hash(table)
    assert len(value) == 64 and value == corpus_hash(table[::-1])
    shutil.copytree(folder, tmp_path / "copy")
    assert corpus_hash(read_folder(tmp_path / "copy", "ca", "train")) == value
    others = [
        table.assign(id=["1", "3"]),
        table.assign(text=["bon dia", "adeu"]),
        table.assign(end=[0.6, math.nan]),
    ]
    write_wav(folder / "b.wav", level=0.2)
    hashes = {value, corpus_hash(table), *map(corpus_hash, others)}
    assert len(hashes) == 5


def test_corpus_hash_reads_each_file_once(tmp_path, monkeypatch):
    rows = [row("a.wav", id=str(i), start=i / 10, end=i / 10 + 0.1) for i in range(5)]
    table = read_folder(write_csv(tmp_path / "own", rows), "ca", "train")
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, how: read.append(file.name) or digest(file, how)
    )
    corpus_hash(table)
    corpus_hash(table)
    assert read == [str(tmp_path / "own" / "a.wav")]
    (tmp_path / "own" / "a.wav").unlink()
    with pytest.raises(UserError, match=r"a\.wav does not exist"):
        corpus_hash(table)


DIGITS = "9" * 5000


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "csv",
            f"{'a' * 300}.wav,bon dia,ca,train,1\n",
            "line 2: the audio file .* does not exist",
        ),
        ("csv", f"a.wav,bon dia,ca,train,{DIGITS}\n", "line 2: up_votes is '999.*; write a whole"),
        ("csv", "x.raw,bon dia,ca,train,1\n", r"x\.raw cannot be read \(Format not"),
        ("csv", "loop.wav,bon dia,ca,train,1\n", r"loop\.wav does not exist"),
        ("jsonl", json.dumps(row("a.wav", up_votes=DIGITS)), "line 1: up_votes is '999.*; write a"),
        ("jsonl", f'{{"file_name": "a.wav", "up_votes": {DIGITS}}}', "line 1: not JSON"),
        ("jsonl", "[" * 100_000, "line 1: not JSON"),
        ("jsonl", json.dumps({"text": [DIGITS]}), "line 1: text is .*, expected text or a number"),
    ],
)
def test_a_hostile_row_is_one_sentence(tmp_path, name, text, message):
    (tmp_path / "x.raw").write_bytes(b"\0" * 3200)
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    header = "file_name,text,language,split,up_votes\n" if name == "csv" else ""
    folder = write_text(tmp_path, header + text, f"metadata.{name}")
    with pytest.raises(UserError, match=message) as error:
        read_folder(folder, "ca", "train")
    assert len(str(error.value)) < 900 and "\n" not in str(error.value)

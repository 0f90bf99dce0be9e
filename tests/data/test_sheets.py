"""Own recordings with the sheets that people have: read as they were meant, or one sentence."""

from __future__ import annotations

import csv
import unicodedata

import numpy as np
import pytest
import soundfile

from distilwhisper_lib.data.clips import NO_TEXT, NOTE
from distilwhisper_lib.data.corpora import corpus_hash, open_corpus, read_folder
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.sheets import read_sheet
from distilwhisper_lib.scoring.text import FORM, INVISIBLE, SPACES, TOKENS

COLUMNS = ("file_name", "text", "language", "split")
PLAIN = "file_name,text,language,split\na.wav,així és,ca,train\nb.wav,adéu,ca,test\n"
SHEETS = {
    "commas": PLAIN.encode(),
    "semicolons": PLAIN.replace(",", ";").encode(),
    "tabs": PLAIN.replace(",", "\t").encode(),
    "bars": PLAIN.replace(",", "|").encode(),
    "named separator": ("sep=;\r\n" + PLAIN.replace(",", ";").replace("\n", "\r\n")).encode(),
    "UTF-8 with a mark": PLAIN.encode("utf-8-sig"),
    "UTF-16 with a mark": PLAIN.replace(",", "\t").encode("utf-16"),
    "UTF-16, big end first": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "UTF-16 without a mark": PLAIN.encode("utf-16-le"),
    "UTF-16 without a mark, big end first": PLAIN.encode("utf-16-be"),
    "UTF-32": PLAIN.encode("utf-32"),
    "capitals": PLAIN.replace("file_name,text,language,split", "FILE NAME,Text, LANGUAGE ,Split")
    .encode(),
    "line ends of old Macs": PLAIN.replace("\n", "\r").encode(),
    "a margin of empty rows and columns": (
        "file_name;text;language;split;;;\na.wav;així és;ca;train;;;\n;;;;;;\n"
        "b.wav;adéu;ca;test;;;\n;;;;;;\n;;;;;;\n"
    ).encode(),
    "a column without name and fields": PLAIN.replace(",ca,", ",,ca,")
    .replace("text,", "text,,").encode(),
    "fields between quotes": PLAIN.replace("així és", '"així és"')
    .replace("file_name", '"file_name"').encode(),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHEETS)
def test_a_sheet_is_read_as_it_was_saved(tmp_path, kind):
    (path := tmp_path / "metadata.csv").write_bytes(SHEETS[kind])
    rows = [fields for _, fields in read_sheet(path, COLUMNS)]
    assert rows == [
        {"file_name": "a.wav", "text": "així és", "language": "ca", "split": "train"},
        {"file_name": "b.wav", "text": "adéu", "language": "ca", "split": "test"},
    ]


def test_lines_are_counted_as_an_editor_counts_them(tmp_path):
    text = 'sep=;\nfile_name;text;language;split\n\na.wav;"two\nlines";ca;train\nb.wav;x;ca;train\n'
    (path := tmp_path / "metadata.csv").write_text(text, encoding="utf-8")
    assert [number for number, _ in read_sheet(path, COLUMNS)] == [5, 6]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PLAIN.encode("cp1252"), r"is not UTF-8: line 2 holds the byte 0xED.* 'CSV UTF-8'"),
        (PLAIN.encode("utf-16")[:-1], "is not whole as UTF-16"),
        (b"a,,b\n1,2,3\n", "line 2: '2' stands in a column without a name"),
        (b"file_name;text\na.wav;x;y\n", "line 2: 3 fields, expected 2; put texts with semicolons"),
    ],
)
def test_what_nobody_can_know_is_refused(tmp_path, content, message):
    (path := tmp_path / "metadata.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_sheet(path, COLUMNS)


def recorded(folder, *names: str):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, np.full(16_000, 0.1), 16_000)
    return folder


def sheet(folder, *rows: str):
    lines = ("file_name,text,language,split", *rows)
    (folder / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("word", "split"),
    [
        ("Train", "train"), ("TRAINING", "train"), (" train ", "train"), ("Dev", "validation"),
        ("valid", "validation"), ("development", "validation"), ("Test", "test"),
    ],
)  # fmt: skip
def test_a_split_is_what_its_word_means(tmp_path, word, split):
    sheet(recorded(tmp_path, "a.wav"), f"a.wav,hola,ca,{word}")
    assert read_folder(tmp_path, "ca", split)["split"].tolist() == [split]


def test_a_split_that_means_nothing_is_an_error_with_its_line(tmp_path):
    sheet(recorded(tmp_path, "a.wav", "b.wav"), "a.wav,hola,ca,train", "b.wav,adéu,ca,trian")
    with pytest.raises(UserError, match="line 3: split is 'trian'; write train, validation or te"):
        read_folder(tmp_path, "ca", "train")


def test_every_faulty_line_is_counted_and_three_are_told(tmp_path):
    names = [f"{n}.wav" for n in range(6)]
    sheet(recorded(tmp_path, *names), *(f"{n},{'' if n >= '2' else 'x'},ca,train" for n in names))
    with pytest.raises(UserError) as error:
        read_folder(tmp_path, "ca", "train")
    said = str(error.value)
    assert [f"line {n}: the text is empty" in said for n in range(2, 8)] == [
        False, False, True, True, True, False,
    ]  # fmt: skip
    assert said.endswith("And 1 more.") and said.count("metadata.csv") == 1
    assert [place for place, _ in error.value.found] == [
        f"{tmp_path}/metadata.csv, line {n}" for n in range(4, 8)
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.wav,hola,Català,train", "line 2: the language is 'Català'; write its code or Eng"),
        ("a.wav,hola,,train", "line 2: the language is empty; write 'ca'"),
        (r"C:\Ana\A.wav,hola,ca,train", r"a place on somebody's computer; write .*, 'a\.wav'"),
        (r"D:\x.wav,hola,ca,train", r"a place on somebody's computer; write the name that it has"),
        ('a.wav,"hola,ca,train', 'line 2: not CSV .* a double quote that opens and does not close'),
        ('a.wav,"hola,ca,train\nb.wav,"dia",ca,train', "line 2 to 3: not CSV"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_meant_so_says_what_to_write(tmp_path, row, message):
    sheet(recorded(tmp_path, "a.wav"), row)
    with pytest.raises(UserError, match=message):
        read_folder(tmp_path, "ca", "train")


def test_headings_in_another_language_are_told_with_those_that_are_wanted(tmp_path):
    recorded(tmp_path, "a.wav")
    (tmp_path / "metadata.csv").write_text("Fitxer;Text;Llengua;split\na.wav;hola;ca;train\n")
    with pytest.raises(
        UserError, match="first line: no column file_name, language, but fitxer, text, llengua, spl"
    ):
        read_folder(tmp_path, "ca", "train")


def test_a_language_or_split_that_no_row_has_is_told_with_those_there_are(tmp_path):
    sheet(recorded(tmp_path, "a.wav"), "a.wav,hola,ca,train")
    with pytest.raises(
        UserError, match="no rows of language 'es': it holds ca train \\(1\\); run in"
    ):
        read_folder(tmp_path, "es", "train")
    with pytest.raises(UserError, match="and split 'test': .*; write test into the column split"):
        read_folder(tmp_path, "ca", "test")


def test_the_same_name_in_two_folders_gives_two_ids(tmp_path):
    recorded(tmp_path, "s1/001.wav", "s2/001.wav", "s2/002.wav")
    sheet(tmp_path, *(f"{name},hola,ca,train" for name in ("s1/001.wav", "s2/001.wav")),
          "s2/002.wav,hola,ca,train")  # fmt: skip
    assert read_folder(tmp_path, "ca", "train")["id"].tolist() == ["s1/001", "s2/001", "002"]


@pytest.mark.parametrize(
    ("written", "file"),
    [
        ("a.wav", "a.WAV"),
        ("Clips\\A.wav", "clips/a.wav"),
        (unicodedata.normalize("NFD", "così.wav"), unicodedata.normalize("NFC", "così.wav")),
        (unicodedata.normalize("NFC", "così.wav"), unicodedata.normalize("NFD", "così.wav")),
    ],
)
def test_a_file_is_found_under_another_systems_name(tmp_path, written, file):
    sheet(recorded(tmp_path, file), f"{written},hola,ca,train")
    table = read_folder(tmp_path, "ca", "train")
    assert table["audio"].tolist() == [str(tmp_path / file)]
    assert table["id"].tolist()[0] in ("a", "A", unicodedata.normalize("NFC", "così"))


def test_of_two_files_that_differ_in_case_alone_none_is_guessed(tmp_path):
    sheet(recorded(tmp_path, "a.wav", "A.wav"), "a.WAV,hola,ca,train")
    with pytest.raises(UserError, match=r"a\.WAV does not exist"):
        read_folder(tmp_path, "ca", "train")


@pytest.mark.parametrize(("written", "near"), [("a.mp3", "a.wav"), ("A", "a.wav")])
def test_a_missing_file_is_told_with_the_one_it_may_be(tmp_path, written, near):
    sheet(recorded(tmp_path, near), f"{written},hola,ca,train")
    with pytest.raises(UserError, match=rf"does not exist; is it '{near}'\? Correct file_name"):
        read_folder(tmp_path, "ca", "train")


def test_seconds_may_have_a_decimal_comma(tmp_path):
    recorded(tmp_path, "a.wav")
    text = "file_name;text;language;split;start;end\na.wav;hola;ca;train;0,25;0,75\n"
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8")
    table = read_folder(tmp_path, "ca", "train")
    assert table[["start", "end", "seconds"]].values.tolist() == [[0.25, 0.75, 0.5]]


def test_another_sheet_in_the_folder_is_named(tmp_path):
    (tmp_path / "List.xlsx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"save List\.xlsx as metadata\.csv, in UTF-8"):
        read_folder(tmp_path, "ca", "train")


NFD = unicodedata.normalize("NFD", "això és")
PROMPT = "<|startoftranscript|><|ca|><|transcribe|><|notimestamps|>"
UNCLEAN = {
    "a": (NFD, "això és", (FORM,)),
    "b": (f"{PROMPT} bon dia<|endoftext|>", "bon dia", (TOKENS,)),
    "c": ("<|0.00|>hola<|1.20|>", "hola", (TOKENS,)),
    "d": ("dues\n\u00a0línies\tja", "dues línies ja", (SPACES,)),
    "e": ("invi\u200bsi\u00adble\ufeff", "invisible", (INVISIBLE,)),
    "f": ("\u202bשלום\u202c", "שלום", (INVISIBLE,)),
    "g": ("می\u200cخواهم", "می\u200cخواهم", ()),  # a joiner that is spelling
    "h": ("क्\u200dष", "क्\u200dष", ()),
    "i": ("[rialles] Sí, home: l·l!", "[rialles] Sí, home: l·l!", ()),
    "j": ("a <| b |> c <|", "a c <|", (TOKENS,)),
    "k": (" bon  dia<|ca|> tots", "bon dia tots", (TOKENS, SPACES)),
}


def own_corpus(tmp_path, texts):
    rows = [["file_name", "text", "language", "split"]]
    rows += [[f"{id_}.wav", text, "ca", "train"] for id_, text in texts.items()]
    recorded(tmp_path / "own", *(f"{id_}.wav" for id_ in texts))
    with (tmp_path / "own" / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path


def test_one_place_cleans_every_transcript_and_says_what_it_did(tmp_path):
    own_corpus(tmp_path, {id_: before for id_, (before, *_) in UNCLEAN.items()})
    corpus = open_corpus("folder/own", "ca", "train", tmp_path)
    assert dict(zip(corpus.table["id"], corpus.table["text"], strict=True)) == {
        id_: after for id_, (_, after, _) in UNCLEAN.items()
    }
    told = {clip.id: clip for clip in corpus.changed}
    assert {id_: told[id_].what for id_ in told} == {
        id_: what for id_, (*_, what) in UNCLEAN.items() if what
    }
    assert told["a"].before == NFD and told["a"].after == "això és"
    assert told["a"].where == "metadata.csv, line 2"


def test_a_clean_corpus_keeps_its_hash_and_a_composed_one_gets_its_own(tmp_path):
    plain = own_corpus(tmp_path / "nfc", {"a": "això és"})
    other = own_corpus(tmp_path / "nfd", {"a": NFD})
    hashes = {
        corpus_hash(open_corpus("folder/own", "ca", "train", folder).table)
        for folder in (plain, other)
    }
    assert len(hashes) == 1


def test_a_text_that_says_nothing_is_left_out_and_told_unless_notes_are_asked_for(tmp_path):
    own_corpus(
        tmp_path,
        {"a": "hola", "b": "[música]", "c": "(rialles)", "d": "<|endoftext|>", "e": "[x] adéu"},
    )
    corpus = open_corpus("folder/own", "ca", "train", tmp_path)
    assert corpus.table["id"].tolist() == ["a", "e"]
    assert [tuple(clip) for clip in corpus.dropped] == [
        ("b", NOTE, "metadata.csv, line 3: '[música]'"),
        ("c", NOTE, "metadata.csv, line 4: '(rialles)'"),
        ("d", NO_TEXT, "metadata.csv, line 5: '<|endoftext|>'"),
    ]
    asked = open_corpus("folder/own", "ca", "train", tmp_path, keep_notes=True)
    assert asked.table["id"].tolist() == ["a", "b", "c", "e"]

"""Every kind of corpus goes through load_data to a table in which nothing is unaccounted for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from stand_ins import (
    HOSTILE_DROPPED,
    HOSTILE_KEPT,
    clip,
    encoded,
    hostile_release,
    parquet,
    release,
    sentence,
    tarball,
    three_tables,
    tsv,
    write_clip,
)

from distilwhisper_lib import UserError, resolve
from distilwhisper_lib.config.settings import locate
from distilwhisper_lib.data import inspection, own_folder
from distilwhisper_lib.data.checklist import (
    clips_table,
    dropped_table,
    preflight,
    preflight_table,
    write_data_report,
)
from distilwhisper_lib.data.common_voice import unpack_common_voice
from distilwhisper_lib.data.page import write_page
from distilwhisper_lib.data.plots import preflight_overview
from distilwhisper_lib.data.splits import LabelLimit, label_limit, load_data
from distilwhisper_lib.data.subsets import read_subset, write_subset
from distilwhisper_lib.errors import Faults
from distilwhisper_lib.io.leaks import mask
from distilwhisper_lib.speech.audio import FFMPEG_READ, LOUDER


@pytest.fixture
def labels(processor):
    return LabelLimit(448, lambda: processor.tokenizer)


@pytest.fixture
def configure(tmp_path, monkeypatch):
    """Factory of configs with their data in tmp_path/data, run in tmp_path."""
    monkeypatch.chdir(tmp_path)

    def make(in_domain, out_of_domain, **settings):
        settings |= {"in_domain": in_domain, "out_of_domain": out_of_domain, "data_dir": "data"}
        settings = {"max_seconds": 30} | settings
        return resolve("clsr", "demo", "ca", 1, settings)

    return make


@pytest.fixture
def two_corpora(tmp_path):
    """Common Voice from its tarball, with every fault, and FLEURS with some."""
    folder = hostile_release(tmp_path / "built")
    (folder / "clips" / "common_voice_ca_link.mp3").unlink()
    archive = tarball(tmp_path / "ca.tar.gz", folder, "cv-corpus-13.0-2023-03-09/ca")
    unpack_common_voice(archive, tmp_path / "data" / "common_voice")
    rows = [sentence(i) for i in range(4)]
    rows += [sentence(4, transcription=""), sentence(5, audio={"bytes": b"x", "path": "x.wav"})]
    long = encoded(31.0, 7, "WAV")
    rows += [sentence(6, num_samples=0, audio={"bytes": long, "path": "long.wav"})]
    parquet(tmp_path / "data" / "fleurs" / "ca_es" / "test-00000-of-00001.parquet", rows)


def test_real_corpora_with_every_fault_give_a_correct_table(two_corpora, configure, labels):
    config = configure("common_voice", "fleurs/raw_transcription")
    data = load_data(config)
    report = preflight(data, labels)
    table = preflight_table(report)
    assert list(table.index) == ["train", "validation", "in_domain", "out_of_domain"]
    assert table["split"].tolist() == ["train", "validation", "test", "test"]
    assert table["clips"].tolist() == [len(HOSTILE_KEPT), 2, 2, 5]
    assert table["speakers"].tolist() == [2, 2, 2, "not told apart"]
    assert table["dropped: over the window"].tolist() == [1, 0, 0, 1]
    assert table["dropped: label over the limit"].tolist() == [1, 0, 0, 0]
    assert table["dropped: no text"].tolist() == [3, 0, 0, 0]
    assert table["dropped: unreadable"].tolist() == [5, 0, 0, 1]  # gone, zero, cut, text; the link
    assert table["dropped: other"].tolist() == [4, 0, 0, 0]
    assert table["repeated sentences"].tolist() == [0, 0, 0, 2]
    assert table["licence"].tolist() == ["CC0-1.0"] * 3 + ["CC BY 4.0"]
    expected = HOSTILE_DROPPED | {"common_voice_ca_link": "missing file"}
    expected |= {"x": "unreadable audio", "long": "longer than the window"}
    dropped = dropped_table(report)
    assert dict(zip(dropped["id"], dropped["reason"], strict=True)) == expected
    assert len(dropped) == len(expected)
    assert (dropped["detail"] != "").all()


def test_the_report_is_written_with_the_subsets(two_corpora, configure, labels, tmp_path):
    config = configure("common_voice", "fleurs")
    data = load_data(config)
    report = preflight(data, labels)
    paths = write_data_report(config, data, report)
    assert len(paths) == 7
    table = pd.read_csv(tmp_path / paths[-2], keep_default_na=False)
    pd.testing.assert_frame_equal(table, clips_table(report, shown=None))
    assert dict(zip(table["what"], table["part"], strict=True)).keys() == {
        "kept", "changed", "left out",
    }  # fmt: skip
    assert table["count"][table["what"] == "left out"].sum() == sum(
        len(part["dropped"]) for part in report["parts"].values()
    )
    assert "\\u2028línia" in (tmp_path / paths[-1]).read_text(encoding="utf-8")
    written = json.loads((tmp_path / paths[0]).read_text())
    assert written == {"preset": "demo", "language": "ca"} | report
    assert str(tmp_path) not in json.dumps(written)
    train = written["parts"]["train"]
    assert train["about"]["release"] == "cv-corpus-13.0-2023-03-09"
    assert written["parts"]["out_of_domain"]["about"]["text"] == "transcription"
    assert {
        clip["id"]: clip["reason"] for clip in train["dropped"]
    }.keys() == HOSTILE_DROPPED.keys()
    assert [(clip["id"], clip["after"]) for clip in train["changed"]] == [
        ("common_voice_ca_line", "una línia")
    ]
    assert set(read_subset(tmp_path / paths[1])) == set(HOSTILE_KEPT)
    preflight_overview(written).canvas.draw()


def test_a_corpus_with_fewer_clips_than_asked_for_is_said_to_lack_them(tmp_path, configure, labels):
    release(tmp_path / "data" / "common_voice" / "ca", three_tables(5))
    config = configure("common_voice", "common_voice", train_size=40, validation_size=5)
    data = load_data(config)
    expected = ["40, has 5", "5", "all", "all"]
    assert data.summary()["clips"].tolist() == [5, 5, 5, 5]
    assert data.summary()["asked for"].tolist() == expected
    report = preflight(data, labels)
    assert preflight_table(report)["asked for"].tolist() == expected
    assert [part["asked"] for part in report["parts"].values()] == [40, 5, None, None]
    fewer = data.train["id"].tolist()[:3]
    write_subset(data.train.head(3), tmp_path / "subset.txt")
    config = configure("common_voice", "common_voice", train_subset="subset.txt")
    assert load_data(config).summary()["asked for"].tolist()[0] == "3"
    (tmp_path / "data" / "common_voice" / "ca" / "clips" / f"{fewer[0]}.mp3").write_bytes(b"")
    assert load_data(config).summary()["asked for"].tolist()[0] == "3, has 2"


def test_a_subset_list_takes_the_place_of_the_rule(tmp_path, configure):
    release(tmp_path / "data" / "common_voice" / "ca", three_tables(5))
    config = configure("common_voice", "common_voice", train_size=4)
    chosen = load_data(config).train.iloc[[2, 0]]
    write_subset(chosen, tmp_path / "subset.txt")
    config = configure("common_voice", "common_voice", train_subset="subset.txt")
    assert load_data(config).train["id"].tolist() == chosen["id"].tolist()
    assert config.run_id != configure("common_voice", "common_voice").run_id
    (tmp_path / "subset.txt").unlink()
    with pytest.raises(UserError, match=r"Subset file subset\.txt does not exist"):
        load_data(config)


def test_speakers_sentences_and_recordings_that_stand_twice(tmp_path, configure, labels):
    folder = release(tmp_path / "data" / "common_voice" / "ca", three_tables(3))
    rows = [clip("test", i) for i in range(3)]
    rows[0] |= {"client_id": "voice-train-0", "sentence": "Frase A de train, 0!"}
    (folder / "test.tsv").write_text(tsv(rows))
    for name in ("train001", "test002"):
        write_clip(folder, f"common_voice_ca_{name}.mp3", encoded(1.0, 99))
    data = load_data(configure("common_voice", "common_voice"))
    report = preflight(data, labels)
    leaks = [leak for leak in report["leaks"] if "train" in leak["splits"]]
    where = ["in_domain", "out_of_domain", "train"]
    assert leaks == [
        {"kind": "text", "value": "frase a de train 0", "splits": where, "where": []},
        {"kind": "speaker", "value": "voice-train-0", "splits": where, "where": []},
    ]
    table = preflight_table(report)
    assert table["speakers elsewhere"]["train"] == 1
    assert table["sentences elsewhere"]["train"] == 1
    (group,) = [g for g in report["duplicates"] if any(c["part"] == "train" for c in g)]
    assert {clip["id"][-8:] for clip in group} == {"train001", "_test002"}
    assert table["same recording"]["train"] == 1
    rows = clips_table(report).drop_duplicates(["part", "what", "why"])
    rows = {tuple(r[:3]): tuple(r[3:]) for r in rows.itertuples(index=False)}
    both = "common_voice, test; common_voice, train"
    assert rows[both, "in two parts", "the same sentence"] == (1, "frase a de train 0")
    assert rows[both, "in two parts", "the same speaker"] == (1, "voice-train-0")
    count, first = rows["all", "twice", "one recording, several names"]
    assert count == 1 and "train001 = " in first
    shortest, longest = data.train["seconds"].min(), data.train["seconds"].max()
    minutes = data.train["seconds"].sum() / 60
    told = f"{shortest:.1f} to {longest:.1f} s each, {minutes:.1f} min"
    assert rows["common_voice, train", "kept", told] == (len(data.train), "")


def test_a_page_says_first_whether_there_is_something_to_mend(
    speech_folder, tmp_path, configure, labels
):
    """How a phone's recordings were decoded is nothing of the kind."""
    (tmp_path / "data").mkdir()
    speech_folder("data/speech")
    path = speech_folder("data/ood", splits=("test",)) / "metadata.csv"
    path.write_text(path.read_text().replace("test frase", "una altra"))
    config = configure("folder/speech", "folder/ood")
    data = load_data(config)
    report = preflight(data, labels)
    for kind in ("leaks", "duplicates"):
        report[kind] = []  # the stand-ins are tones, some alike
    ids = data.train["id"].tolist()
    notes = report["parts"]["train"]["notes"]
    lines = data.train["where"].tolist()
    both = list(zip(ids, lines, strict=True))
    notes += [{"id": id_, "where": line, "notes": FFMPEG_READ} for id_, line in both]
    page = (tmp_path / write_data_report(config, data, report)[-1]).read_text(encoding="utf-8")
    assert "nothing to mend" in page and "folder/ood, test" in page and "In Catalan." in page
    assert FFMPEG_READ in page and lines[0] not in page
    assert "The sheet of folder/speech has 12 rows. The sheet of folder/ood has 4 rows." in page
    notes.append({"id": ids[0], "where": lines[0], "notes": LOUDER})
    page = (tmp_path / write_data_report(config, data, report)[-1]).read_text(encoding="utf-8")
    assert "To look at: 1 clip that looks odd." in page and lines[0] in page


def test_own_recordings_go_the_same_way(speech_folder, tmp_path, configure, processor):
    (tmp_path / "data").mkdir()
    speech_folder("data/speech")
    folder = speech_folder("data/ood", splits=("test",))
    path = folder / "metadata.csv"
    path.write_text(path.read_text().replace("test frase a", "una frase ben llarga " * 20))
    data = load_data(configure("folder/speech", "folder/ood", max_seconds=1.0))
    report = preflight(data, LabelLimit(64, lambda: processor.tokenizer))
    table = preflight_table(report)
    assert table["clips"].tolist() == [3, 3, 3, 3]
    assert table["dropped: over the window"].tolist() == [1, 1, 1, 1]
    assert table["label over the limit, kept"].tolist() == [0, 0, 0, 1]
    kept = dropped_table(report).iloc[-1]
    assert (kept["part"], kept["id"]) == ("out_of_domain", "test0")
    assert kept["detail"] == "kept: not learnt"
    assert table["licence"].tolist() == ["not stated"] * 4


def test_the_authors_row_numbers_choose_what_is_trained_and_validated_on(tmp_path, configure):
    """By the page's own lines. The old tables have another order, and folders before the names."""
    release(tmp_path / "data" / "common_voice" / "ca", three_tables(5))
    (tmp_path / "old").mkdir()
    for name in ("train", "dev"):
        rows = three_tables(5)[f"{name}.tsv"][::-1]
        rows = [row | {"path": f"ca_{name}_0/{row['path']}"} for row in rows]
        (tmp_path / "old" / f"{name}.tsv").write_text(tsv(rows))
    (tmp_path / "rows-train.txt").write_text("[3, 0]")
    (tmp_path / "rows-validation.txt").write_text("1\n4\n")
    page = (Path(__file__).parents[2] / "notebooks/DATA.md").read_text(encoding="utf-8")
    (lines,) = [b for b in re.findall("```python\n(.*?)```", page, re.S) if "convert_row" in b]
    exec(lines, {})
    lists = {"train_subset": "train.txt", "validation_subset": "validation.txt"}
    config = configure("common_voice", "common_voice", **lists)
    data = load_data(config)
    assert data.train["id"].tolist() == [f"common_voice_ca_train00{n}" for n in (1, 4)]
    assert data.validation["id"].tolist() == [f"common_voice_ca_dev00{n}" for n in (3, 0)]
    before = config.run_id
    assert before != configure("common_voice", "common_voice", train_subset="train.txt").run_id
    (tmp_path / "validation.txt").write_text((tmp_path / "train.txt").read_text())
    assert config.run_id != before


CODINGS = {"flac": ("FLAC", None), "mp3": ("MP3", None), "ogg": ("OGG", "VORBIS"),
           "opus": ("OGG", "OPUS"), "wav": ("WAV", None)}  # fmt: skip


@pytest.mark.parametrize("suffix", CODINGS)
@pytest.mark.parametrize("where", ["whole", "segment"])
def test_an_own_recording_cut_in_half_is_named_before_anything_is_trained(
    tmp_path, speech_folder, configure, suffix, where
):
    """Of Opus, Vorbis and WAV only the metadata's length tells."""
    (tmp_path / "data").mkdir()
    path = speech_folder("data/speech") / "metadata.csv"
    name = path.with_name(f"train0.{suffix}")
    path.with_name("train0.wav").unlink()
    table = pd.read_csv(path).replace("train0.wav", name.name)
    named = table["file_name"] == name.name
    if where == "whole":
        table.loc[named, "seconds"] = 2.5
    else:
        table.loc[named, ["start", "end"]] = [0.0, 2.5]
    table.to_csv(path, index=False)
    config = configure("folder/speech", "folder/speech", max_seconds=30)
    name.write_bytes(whole := encoded(2.5, 3, *CODINGS[suffix]))
    assert load_data(config).train["seconds"].max() == pytest.approx(2.5)
    name.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"train0\.{suffix}"):
        load_data(config)


def test_every_broken_own_recording_counts_and_the_first_are_named(
    tmp_path, speech_folder, configure
):
    (tmp_path / "data").mkdir()
    path = speech_folder("data/speech") / "metadata.csv"
    for number in range(4):
        whole = encoded(2.0, number, "FLAC")  # libsndfile goes by the content
        path.with_name(f"train{number}.wav").write_bytes(whole[: len(whole) // 2])
    config = configure("folder/speech", "folder/speech", max_seconds=30)
    with pytest.raises(Faults, match="And 1 more.") as error:
        load_data(config)
    assert [f"train{number}.wav" in str(error.value) for number in range(4)].count(True) == 3
    assert f"All of them: {config.data_report.with_suffix('.html')}." in str(error.value)


def test_what_is_wrong_in_any_part_is_told_at_once_and_on_a_page(
    tmp_path, speech_folder, configure
):
    """Two broken recordings of two splits, a faulty row, and a folder that is not there."""
    (tmp_path / "data").mkdir()
    path = speech_folder("data/speech") / "metadata.csv"
    for split in ("train", "validation"):
        whole = encoded(2.0, 1, "FLAC")
        path.with_name(f"{split}0.wav").write_bytes(whole[: len(whole) // 2])
    path.write_text(path.read_text().replace("test frase b", "..."))
    config = configure("folder/speech", "folder/far")
    with pytest.raises(Faults) as error:
        load_data(config)
    told = " ".join(f"{place} {fault}" for place, fault in error.value.found)
    assert len(error.value.found) == 4
    for said in ("train0.wav", "validation0.wav", "says nothing", "far does not exist: make it"):
        assert said in told
    page = config.data_report.with_suffix(".html").read_text(encoding="utf-8")
    table = pd.read_csv(config.data_report.with_suffix(".csv"), keep_default_na=False)
    assert "4 faults stop the reading" in page and "says nothing" in page
    assert table.values.tolist() == [list(map(mask, fault)) for fault in error.value.found]


def test_two_folders_that_are_missing_are_told_without_a_page(tmp_path, configure):
    config = configure("folder/speech", "folder/far")
    with pytest.raises(UserError, match="data/speech does not exist: .*far does not exist: "):
        load_data(config)
    assert not config.data_report.with_suffix(".html").exists()


def test_a_corpus_that_is_no_own_folder_stops_at_its_first_fault(tmp_path, configure):
    with pytest.raises(UserError, match="common_voice") as error:
        load_data(configure("common_voice", "fleurs"))
    assert "fleurs" not in str(error.value)


def test_a_part_of_nothing_but_silence_says_so(tmp_path, speech_folder, configure):
    (tmp_path / "data").mkdir()
    folder = speech_folder("data/speech")
    for wav in folder.glob("validation*.wav"):
        soundfile.write(wav, np.zeros(16_000), 16_000)
    with pytest.raises(
        UserError, match=r"4 silence\): put recordings there .* first: metadata.csv, "
    ):
        load_data(configure("folder/speech", "folder/speech"))


def test_a_sentence_in_two_parts_is_told_with_its_rows(tmp_path, speech_folder, configure, labels):
    (tmp_path / "data").mkdir()
    path = speech_folder("data/speech") / "metadata.csv"
    path.write_text(path.read_text().replace("test frase a", "Train frase B!"))
    report = preflight(load_data(configure("folder/speech", "folder/speech")), labels)
    (text,) = [leak for leak in report["leaks"] if "train" in leak["splits"] and leak["where"]]
    assert text["where"] == [
        "folder/speech: metadata.csv, line 10", "folder/speech: metadata.csv, line 3",
    ]  # fmt: skip
    table = clips_table(report)
    row = table[(table["what"] == "in two parts") & (table["why"] == "the same sentence")]
    (told,) = row["which"]
    assert told == f"train frase b ({', '.join(text['where'])})"


def test_segments_that_share_most_of_their_sound_are_told(tmp_path, configure, labels):
    folder = tmp_path / "data" / "speech"
    folder.mkdir(parents=True)
    soundfile.write(folder / "a.wav", np.random.default_rng(0).normal(0, 0.1, 48_000), 16_000)
    rows = {"train": "0,1.2", "validation": "1.1,1.9", "test": "0.01,1.2"}
    lines = [f"a.wav,{split},frase {split},ca,{split},{at}" for split, at in rows.items()]
    header = "file_name,id,text,language,split,start,end"
    (folder / "metadata.csv").write_text("\n".join([header, *lines]))
    report = preflight(load_data(configure("folder/speech", "folder/speech")), labels)
    table = clips_table(report)
    assert table[table["what"] == "twice"]["which"].tolist() == [
        "train (metadata.csv, line 2) = test (metadata.csv, line 4)"
    ]


def test_a_length_in_the_sheet_that_is_wrong_leaves_no_clip_out_unheard(
    tmp_path, speech_folder, configure
):
    (tmp_path / "data").mkdir()
    path = speech_folder("data/speech") / "metadata.csv"
    table = pd.read_csv(path).assign(seconds="")
    table.loc[1, "seconds"] = "4000"
    table.to_csv(path, index=False)
    with pytest.raises(Faults, match="line 3: train1.wav decodes to 0.75 s, and a row says that"):
        load_data(configure("folder/speech", "folder/speech"))


def test_clips_over_the_models_own_window_are_left_out(tmp_path, speech_folder, configure):
    (tmp_path / "data").mkdir()
    folder = speech_folder("data/speech")
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000 * 4)
    soundfile.write(folder / "train2.wav", noise, 16_000)  # the demo's student hears 3 s
    data = load_data(configure("folder/speech", "folder/speech", max_seconds=30))
    assert [(d.id, d.reason) for d in data.dropped["train"]] == [
        ("train2", "longer than the window")
    ]


def test_no_clip_may_be_longer_than_any_whisper_hears(configure):
    with pytest.raises(
        UserError, match="max_seconds=40 is out of range: Whisper hears 30 s at once"
    ):
        configure("folder/speech", "folder/speech", max_seconds=40)


def test_columns_that_nobody_reads_are_named_on_the_page(
    tmp_path, speech_folder, configure, labels
):
    (tmp_path / "data").mkdir()
    path = speech_folder("data/speech") / "metadata.csv"
    pd.read_csv(path).assign(start_time=0, Einde=1).to_csv(path, index=False)
    data = load_data(config := configure("folder/speech", "folder/speech"))
    page = Path(write_data_report(config, data, preflight(data, labels))[-1]).read_text()
    assert "has 12 rows, and columns that are not read: start_time, einde." in page


def test_a_cell_that_a_spreadsheet_would_run_is_text_in_the_csv(tmp_path):
    table = pd.DataFrame({"which": ["=1+1", "a"], "count": [1, 2]})
    csv_file, page = write_page(tmp_path / "x.json", "t", "v", table)
    assert "'=1+1" in csv_file.read_text() and "'=1+1" not in page.read_text()


def test_texts_that_look_odd_are_used_and_told_with_their_lines(
    tmp_path, speech_folder, configure, labels
):
    (tmp_path / "data").mkdir()
    path = speech_folder("data/speech") / "metadata.csv"
    text = path.read_text().replace("train frase a", "#NOM?").replace("train frase b", "cafÃ©")
    path.write_text(text.replace("test frase a", "molt " * 40))
    report = preflight(load_data(configure("folder/speech", "folder/speech")), labels)
    assert report["parts"]["train"]["clips"] == 4
    table = clips_table(report)
    odd = table[table["what"] == "look at"]
    assert odd[["why", "count", "which"]].values.tolist() == [
        ["a spreadsheet's formula or error for a text", 1, "metadata.csv, line 2"],
        ["UTF-8 that was read as another alphabet", 1, "metadata.csv, line 3"],
        *([["more text than can be said in its time", 1, "metadata.csv, line 10"]] * 2),
    ]


def test_own_recordings_are_decoded_once_and_not_where_a_run_does_not_look(
    tmp_path, speech_folder, configure, monkeypatch
):
    (tmp_path / "data").mkdir()
    speech_folder("data/speech")
    decoded = []
    check = inspection.listen
    monkeypatch.setattr(
        inspection, "listen", lambda *given: decoded.append(given[0].name) or check(*given)
    )
    config = configure("folder/speech", "folder/speech", max_seconds=30)
    load_data(config)
    assert sorted(decoded) == sorted(set(decoded)) and len(decoded) == 12
    load_data(config)
    assert len(decoded) == 12
    load_data(resolve("zero_shot", "demo", "ca"))  # whose files are known by their digests
    assert len(decoded) == 12


def test_a_damaged_file_of_the_demo_is_named(tmp_path):
    clip = Path(locate("embedded/speech/ca-test-00.ogg"))
    (tmp_path / "speech").mkdir()
    copy = tmp_path / "speech" / clip.name
    copy.write_bytes(clip.read_bytes())
    assert own_folder.require_as_shipped([copy])[0].seconds > 1
    copy.write_bytes(clip.read_bytes()[:-1])
    with pytest.raises(UserError, match="ca-test-00.ogg is not the file that came"):
        own_folder.require_as_shipped([copy])


def test_a_label_that_cannot_be_learnt_is_left_out_of_training_only(speech_folder, configure):
    Path("data").mkdir()
    folder = speech_folder("data/speech")
    path = folder / "metadata.csv"
    text = path.read_text().replace("train frase b", "b" * 300).replace("test frase b", "c" * 300)
    path.write_text(text)
    data = load_data(configure("folder/speech", "folder/speech"))
    assert [(d.id, d.reason) for d in data.dropped["train"]] == [("train1", "label over the limit")]
    assert data.dropped["in_domain"] == [] and len(data.in_domain) == 4


def test_the_token_histogram_holds_every_clip(speech_folder, tmp_path, configure):
    (tmp_path / "data").mkdir()
    speech_folder("data/speech")
    config = configure("folder/speech", "folder/speech")
    tokens = preflight(load_data(config), label_limit(config))["parts"]["train"]["tokens"]
    assert sum(tokens["histogram"]["clips"]) == 4
    assert tokens["limit"] == 64 and tokens["histogram"]["width"] == 2
    assert len(tokens["histogram"]["clips"]) == tokens["longest"] // 2 + 1
    assert 4 < tokens["median"] <= tokens["longest"]


def test_two_segments_of_a_file_are_two_recordings(tmp_path, configure, labels):
    folder = tmp_path / "data" / "speech"
    folder.mkdir(parents=True)
    soundfile.write(folder / "a.wav", np.full(32_000, 0.1), 16_000)
    lines = ["file_name,id,text,language,split,start,end"]
    for i, split in enumerate(["train", "validation", "test"]):
        lines.append(f"a.wav,{split},frase {i},ca,{split},{i / 2},{i / 2 + 0.5}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    data = load_data(configure("folder/speech", "folder/speech"))
    report = preflight(data, labels)
    (group,) = report["duplicates"]  # the test set stands for both domains
    assert [clip["part"] for clip in group] == ["in_domain", "out_of_domain"]
    assert (
        not clips_table(report)["what"].isin(["twice", "in two parts"]).any()
    )  # which is no fault


def test_the_overview_shows_what_was_left_out_and_checks(two_corpora, configure, labels):
    report = preflight(load_data(configure("common_voice", "fleurs")), labels)
    figure = preflight_overview(report)
    figure.canvas.draw()
    left, right = figure.axes
    assert len(left.patches) == 4
    legend = [text.get_text() for text in right.get_legend().get_texts()]
    assert "missing file" in legend and "longer than the window" in legend
    widths = sum(bar.get_width() for bar in right.patches)
    assert widths == len(dropped_table(report))
    for part in report["parts"].values():
        part["dropped"] = []
    assert [text.get_text() for text in preflight_overview(report).axes[1].texts] == ["none"]
    with pytest.raises(UserError, match="has no label lengths"):
        preflight_overview({"parts": {"train": {"clips": 1}}})

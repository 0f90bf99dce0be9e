"""FLEURS from parquet files: a local copy offline, the hub through a stand-in."""

from __future__ import annotations

import json
import os
import threading

import huggingface_hub
import pytest
from stand_ins import parquet, sentence

from distilwhisper_lib import resolve
from distilwhisper_lib.data import fleurs
from distilwhisper_lib.data.clips import COLUMNS, SENTENCE
from distilwhisper_lib.data.corpora import corpus_hash, load_corpus, open_corpus
from distilwhisper_lib.data.fleurs import REVISION, open_fleurs
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.speech.audio import read_audio


@pytest.fixture
def place(tmp_path):
    return tmp_path / "fleurs" / "ca_es"


@pytest.fixture
def copied(place):
    """A local copy in two files."""
    parquet(place / "test-00000-of-00002.parquet", [sentence(i) for i in range(3)])
    parquet(place / "test-00001-of-00002.parquet", [sentence(i) for i in range(3, 5)])
    return place


def read(data_dir, name="fleurs", split="test", language="ca"):
    return open_corpus(name, language, split, data_dir)


def test_a_local_copy_becomes_a_table(tmp_path, copied):
    corpus = read(tmp_path)
    table = corpus.table
    assert list(table.columns) == [*COLUMNS, SENTENCE]
    assert table["id"].tolist() == [f"test000{i}" for i in range(5)]
    assert table["text"].tolist()[:2] == ["frase 0 de fleurs test"] * 2
    assert table[SENTENCE].tolist() == ["0", "0", "1", "1", "2"]
    assert table["seconds"].tolist() == pytest.approx([1.0, 1.1, 1.2, 1.3, 1.4])
    assert set(table["speaker"]) == {""} and set(table["language"]) == {"ca"}
    assert corpus.dropped == []
    assert corpus.about == {
        "name": "fleurs",
        "licence": "CC BY 4.0",
        "source": "https://huggingface.co/datasets/google/fleurs",
        "revision": "local copy",
        "text": "transcription",
    }
    first = copied / "audio" / "local" / "test" / "test0000.wav"
    assert table["audio"][0] == str(first)
    assert first.read_bytes() == sentence(0)["audio"]["bytes"]
    assert len(read_audio(first)) == 16_000


def test_the_other_text_field_and_the_same_recordings(tmp_path, copied):
    plain, raw = (load_corpus(f"fleurs{field}", "ca", "test", tmp_path)
                  for field in ("", "/raw_transcription"))  # fmt: skip
    assert raw["text"][0] == "Frase 0, de FLEURS test."
    assert raw["audio"].tolist() == plain["audio"].tolist()
    assert read(tmp_path, "fleurs/raw_transcription").about["text"] == "raw_transcription"
    assert corpus_hash(plain) != corpus_hash(raw)


def test_it_is_unpacked_once_and_again_when_something_changed(tmp_path, copied, monkeypatch):
    unpacked = []
    unpack = fleurs.unpack_row
    monkeypatch.setattr(
        fleurs, "unpack_row", lambda row, name, to: unpacked.append(name) or unpack(row, name, to)
    )
    value = corpus_hash(read(tmp_path).table)
    read(tmp_path)
    assert len(unpacked) == 5
    (copied / "audio" / "local" / "test" / "test0003.wav").unlink()
    assert corpus_hash(read(tmp_path).table) == value and len(unpacked) == 10
    parquet(copied / "test-00001-of-00002.parquet", [sentence(9)])
    assert len(read(tmp_path).table) == 4 and len(unpacked) == 14
    folder = copied / "audio" / "local"
    assert sorted(os.listdir(folder)) == ["test", "test.lock"]  # nothing temporary is left
    assert sorted(os.listdir(folder / "test"))[0] == "clips.json"
    assert len(os.listdir(folder / "test")) == 5


def test_a_failure_half_way_leaves_what_was_there(tmp_path, copied, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(fleurs, "write_atomic", fail)
    with pytest.raises(OSError, match="disk full"):
        read(tmp_path)
    assert os.listdir(copied / "audio" / "local") == ["test.lock"]


def test_two_processes_may_unpack_at_once(tmp_path, copied):
    errors = []

    def work():
        try:
            assert len(read(tmp_path).table) == 5
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(os.listdir(copied / "audio" / "local")) == ["test", "test.lock"]


@pytest.mark.parametrize(
    "where",
    [
        "fleurs/ca_es/test.parquet",
        "fleurs/ca_es/test/0000.parquet",
        "fleurs/ca_es/fleurs-test.parquet",
        "fleurs/parquet-data/ca_es/test-00000-of-00001.parquet",
    ],
)
def test_a_copy_of_any_of_the_hub_s_branches_is_found(tmp_path, where):
    parquet(tmp_path / where, [sentence(0)])
    parquet(tmp_path / where.replace("test", "train"), [sentence(0, "train")])
    assert read(tmp_path).table["id"].tolist() == ["test0000"]
    assert read(tmp_path, split="train").table["id"].tolist() == ["train0000"]


def test_broken_recordings_and_empty_texts_are_named(tmp_path, place):
    whole = sentence(0)["audio"]["bytes"]
    rows = [
        sentence(0),
        sentence(1, audio={"bytes": b"", "path": "empty.wav"}),
        sentence(2, audio={"bytes": b"no audio" * 9, "path": "noise.wav"}),
        sentence(3, audio={"bytes": whole[: len(whole) // 2], "path": "cut.wav"}),
        sentence(4, transcription="  "),
        sentence(5, transcription=None),
        sentence(6, audio=None),
    ]
    parquet(place / "test.parquet", rows)
    corpus = read(tmp_path)
    assert corpus.table["id"].tolist() == ["test0000", "cut"][: len(corpus.table)]
    reasons = {d.id: d.reason for d in corpus.dropped}
    assert reasons["empty"] == "empty file" and reasons["test0006"] == "empty file"
    assert reasons["noise"] == "unreadable audio"
    assert reasons["test0004"] == reasons["test0005"] == "empty text"
    assert [d.detail for d in corpus.dropped if d.id == "test0004"] == [
        "transcription of sentence 2"
    ]
    assert len(read(tmp_path, "fleurs/raw_transcription").table) == len(corpus.table) + 2


def test_file_names_stay_within_their_folder_and_apart(tmp_path, place):
    data = sentence(0)["audio"]["bytes"]
    names = ["../../evil.wav", "/etc/passwd", "a.wav", "a.wav", "..\\up.wav", ".hidden.wav",
             None, "#x y.wav", "a.flac"]  # fmt: skip
    rows = [
        sentence(i, num_samples=None, path=None, audio={"bytes": data, "path": name})
        for i, name in enumerate(names)
    ]
    parquet(place / "test.parquet", rows)
    table = read(tmp_path).table
    assert table["id"].tolist() == [
        "evil", "passwd", "a", "a-3", "up", "hidden", "3-6", "_x_y", "a-8",
    ]  # fmt: skip
    folder = place / "audio" / "local" / "test"
    assert {os.path.dirname(path) for path in table["audio"]} == {str(folder)}
    assert len(os.listdir(folder)) == 10
    assert not list(tmp_path.glob("**/evil.wav"))[1:]


def test_what_is_no_parquet_of_fleurs(tmp_path, place):
    path = place / "test.parquet"
    parquet(path, [sentence(0)], without="raw_transcription")
    with pytest.raises(UserError, match="not of FLEURS: there is no column raw_transcr"):
        read(tmp_path)
    path.write_bytes(b"PAR1 or not")
    with pytest.raises(UserError, match=r"test\.parquet cannot be read \(.+\): download it again"):
        read(tmp_path)
    assert not (place / "audio" / "local" / "test").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fleurs/text", "no text field 'text': write 'fleurs/transcription'"),
        ("fleurs@", "Revision '' of FLEURS is no branch"),
        ("fleurs@../x", "is no branch or commit"),
        ("fleurs@a b", "is no branch or commit"),
        ("fleurs/raw_transcription@/x", "is no branch or commit"),
    ],
)
def test_names_that_mean_nothing(tmp_path, copied, name, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, name)


def test_unknown_splits_and_folders_that_cannot_be_written(tmp_path, copied, monkeypatch):
    with pytest.raises(UserError, match="no split 'dev': choose one of train, validation, test"):
        read(tmp_path, split="dev")

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(fleurs.tempfile, "mkdtemp", refuse)
    with pytest.raises(
        UserError, match=r"test cannot be opened .*\(Permission denied\): .* set data"
    ):
        read(tmp_path)


# The hub ---------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for snapshot_download, with one revision of one language in it."""
    calls = []
    cache = tmp_path / "cache"
    parquet(cache / "parquet-data" / "ca_es" / "test-00000-of-00001.parquet", [sentence(0)])

    def snapshot_download(repo_id, **options):
        calls.append((repo_id, options))
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_the_hub_is_asked_once_for_one_split_at_a_fixed_revision(tmp_path, hub):
    data_dir = tmp_path / "data"
    corpus = read(data_dir)
    assert read(data_dir).table.equals(corpus.table)
    options = {
        "repo_type": "dataset",
        "revision": REVISION,
        "allow_patterns": "parquet-data/ca_es/test-*.parquet",
    }
    assert hub == [("google/fleurs", options)]
    assert corpus.about["revision"] == REVISION
    assert f"audio/{REVISION}/test" in corpus.table["audio"][0]


def test_another_revision_is_another_folder(tmp_path, hub):
    data_dir = tmp_path / "data"
    read(data_dir)
    corpus = read(data_dir, "fleurs/raw_transcription@refs/pr/7")
    assert hub[1][1]["revision"] == "refs/pr/7" == corpus.about["revision"]
    assert sorted(os.listdir(data_dir / "fleurs" / "ca_es" / "audio")) == [REVISION, "refs_pr_7"]
    read(data_dir, "fleurs@main")
    assert len(hub) == 3


def test_the_hub_without_the_language_or_without_a_network(tmp_path, hub, monkeypatch):
    with pytest.raises(UserError, match=r"has no parquet-data/th_th/test-\*\.parquet"):
        read(tmp_path / "data", language="th")
    monkeypatch.undo()
    with pytest.raises(UserError, match="ca_es test cannot be had from the hub") as raised:
        open_fleurs("", "ca", "test", str(tmp_path / "data"))  # offline, as every test is
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "data").exists()


def test_a_run_takes_it_out_of_domain(tmp_path, copied, speech_folder):
    speech_folder("speech")
    settings = {"in_domain": "folder/speech", "data_dir": str(tmp_path)}
    config = resolve("clsr", "demo", "ca", 1, settings | {"out_of_domain": "fleurs"})
    data = load_data(config)
    assert len(data.out_of_domain) == 5
    described = data.describe()["out_of_domain"]
    assert described["corpus"] == "fleurs" and described["about"]["text"] == "transcription"
    json.dumps(data.report())


def test_a_recording_with_a_name_that_is_too_long_gets_another(tmp_path, place):
    good = sentence(0)["audio"]["bytes"]
    names = [f"{'a' * 300}.wav", f"{'ñ' * 150}.wav", f"b.{'w' * 300}", "clips.json"]
    rows = [sentence(0, audio={"bytes": good, "path": name}) for name in names]
    parquet(place / "test.parquet", rows)
    table = read(tmp_path).table
    assert table["id"].tolist() == ["0-0", "0-1", "b", "clips"]
    assert all(len(read_audio(path)) == 16_000 for path in table["audio"])


def test_names_that_meet_stay_apart(tmp_path, place):
    rows = [sentence(i) for i in range(4)]
    for row, name in zip(rows, ["a-2.wav", "a.wav", "a.wav", "a-2.wav"], strict=True):
        row["audio"] = row["audio"] | {"path": name}
    parquet(place / "test.parquet", rows)
    table = read(tmp_path).table
    assert table["id"].tolist() == ["a-2", "a", "a-3", "a-2-3"]
    lengths = [len(read_audio(path)) for path in table["audio"]]
    assert lengths == [16_000, 17_600, 19_200, 20_800]


@pytest.mark.parametrize(
    "index",
    ['{"clips":[{}]}', '{"clips":[1]}', "[]", "1", '{"clips":[]}', "[" * 100_000,
     '{"files":[],"clips":[],"broken":[{}]}'],
)  # fmt: skip
def test_a_spoilt_index_is_made_anew(tmp_path, copied, index):
    read(tmp_path)
    (copied / "audio" / "local" / "test" / "clips.json").write_text(index)
    assert len(read(tmp_path).table) == 5

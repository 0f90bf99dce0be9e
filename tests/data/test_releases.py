"""Archives: unpacked whole or not at all, never outside their folder; downloads by a stand-in."""

from __future__ import annotations

import gzip
import os
import sys
import tarfile
import tracemalloc
import types

import pytest
from stand_ins import clip, hostile_release, release, tarball, three_tables

from distilwhisper_lib.data import common_voice
from distilwhisper_lib.data.common_voice import KEY, download_common_voice, unpack_common_voice
from distilwhisper_lib.data.corpora import open_corpus
from distilwhisper_lib.errors import UserError

VERSION = "cv-corpus-13.0-2023-03-09"


@pytest.fixture
def built(tmp_path):
    return release(tmp_path / "built", three_tables())


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 1):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size if kind == tarfile.REGTYPE else 0
    return info


def everything(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def test_an_archive_becomes_a_release(tmp_path, data_dir, built):
    archive = tarball(tmp_path / "ca.tar.gz", built, f"{VERSION}/ca")
    folder = unpack_common_voice(archive, data_dir / "common_voice")
    assert folder == data_dir / "common_voice" / VERSION / "ca"
    assert os.listdir(data_dir / "common_voice") == [VERSION]
    corpus = open_corpus("common_voice", "ca", "train", data_dir)
    assert len(corpus.table) == 3 and corpus.about["release"] == VERSION
    assert archive.exists()


def test_a_second_language_of_a_release_joins_the_first(tmp_path, data_dir, built):
    for code in ("ca", "gl"):
        archive = tarball(tmp_path / f"{code}.tar.gz", built, f"./{VERSION}/{code}")
        unpack_common_voice(str(archive), str(data_dir / "common_voice"))
    assert sorted(os.listdir(data_dir / "common_voice" / VERSION)) == ["ca", "gl"]
    plain = tarball(tmp_path / "hu.tar.gz", built, "hu")
    assert unpack_common_voice(plain, data_dir / "common_voice").name == "hu"
    assert len(open_corpus("common_voice", "hu", "test", data_dir).table) == 3


def test_unpacking_again_loses_nothing(tmp_path, data_dir, built):
    archive = tarball(tmp_path / "ca.tar.gz", built, f"{VERSION}/ca")
    folder = unpack_common_voice(archive, data_dir)
    (folder / "notes.txt").write_text("mine")
    before = everything(data_dir)
    with pytest.raises(UserError, match="exists, so .*ca.tar.gz seems to be unpacked already"):
        unpack_common_voice(archive, data_dir)
    assert everything(data_dir) == before
    other = tmp_path / "other" / VERSION / "ca"
    other.mkdir(parents=True)
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists: move it away before unpacking"):
        unpack_common_voice(archive, tmp_path / "other")
    assert [path.name for path in everything(tmp_path / "other")] == ["notes.txt"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (member("../evil.mp3"), r"'\.\./evil\.mp3', which leads out"),
        (member(f"{VERSION}/ca/clips/../../../../evil"), "which leads out"),
        (member("/tmp/evil.mp3"), "'/tmp/evil.mp3', which leads out"),
        (member("..\\evil.mp3"), "which leads out"),
        (member(f"{VERSION}/ca/clips/a.mp3", tarfile.SYMTYPE, "/etc/passwd"), "a link or device"),
        (member(f"{VERSION}/ca/in.mp3", tarfile.SYMTYPE, "train.tsv"), "a link or device"),
        (member(f"{VERSION}/ca/b.mp3", tarfile.LNKTYPE, f"{VERSION}/ca/train.tsv"), "a link or"),
        (member(f"{VERSION}/ca/null", tarfile.CHRTYPE), "a link or device"),
        (member(f"{VERSION}/ca/pipe", tarfile.FIFOTYPE), "a link or device"),
    ],
)
def test_a_hostile_member_stops_everything(tmp_path, data_dir, built, extra, message):
    archive = tarball(tmp_path / "bad.tar.gz", built, f"{VERSION}/ca", extra)
    with pytest.raises(UserError, match=message) as error:
        unpack_common_voice(archive, data_dir)
    assert "\n" not in str(error.value) and "do not trust it" in str(error.value)
    assert everything(data_dir) == []
    assert not list(tmp_path.glob("**/evil*"))


@pytest.mark.parametrize("name", ["ca/train.tsv", "./ca/train.tsv", "ca/clips/../train.tsv"])
def test_a_file_that_stands_twice_is_refused(tmp_path, data_dir, built, name):
    """The second would take the place of the first, which a reader may have looked at."""
    twice = tarball(tmp_path / "bad.tar.gz", built, f"{VERSION}/ca", member(f"{VERSION}/{name}"))
    wrong = "leads out" if ".." in name else "train.tsv', which it holds twice: do not trust it"
    with pytest.raises(UserError, match=wrong):
        unpack_common_voice(twice, data_dir)
    assert everything(data_dir) == []


def test_a_hostile_release_in_an_archive_drops_its_link_only_when_it_is_one(tmp_path, data_dir):
    folder = hostile_release(tmp_path / "built")
    with pytest.raises(UserError, match="common_voice_ca_link.mp3', a link or device"):
        unpack_common_voice(tarball(tmp_path / "a.tar.gz", folder, f"{VERSION}/ca"), data_dir)
    (folder / "clips" / "common_voice_ca_link.mp3").unlink()
    archive = tarball(tmp_path / "b.tar.gz", folder, f"{VERSION}/ca")
    unpack_common_voice(archive, data_dir / "common_voice")
    assert len(open_corpus("common_voice", "ca", "train", data_dir).table) > 6


@pytest.mark.parametrize(
    ("cap", "value", "message"),
    [
        ("MAX_BYTES", 20_000, "unpacks to more than 20000 bytes"),
        ("MAX_MEMBERS", 5, "or 5 files"),
    ],
)
def test_caps_hold_before_the_bytes_are_written(
    tmp_path, data_dir, built, monkeypatch, cap, value, message
):
    archive = tarball(tmp_path / "ca.tar.gz", built, f"{VERSION}/ca")
    monkeypatch.setattr(common_voice, cap, value)
    with pytest.raises(UserError, match=message):
        unpack_common_voice(archive, data_dir)
    assert everything(data_dir) == []


def test_a_disk_that_is_too_small_is_noticed_before_it_is_full(
    tmp_path, data_dir, built, monkeypatch
):
    archive = tarball(tmp_path / "ca.tar.gz", built, f"{VERSION}/ca")
    monkeypatch.setattr(
        common_voice.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10_000)
    )
    with pytest.raises(UserError, match="more than 10000 bytes.*make room on the disk"):
        unpack_common_voice(archive, data_dir)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_an_archive_that_was_cut_short(tmp_path, data_dir, built, share):
    archive = tarball(tmp_path / "ca.tar.gz", built, f"{VERSION}/ca")
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"is no complete \.tar\.gz \(.+\): download it again"):
        unpack_common_voice(archive, data_dir)
    assert everything(data_dir) == []


def test_an_archive_with_a_flipped_bit_fails_its_checksum(tmp_path, data_dir, built):
    archive = tarball(tmp_path / "ca.tar.gz", built, f"{VERSION}/ca")
    data = bytearray(archive.read_bytes())
    data[-6] ^= 1  # of the checksum at the end
    archive.write_bytes(data)
    with pytest.raises(UserError, match="is no complete .tar.gz .*CRC"):
        unpack_common_voice(archive, data_dir)


def test_what_is_no_archive_of_a_language(tmp_path, data_dir, built):
    with pytest.raises(UserError, match=r"none\.tar\.gz does not exist"):
        unpack_common_voice(tmp_path / "none.tar.gz", data_dir)
    for content in (b"", b"PK\x03\x04 a zip", b"<html>"):
        (tmp_path / "x.tar.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"no complete \.tar\.gz|holds 0 folders"):
            unpack_common_voice(tmp_path / "x.tar.gz", data_dir)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(b"words"))
    with pytest.raises(UserError, match="no complete"):
        unpack_common_voice(tmp_path / "x.tar.gz", data_dir)
    two = tmp_path / "two"
    for code in ("ca", "gl"):
        release(two / code, {"train.tsv": [clip("train", 0)]})
    with pytest.raises(UserError, match="holds 2 folders with clips/"):
        unpack_common_voice(tarball(tmp_path / "two.tar.gz", two, VERSION), data_dir)
    (built / "train.tsv").rename(built / "other.txt")
    for name in ("dev.tsv", "test.tsv"):
        (built / name).unlink()
    with pytest.raises(UserError, match="holds 0 folders with clips/"):
        unpack_common_voice(tarball(tmp_path / "ca.tar.gz", built, "ca"), data_dir)


def test_an_old_python_is_told_so(tmp_path, data_dir, built, monkeypatch):
    archive = tarball(tmp_path / "ca.tar.gz", built, "ca")
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(UserError, match="update to 3.11.4"):
        unpack_common_voice(archive, data_dir)


# Mozilla's client ------------------------------------------------------------------------------


@pytest.fixture
def client(tmp_path, built, monkeypatch):
    """A stand-in for the package datacollective, which copies an archive and notes its calls."""
    archive = tarball(tmp_path / "served.tar.gz", built, f"{VERSION}/ca")
    module = types.ModuleType("datacollective")
    module.calls = []

    def download_dataset(dataset_id, download_directory=None):
        module.calls.append((dataset_id, download_directory))
        os.makedirs(download_directory, exist_ok=True)
        target = os.path.join(download_directory, "ca.tar.gz")
        with open(target, "wb") as file:
            file.write(archive.read_bytes())
        return target

    module.download_dataset = download_dataset
    monkeypatch.setitem(sys.modules, "datacollective", module)
    monkeypatch.setenv(KEY, "a-secret")
    return module


def test_a_download_is_unpacked(data_dir, client):
    folder = download_common_voice("cminc35no007no707hql26lzk", data_dir)
    assert folder == data_dir / "common_voice" / VERSION / "ca"
    downloads = data_dir / "common_voice" / "downloads"
    assert client.calls == [("cminc35no007no707hql26lzk", str(downloads))]
    assert (downloads / "ca.tar.gz").exists()
    assert len(open_corpus("common_voice", "ca", "train", data_dir).table) == 3


def test_without_key_client_or_id_nothing_is_asked_for(data_dir, client, monkeypatch):
    for wrong in ("", "a/b", "https://x", "../x"):
        with pytest.raises(UserError, match=r"Data set id .* is none: take the last part"):
            download_common_voice(wrong, data_dir)
    monkeypatch.delenv(KEY)
    with pytest.raises(UserError, match="MDC_API_KEY is not set"):
        download_common_voice("x", data_dir)
    assert client.calls == []
    monkeypatch.setitem(sys.modules, "datacollective", None)
    with pytest.raises(UserError, match="pip install 'datacollective>="):
        download_common_voice("x", data_dir)
    assert not data_dir.exists()


@pytest.mark.parametrize(
    "error",
    [
        PermissionError("terms not agreed to\nsecond line"),
        FileNotFoundError("no such data set"),
        RuntimeError("the key is expired."),
        ConnectionError("no network"),
        Exception(),
    ],
)
def test_what_mozilla_refuses_is_one_sentence(data_dir, client, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(client, "download_dataset", refuse)
    with pytest.raises(
        UserError, match="'x' could not be downloaded .*agree to its terms"
    ) as raised:
        download_common_voice("x", data_dir)
    assert "\n" not in str(raised.value)
    assert "a-secret" not in str(raised.value)


# Archives that were made to do harm -------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ca/x", "ca/x/y"], "cannot be unpacked"),
        (["ca/x/", "ca/x"], "cannot be unpacked"),
        (["ca/" + "a" * 300], "cannot be unpacked .*name too long"),
        (["ca/" + "a/" * 3000 + "b"], "which lies 3002 folders deep, more than 32"),
        (["ca/" + "a/" * 3000], "which lies 3001 folders deep, more than 32"),
    ],
)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_member_that_the_disk_refuses(tmp_path, data_dir, names, message, form):
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz", format=form) as archive:
        for name in names:
            archive.addfile(member(name, tarfile.DIRTYPE if name[-1] == "/" else b"0", size=0))
    with pytest.raises(UserError, match=f"(?i){message}") as error:
        unpack_common_voice(tmp_path / "bad.tar.gz", data_dir)
    assert len(str(error.value)) < 700
    assert list(data_dir.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, built):
    archive = tarball(tmp_path / "ca.tar.gz", built, f"{VERSION}/ca")
    with pytest.raises(UserError, match="cannot be unpacked to .*: check that the folder can be"):
        unpack_common_voice(archive, archive)


def header(kind: bytes, size: int, **others) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    for name, value in others.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(**values: object) -> bytes:
    return tarfile.TarInfo.create_pax_global_header({k: str(v) for k, v in values.items()})


def record(kind: bytes, size: int) -> bytes:
    return header(kind, size) + b"a" * size


SPARSE = pax(**{"GNU.sparse.major": 1, "GNU.sparse.minor": 0})
TOO_LONG = "a header of more than 32768 bytes: do not trust it"
CUT = "no complete|holds 0 folders"


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (record(b"L", 2**17), TOO_LONG),
        (record(b"K", 2**17), TOO_LONG),
        (record(b"x", 2**17), TOO_LONG),
        (record(b"X", 2**17), TOO_LONG),
        (record(b"g", 2**17), TOO_LONG),
        (record(b"L", 2**13) * 8, TOO_LONG),
        (header(b"5", 2**18) + record(b"L", 2**17), TOO_LONG),
        (header(b"x", 700 * 2**20), CUT),
        (header(b"L", -700 * 2**20), CUT),
        (header(b"0", -512), "'x', with a size of -512 bytes: do not trust"),
        (pax(size=-512) + header(b"0", 0), "holds 0 folders|with a size of -512 bytes"),
        (header(b"S", 0) + header(b"0", 0), "a sparse file, which Common Voice does not"),
        (SPARSE + header(b"0", 512) + b"1\n0\n1\n".ljust(512, b"\0"), "a sparse file"),
        (SPARSE + header(b"0", 0), "cannot be unpacked"),
        (pax(**{"GNU.sparse.map": "0,1"}) + header(b"0", 1) + b"\0" * 512, "a sparse file"),
        (header(b"L", 0) * 2000 + header(b"0", 0), TOO_LONG),
        (pax(path="a\0b") + header(b"0", 0), "holds|cannot"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_records_before_a_member_are_capped(tmp_path, data_dir, records, message, first):
    data = (b"" if first else header(b"0", 0, name="ca/a")) + records + b"\0" * 1024
    (tmp_path / "bad.tar.gz").write_bytes(gzip.compress(data))
    with pytest.raises(UserError, match=message) as error:
        unpack_common_voice(tmp_path / "bad.tar.gz", data_dir)
    assert "bad.tar.gz" in str(error.value) and "\n" not in str(error.value)
    assert list(data_dir.iterdir()) == []


@pytest.mark.parametrize("kind", [b"L", b"x"])
def test_a_header_that_unpacks_to_gigabytes_fills_no_memory(tmp_path, data_dir, kind):
    with gzip.open(tmp_path / "bad.tar.gz", "wb", compresslevel=1) as archive:
        archive.write(header(kind, 2**40))
        for _ in range(64):
            archive.write(b"a" * 2**20)
    tracemalloc.start()
    with pytest.raises(UserError, match=TOO_LONG):
        unpack_common_voice(tmp_path / "bad.tar.gz", data_dir)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_names_of_some_length_are_fine(tmp_path, data_dir, built):
    (built / "clips" / f"{'a' * 200}.mp3").write_bytes(b"x")
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "ca.tar.gz", "w:gz", format=form) as archive:
            archive.add(built, f"{form}/ca")
        folder = unpack_common_voice(tmp_path / "ca.tar.gz", data_dir)
        assert (folder / "clips" / f"{'a' * 200}.mp3").read_bytes() == b"x"

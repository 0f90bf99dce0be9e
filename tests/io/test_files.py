"""Files are whole or not there."""

from __future__ import annotations

import os
import threading

import pytest

from distilwhisper_lib.io import files


def test_write_atomic_writes_bytes_text_and_new_folders(tmp_path):
    path = files.write_atomic(tmp_path / "a" / "b.txt", "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    files.write_atomic(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert os.listdir(path.parent) == ["b.txt"]


def test_write_atomic_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = files.write_atomic(tmp_path / "a.txt", "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_write_atomic_never_shows_half_a_file(tmp_path):
    path, texts = tmp_path / "a.txt", ("a" * 200_000, "b" * 200_000)
    files.write_atomic(path, texts[0])
    writers = [
        threading.Thread(target=lambda t=t: [files.write_atomic(path, t) for _ in range(10)])
        for t in texts
    ]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(path.read_text())
    assert seen <= set(texts)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_write_atomic_makes_files_that_others_can_read(tmp_path):
    old = os.umask(0o022)
    try:
        path = files.write_atomic(tmp_path / "a.txt", "x")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o644

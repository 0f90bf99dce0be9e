"""Decoding in a child: the same samples, and a codec that hangs or crashes costs one sentence."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from distilwhisper_lib.data.inspection import inspect_clip
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.explorer.runs import own_clip, read_clip
from distilwhisper_lib.speech import audio
from distilwhisper_lib.speech import guarded as decoding


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.sin(np.arange(24_000) / 9) / 3, 24_000)
    return path


@pytest.fixture
def alone():
    """No child is left of earlier tests, and none for later ones."""
    decoding.close()
    yield
    decoding.close()


def test_a_child_gives_what_this_process_gives(clip):
    expected = audio.read_audio(clip)
    for source in (clip, str(clip), clip.read_bytes()):
        given = decoding.read_audio(source)
        np.testing.assert_array_equal(given, expected)
        given += 1  # the caller owns it
    np.testing.assert_array_equal(decoding.read_audio(clip, 0.25, 0.5), expected[4000:8000])
    assert decoding.header_seconds(clip) == audio.audio_seconds(clip)
    assert decoding.decoded_seconds(clip) == audio.decoded_seconds(clip) == 1.0


def test_faults_are_told_in_the_same_words(clip, monkeypatch):
    monkeypatch.chdir(clip.parent)
    (clip.parent / "b.wav").write_bytes(b"RIFF" + bytes(60))
    for source in ("nowhere.wav", "b.wav", ".", "a" * 300, b"", b"x" * 50):
        said = []
        for read in (audio.read_audio, decoding.read_audio):
            with pytest.raises(UserError) as refused:
                read(source)
            said.append(str(refused.value))
        assert said[0] == said[1]


def test_a_decoder_that_hangs_is_ended_and_the_next_clip_has_another(clip, alone, monkeypatch):
    decoding.header_seconds(clip)
    (child,) = decoding.IDLE
    monkeypatch.setattr(decoding, "SECONDS", 0.3)
    os.kill(child.process.pid, signal.SIGSTOP)  # as a loop within a codec looks from here
    with pytest.raises(UserError, match=r"a.flac cannot be read \(its decoder ran for more than"):
        decoding.header_seconds(clip)
    assert child.process.poll() is not None
    assert decoding.header_seconds(clip) == 1.0


def test_a_decoder_that_crashes_is_a_fault_of_the_clip(clip, alone):
    decoding.header_seconds(clip)
    (child,) = decoding.IDLE
    os.kill(child.process.pid, signal.SIGSTOP)
    os.kill(child.process.pid, signal.SIGSEGV)  # waits for the next question
    with pytest.raises(UserError, match="memory cannot be read .*decoder crashed.* leave it out"):
        os.kill(child.process.pid, signal.SIGCONT)
        time.sleep(0.05)
        child.ask("read_audio", clip.read_bytes(), [None, None])
    assert inspect_clip(clip, clip.parent.resolve()).seconds == 1.0


def test_a_child_tells_how_it_ended(clip, alone, monkeypatch):
    monkeypatch.setattr(decoding.sys, "executable", shutil.which("false"))
    with pytest.raises(UserError, match="its decoder ended with status 1"):
        decoding.header_seconds(clip)


def test_what_lies_where_the_user_stands_is_no_module_of_a_child(clip, alone, monkeypatch):
    for name in ("numpy.py", "json.py", "distilwhisper_lib.py"):
        (clip.parent / name).write_text("raise SystemExit(3)")
    monkeypatch.chdir(clip.parent)
    assert decoding.header_seconds(clip) == 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps the limit")
def test_a_recording_that_takes_too_much_memory_is_refused(tmp_path, clip, alone, monkeypatch):
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(16_000 * 1800, np.int16), 16_000)  # 115 MB as samples
    decoding.header_seconds(clip)
    with open(f"/proc/{decoding.IDLE[0].process.pid}/statm") as file:
        in_use = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    decoding.close()
    monkeypatch.setattr(decoding, "ADDRESS_BYTES", in_use + 80 * 2**20)
    with pytest.raises(UserError, match="long.flac cannot be read .*more memory"):
        decoding.read_audio(path)
    assert len(decoding.read_audio(clip)) == 16_000


PARENT = """
import os, sys, time
from distilwhisper_lib.speech import guarded as decoding
decoding.header_seconds(sys.argv[1])
child = decoding.IDLE[0].process.pid
if os.fork() == 0:  # inherits the pipe, which then stays open when the parent is gone
    assert decoding.header_seconds(sys.argv[1]) == 1.0  # of a child of its own
    print(decoding.IDLE[0].process.pid != child, child, flush=True)
    time.sleep(20)
    os._exit(0)
time.sleep(60)
"""


def test_a_child_ends_with_its_parent_and_is_not_shared_after_a_fork(clip):
    """The parent is read from standard input: it has no file, as a notebook has none."""
    parent = subprocess.Popen(
        [sys.executable, "-", str(clip)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    parent.stdin.write(PARENT)
    parent.stdin.close()
    own, child = parent.stdout.readline().split()
    assert own == "True"
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _runs(int(child)):
        time.sleep(0.1)
    assert not _runs(int(child))


def _runs(process: int) -> bool:
    told = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True)
    return bool(told.stdout.strip()) and not told.stdout.startswith("Z")  # nobody may reap it


def test_an_upload_is_decoded_in_a_child(clip, monkeypatch):
    asked = []
    real = decoding.Child.ask
    monkeypatch.setattr(
        decoding.Child, "ask", lambda self, *given: asked.append(given[0]) or real(self, *given)
    )
    assert len(read_clip(own_clip("a.flac", clip.read_bytes(), "ca"))) == 16_000
    with pytest.raises(UserError, match="b.mp3 .*cannot be read"):
        read_clip(own_clip("b.mp3", b"no recording", "ca"))
    assert asked == ["read_audio"] * 2

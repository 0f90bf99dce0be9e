"""Decoding what nobody has vouched for, in a child process with caps on time and memory.

A codec is C code that reads what a stranger wrote: a file can make it run for ever or crash, and a
crash takes the whole process along. So a recording is decoded here first: when a corpus is checked
(data/inspection.py), unpacked (data/fleurs.py), or when somebody brings one (the explorer).
What has passed is read in place by `audio.read_audio` from then on, at no extra cost; file and
check are tied together by size and date, and in records by digest.

These are caps, not a jail: the child has its user's rights. It needs numpy, soundfile, soxr and,
for what these cannot read, PyAV, and is started as a program of its own, so that it works in
notebooks, without a guard in ``__main__``, and on every system. It ends with its parent.

    python -m distilwhisper_lib.speech.guarded    (what `Child` starts; it speaks over its pipes)
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from distilwhisper_lib import PACKAGE
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.speech import audio, headers

# Generous: decoding an hour of Opus takes seconds. A cap this side of for ever is all it takes.
SECONDS, SECONDS_PER_MIB = 30.0, 5.0
# Addresses, not memory in use: the largest recording takes 1 GiB of file and 0.7 GiB of samples.
ADDRESS_BYTES = 4 * 2**30
_START_SECONDS = 120.0  # of a child, on a machine that is busy
_LENGTH = struct.Struct("<Q")
_WORK = {
    "header_seconds": lambda source, given: audio.audio_seconds(source),
    "listen": lambda source, given: audio.listen(source, *given),
    "read_audio": lambda source, given: audio.read_audio(source, *given),
}


def header_seconds(path: str | Path) -> float:
    """`audio.audio_seconds` in a child."""
    return _ask("header_seconds", path)


def decoded_seconds(source: headers.Readable, far: float = math.inf) -> float:
    """`audio.decoded_seconds` in a child."""
    return listen(source, far).seconds


def listen(source: headers.Readable, far: float = math.inf) -> audio.Heard:
    """`audio.listen` in a child."""
    seconds, silences, notes = _ask("listen", source, far)
    return audio.Heard(seconds, tuple(map(tuple, silences)), tuple(notes))


def read_audio(
    source: headers.Readable, start: float | None = None, end: float | None = None
) -> np.ndarray:
    """`audio.read_audio` in a child: float32 (samples,), 16 kHz, mono.

    Errors as there, and `UserError` when the decoder crashes, or takes more time or memory than
    any honest recording does.
    """
    return _ask("read_audio", source, start, end)


def _ask(work: str, source: headers.Readable, *given: Any) -> Any:
    """Let a free child do it, or a new one; a child that was lost is not used again."""
    child = _take()
    try:
        answer = child.ask(work, source, list(given))
    except UserError:
        _give_back(child)
        raise
    except BaseException:  # an interrupt between question and answer: they would be out of step
        child.end()
        raise
    _give_back(child)
    return answer


# Children ------------------------------------------------------------------------------------

IDLE: list[Child] = []  # one a thread that decodes, at most
_LOCK = threading.Lock()


def _take() -> Child:
    with _LOCK:
        while IDLE:
            child = IDLE.pop()
            if child.is_mine():
                return child
    return Child()


def _give_back(child: Child) -> None:
    if child.is_mine():
        with _LOCK:
            IDLE.append(child)


def close() -> None:
    """End the children that wait for work; the next question starts another."""
    with _LOCK:
        idle, IDLE[:] = list(IDLE), []
    for child in idle:
        child.end()


atexit.register(close)
if hasattr(os, "register_at_fork"):  # a forked worker has its own children, and a free lock
    os.register_at_fork(after_in_child=lambda: (IDLE.clear(), _renew_lock()))


def _renew_lock() -> None:
    global _LOCK
    _LOCK = threading.Lock()


class Child:
    """One process that decodes, question by question."""

    def __init__(self) -> None:
        package = str(PACKAGE.resolve().parent)
        search = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._owner = os.getpid()
        self.process = subprocess.Popen(
            # -P: nothing that lies where the program was started stands in for a module
            [sys.executable, "-P", "-m", "distilwhisper_lib.speech.guarded", str(self._owner)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # codecs complain there about every odd file
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(search),
                "OMP_NUM_THREADS": "1",  # threads would take addresses for their stacks
                "OPENBLAS_NUM_THREADS": "1",
                "DISTILWHISPER_ADDRESS_BYTES": str(ADDRESS_BYTES),
            },
            start_new_session=True,  # a Ctrl-C is for the parent
        )
        self._started = False

    def is_mine(self) -> bool:
        """Whether it runs and belongs to this process rather than to the one this was forked of."""
        return self._owner == os.getpid() and self.process.poll() is None

    def end(self) -> None:
        if self._owner == os.getpid():
            self.process.kill()
            for pipe in (self.process.stdin, self.process.stdout):
                try:
                    pipe.close()
                except OSError:  # what was still to be written to it
                    pass
            self.process.wait()

    def ask(self, work: str, source: headers.Readable, given: list[Any]) -> Any:
        """The answer; `UserError` for the child's own, and when it is lost."""
        raw = bytes(source) if isinstance(source, bytes | bytearray | memoryview) else None
        size = len(raw) if raw is not None else _size(source)
        seconds = SECONDS + SECONDS_PER_MIB * size / 2**20
        cap = seconds if self._started else seconds + _START_SECONDS
        place = None if raw is not None else os.path.abspath(source)
        late = threading.Event()

        def kill() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(cap, kill)
        timer.daemon = True
        timer.start()
        try:
            question = {"work": work, "path": place, "given": given}
            _write(self.process.stdin, json.dumps(question).encode(), raw or b"")
            told, samples = _read(self.process.stdout)
        except (OSError, EOFError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)  # it tells how it ended, if it is not end() that ends it
            self.end()
            raise _lost(source, seconds if late.is_set() else None, self.process) from None
        finally:
            timer.cancel()
        self._started = True
        answer = json.loads(told)
        if "error" in answer:
            raise UserError(answer["error"].replace(place or "\0", str(source)))
        return answer["told"] if "told" in answer else np.frombuffer(samples, np.float32)


def _size(path: str | Path) -> int:
    try:
        return min(os.stat(path).st_size, headers.MAX_BYTES)
    except (OSError, ValueError):  # the child says what is wrong
        return 0


def _lost(source: headers.Readable, cap: float | None, child: subprocess.Popen) -> UserError:
    name = headers.name_of(source)
    if cap is not None:
        what = f"its decoder ran for more than {cap:.0f} s"
    elif child.returncode and child.returncode < 0:
        what = f"its decoder crashed ({signal.Signals(-child.returncode).name})"
    else:
        what = f"its decoder ended with status {child.returncode}"
    return UserError(
        f"{name} cannot be read ({what}): leave it out, or convert it to WAV with another program."
    )


# Messages: the lengths of both parts, then JSON, then bytes ---------------------------------


def _write(pipe: BinaryIO, told: bytes, raw: bytes | memoryview) -> None:
    pipe.write(_LENGTH.pack(len(told)) + _LENGTH.pack(len(raw)) + told)
    pipe.write(raw)
    pipe.flush()


def _read(pipe: BinaryIO) -> tuple[bytes, bytearray]:
    first, second = (_LENGTH.unpack(_exactly(pipe, _LENGTH.size))[0] for _ in range(2))
    return bytes(_exactly(pipe, first)), _exactly(pipe, second)


def _exactly(pipe: BinaryIO, count: int) -> bytearray:
    read = bytearray(count)
    view, filled = memoryview(read), 0
    while filled < count:
        got = pipe.readinto(view[filled:])
        if not got:
            raise EOFError
        filled += got
    return read


# The inside of the child ---------------------------------------------------------------------


def _serve(parent: int) -> None:
    """Answer until the parent is gone."""
    questions = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "r+b") as null:  # whatever a library prints is no answer
        os.dup2(null.fileno(), 0)
        os.dup2(null.fileno(), 1)
    _limit(int(os.environ["DISTILWHISPER_ADDRESS_BYTES"]))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    while True:
        try:
            told, raw = _read(questions)
        except EOFError:
            return
        try:
            answer, samples = _answer(json.loads(told), raw)
        except UserError as error:
            answer, samples = {"error": str(error)}, b""
        except MemoryError:
            source = json.loads(told)["path"] or bytes(raw)
            said = "decoding it takes more memory than any recording should"
            answer = {"error": f"{headers.name_of(source)} cannot be read ({said}): leave it out."}
            samples = b""
        _write(answers, json.dumps(answer).encode(), samples)


def _answer(question: dict[str, Any], raw: bytearray) -> tuple[dict[str, Any], Any]:
    source = bytes(raw) if question["path"] is None else question["path"]
    found = _WORK[question["work"]](source, question["given"])
    if isinstance(found, np.ndarray):
        return {}, memoryview(np.ascontiguousarray(found)).cast("B")
    return {"told": found}, b""


def _limit(address_bytes: int) -> None:
    """As far as the system knows such limits; macOS takes the first and does not keep it."""
    try:
        import resource

        for name, cap in (("RLIMIT_AS", address_bytes), ("RLIMIT_CORE", 0)):
            _, hard = resource.getrlimit(getattr(resource, name))
            cap = cap if hard == resource.RLIM_INFINITY else min(cap, hard)
            resource.setrlimit(getattr(resource, name), (cap, hard))
    except (ImportError, OSError, ValueError):
        pass


def _end_with(parent: int) -> None:
    """A closed pipe ends a child that waits; this ends one that is busy, or whose pipe a third
    process has inherited."""
    while os.getppid() == parent or os.name == "nt":
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))

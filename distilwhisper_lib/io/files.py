"""Writing files so that none is ever read half-written, and folders so that one process does."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distilwhisper_lib.io.disk import told


def write_atomic(path: str | Path, content: str | bytes) -> Path:
    """Write ``content`` so that ``path`` holds either its old content or all of the new one.

    The folder is made when missing. Text is written as UTF-8 with line feeds. Raises DiskError
    when the disk does not take it.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes files that only the owner can read
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # what went wrong before tells more
                os.unlink(temporary)
            raise
    return path


@contextmanager
def alone(folder: Path, doing: str, suffix: str = ".lock") -> Iterator[None]:
    """Hold a folder's lock, ``<folder>.lock``, which dies with the process that holds it.

    Who has to wait says so: "another process is <doing> in <folder>: waiting". Another ``suffix``
    is another lock.
    """
    with told(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}{suffix}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"another process is {doing} in {folder}: waiting", flush=True)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_to_disk(path: str | Path) -> None:
    """Wait until a file that others wrote is on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds; ValueError for all that is none.

    That includes what json raises other errors for, or accepts and nothing can be done with: lists
    in lists without an end, and half of a character (a lone surrogate), which no file can hold.
    """
    try:
        value = json.loads(text)
        if (b"\\ud" if isinstance(text, bytes) else "\\ud") in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("holds half of a character") from None
    return value

"""Files written whole or not at all, folders that one process writes to, and a full disk told."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from distilwhisper_lib.errors import DiskError, UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}
# Of a drive that was unmounted, or a share whose server went away.
_GONE = {
    errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.ENOTCONN, errno.ENODEV, errno.ENXIO,
    getattr(errno, "ESTALE", errno.EIO),
}  # fmt: skip
# How torch.save fails, which keeps the reason to itself.
_TORCH = ("inline_container.cc", "iostream error", "Parent directory")
_PROBE = bytes(2**16)


@contextmanager
def told(where: str | Path, otherwise: str = "") -> Iterator[None]:
    """Raise what a disk refuses in this block as a DiskError that names the path and the remedy.

    ``where`` stands for the path where an error names none; ``otherwise`` is one more remedy. Any
    other error stays what it is.
    """
    more = otherwise and f", or {otherwise}"
    try:
        yield
    except DiskError as error:
        raise DiskError(error.errno, f"{error}{more}") from None
    except UserError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        number = _number(error, Path(where))
        if (sentence := _sentence(number, _path(error, where))) is None:
            raise
        raise DiskError(number, sentence + more) from None


def _sentence(number: int | None, path: str) -> str | None:
    said = os.strerror(number) if number else ""
    again = "and run again, which goes on from what is finished"
    if number in _FULL:
        return f"{path} cannot be written, the disk is full ({said}): make room there {again}"
    if number in _CLOSED:
        return f"{path} cannot be opened or written ({said}): mend its permissions {again}"
    if number in _GONE:
        return f"{path} is gone ({said}): bring its folder back (mount the drive again) {again}"
    return None


def _number(error: Exception, where: Path) -> int | None:
    """The operating system's number for what went wrong; None where it was something else."""
    if isinstance(error, OSError):
        lost = isinstance(error, FileNotFoundError) and str(error).startswith("No such file")
        return error.errno or (errno.ENOENT if lost else None)  # safetensors gives no number
    if isinstance(error, SafetensorError):
        found = re.search(r"\(os error (\d+)\)", str(error))
        return int(found[1]) if found else None
    return _ask(where) if any(word in str(error) for word in _TORCH) else None


def _ask(where: Path) -> int | None:
    """What the disk says when it is asked once more to take a file."""
    folder = next((p for p in (where, *where.parents) if p.is_dir()), Path())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(_PROBE)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno
    return errno.ENOENT if folder != where and not where.parent.is_dir() else None


def _path(error: Exception, where: str | Path) -> str:
    """The file that an error names, unless it is a temporary one that nobody knows."""
    name = getattr(error, "filename", None)
    return name if isinstance(name, str) and not name.endswith(".tmp") else str(where)


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

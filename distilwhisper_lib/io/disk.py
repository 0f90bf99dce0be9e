"""What a disk refuses, said in one sentence: it is full, may not be written, or is gone."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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

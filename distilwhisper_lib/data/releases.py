"""Getting Common Voice: Mozilla's archive of one language, unpacked safely or downloaded first."""

from __future__ import annotations

import gzip
import importlib
import os
import reprlib
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import IO

from distilwhisper_lib.data.common_voice import CLIPS, FOLDER, SITE, TABLES
from distilwhisper_lib.data.inspection import MEMORY
from distilwhisper_lib.errors import UserError, reason
from distilwhisper_lib.io.files import alone

# Above every release so far (English, 25.0: 90 GB in 2.5 million clips), below a bomb.
MAX_BYTES = 2**38
MAX_MEMBERS = 10_000_000
MAX_DEPTH = 32  # folders in folders; Mozilla has 3, and Python cannot remove 1,000
_NAMES = reprlib.Repr()  # a member's name may have a million characters
_NAMES.maxstring = 200
MAX_RECORDS = 2**20  # bytes of the records that tell one member's long name
KEY = "MDC_API_KEY"  # as datacollective's documentation calls it


def unpack_common_voice(archive: str | Path, folder: str | Path) -> Path:
    """Unpack Mozilla's .tar.gz of one language below `folder`; returns the language's folder.

    That is ``folder/cv-corpus-<version>/<language>``, as the archive has it. It appears whole or
    not at all: members go to a temporary folder beside it, which is removed when anything is
    wrong. Files beside the language's folder stay in the archive.

    Raises `UserError`, and writes nothing, for an archive that is missing, cut short or no
    .tar.gz, holds links, devices, paths that lead out or a file twice, unpacks to more than
    `MAX_BYTES`, `MAX_MEMBERS` or the free disk, holds not exactly one language, or is unpacked
    already.
    """
    archive, folder = Path(archive), Path(folder)
    if not hasattr(tarfile, "data_filter"):
        raise UserError("This Python cannot unpack archives safely: update to 3.11.4 or later.")
    if not archive.is_file():
        raise UserError(f"Archive {archive} does not exist: check its name and folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder, "unpacking Common Voice"):
            for left in folder.glob(".unpacking-*/"):  # by a killed process
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as temporary:
                with gzip.open(archive) as stream:
                    _extract(archive, stream, Path(temporary), folder)
                return _move(archive, Path(temporary), folder)
    except UserError:
        raise
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"Archive {archive} is no complete .tar.gz ({reason(error)}): download it again."
        ) from error
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        said = getattr(error, "strerror", None) or reason(error)  # without the name, of any length
        raise UserError(
            f"Archive {archive} cannot be unpacked to {folder} ({said}): check that the folder can "
            "be written, else do not trust the archive."
        ) from error


def download_common_voice(dataset_id: str, data_dir: str | Path) -> Path:
    """Download a release from Mozilla Data Collective and unpack it; returns its folder.

    `dataset_id` is the last part of the data set's address there, whose terms have to be agreed
    to on that page. The archive goes to ``data_dir/common_voice/downloads``, where an interrupted
    download goes on and a finished one is not repeated; delete it when disk is short. Needs the
    extra ``common-voice`` and the key in the environment variable `KEY`. Raises `UserError` when
    either is missing, when Mozilla refuses, and as `unpack_common_voice`.
    """
    client = _client()
    if not os.environ.get(KEY):
        raise UserError(
            f"The environment variable {KEY} is not set: make a key on {SITE} (your profile, API) "
            "and set it, on Colab as a secret that is copied to the environment."
        )
    if not dataset_id or not dataset_id.replace("-", "").replace("_", "").isalnum():
        raise UserError(
            f"Data set id {dataset_id!r} is none: take the last part of the address of its page "
            f"on {SITE}."
        )
    root = Path(data_dir) / FOLDER
    try:
        archive = client.download_dataset(dataset_id, download_directory=str(root / "downloads"))
    except Exception as error:  # whatever the client, its session or the disk raises
        raise UserError(
            f"Data set {dataset_id!r} could not be downloaded ({reason(error)}): agree to its "
            f"terms on {SITE}, check the key, and run this again to go on."
        ) from error
    return unpack_common_voice(archive, root)


def _client() -> ModuleType:
    try:
        return importlib.import_module("datacollective")
    except ImportError:
        raise UserError(
            "Mozilla's client is not installed: pip install 'datacollective>=0.4.5,<1', or get "
            f"the archive from {SITE} by hand and unpack it with unpack_common_voice."
        ) from None


class _Record(tarfile.TarInfo):
    """A tar header that refuses records which tarfile would read into memory, whatever their size.

    A long name (GNU) or attributes (PAX) stand in records before their member, and `next` reads
    them whole and without an end to their number before any member can be looked at. tarfile has
    no public place to look at them earlier, so this overrides its private hooks `_proc_member`,
    which gets every header, and `_proc_gnusparse_*`, the maps of a sparse file by PAX. (Where a
    Python has renamed them, the tests of hostile archives fail.)
    """

    def _proc_member(self, members: _Members) -> tarfile.TarInfo:
        if self.size < 0:
            raise tarfile.ReadError(f"a size of {self.size} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file, which Common Voice has not")
        if self.type in _RECORDS:
            members.record_bytes += self.size
            if members.record_bytes > MAX_RECORDS:
                raise UserError(
                    f"Archive {members.name} holds a header of {members.record_bytes} bytes, "
                    f"more than {MAX_RECORDS}: do not trust it."
                )
        return super()._proc_member(members)

    def _refuse(self, *_: object) -> None:
        raise tarfile.ReadError("a sparse file, which Common Voice has not")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse


_RECORDS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip


class _Members(tarfile.TarFile):
    """The members of an archive, their headers read as `_Record`."""

    tarinfo = _Record
    record_bytes = 0  # before the member that is being read

    def next(self) -> tarfile.TarInfo | None:
        self.record_bytes = 0
        return super().next()


def _extract(archive: Path, stream: IO[bytes], temporary: Path, folder: Path) -> None:
    """Write each member as it passes by, so that a hostile size is met before it is written."""
    room = min(MAX_BYTES, shutil.disk_usage(folder).free)
    count = size = 0
    with _Members.open(archive, fileobj=stream, mode="r|") as members:
        while (member := members.next()) is not None:
            if member.size < 0:  # by PAX
                raise tarfile.ReadError(f"a size of {member.size} bytes")
            count, size = count + 1, size + member.size
            if count > MAX_MEMBERS or size > room:
                raise UserError(
                    f"Archive {archive} unpacks to more than {room} bytes or {MAX_MEMBERS} files: "
                    "make room on the disk, or do not trust the archive."
                )
            _check_member(archive, member, folder)
            if member.isreg() and (temporary / member.name).is_file():
                raise UserError(
                    f"Archive {archive} holds {_NAMES.repr(member.name)} twice: do not trust it."
                )
            members.extract(member, temporary, filter="data")
            members.members.clear()  # tarfile would keep all of a million of them
    while stream.read(2**20):  # to the end, where gzip's checksum is compared
        if (count := count + 1) > MAX_MEMBERS:
            raise UserError(f"Archive {archive} goes on after its end: do not trust it.")


def _check_member(archive: Path, member: tarfile.TarInfo, folder: Path) -> None:
    path, name = PurePosixPath(member.name), _NAMES.repr(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise UserError(
            f"Archive {archive} holds {name}, which leads out of the folder: do not trust it."
        )
    if len(path.parts) > MAX_DEPTH:
        raise UserError(
            f"Archive {archive} holds {name}, which lies {len(path.parts)} folders deep, more than "
            f"{MAX_DEPTH}: do not trust it."
        )
    if not (member.isreg() or member.isdir()):
        raise UserError(
            f"Archive {archive} holds {name}, a link or device, which Common Voice does "
            "not: do not trust it."
        )
    if member.isreg() and (folder / path).exists():
        raise UserError(
            f"{folder / path} exists, so {archive} seems to be unpacked already: use that, or "
            "move it away."
        )


def _move(archive: Path, temporary: Path, folder: Path) -> Path:
    """Rename the one folder of a language, complete by now, to its place."""
    found = [p for p in (*temporary.glob("*"), *temporary.glob("*/*")) if _is_language(p)]
    if len(found) != 1:
        raise UserError(
            f"Archive {archive} holds {len(found)} folders with clips/ and tables such as "
            "train.tsv, expected one: take Mozilla's archive of a single language."
        )
    target = folder / found[0].relative_to(temporary)
    # Whoever made the archive cannot say that its recordings have been checked.
    (found[0] / MEMORY).unlink(missing_ok=True)
    if target.exists():
        raise UserError(f"{target} exists: move it away before unpacking {archive}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    return found[0].rename(target)


def _is_language(folder: Path) -> bool:
    tables = any((folder / name).is_file() for name in TABLES.values())
    return tables and (folder / CLIPS).is_dir()

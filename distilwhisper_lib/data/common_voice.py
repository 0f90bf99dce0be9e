"""Common Voice as Mozilla ships it: a folder a language, with train.tsv, dev.tsv, test.tsv, clips/.

It left the Hugging Face hub in October 2025: Mozilla gives an archive, which the last part of
this file downloads and unpacks safely. Real releases have empty, cut and missing recordings,
stray quotes, and other columns in every version, so rows that cannot be used are left out and
reported rather than refused.
"""

from __future__ import annotations

import gzip
import importlib
import math
import os
import re
import reprlib
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import IO

import pandas as pd

from distilwhisper_lib.config.settings import locate
from distilwhisper_lib.data.clips import (
    COLUMNS,
    MALFORMED,
    NO_TEXT,
    TWICE,
    UNSAFE,
    VOTES,
    Corpus,
    Dropped,
)
from distilwhisper_lib.data.inspection import MEMORY, ClipChecks
from distilwhisper_lib.errors import UserError, reason
from distilwhisper_lib.io.files import alone
from distilwhisper_lib.languages import code_in, find_language
from distilwhisper_lib.scoring.text import says_nothing

FOLDER = "common_voice"
SITE = "https://mozilladatacollective.com"
TABLES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv",
          "validated": "validated.tsv"}  # fmt: skip
_SPLITS = ("train", "validation", "test")
CLIPS = "clips"
_RELEASES = "cv-corpus-*"
_MAX_DIGITS = 15  # of a count; int() refuses 5,000 of them
_PLAIN = re.compile(r"\w[\w .-]*\.\w+")  # a file name and nothing else


def open_common_voice(rest: str, language: str, split: str, data_dir: str) -> Corpus:
    """One split of a release; `rest` names the release folder where there are several.

    The id of a clip is its file name without the suffix, which survives re-hosting. Seconds are
    those of clip_durations.tsv, where the release has it, else the recording's. Left out and
    reported: rows that say nothing or with a file name that leaves clips/, rows of the wrong shape
    and clips named twice; `inspect` finds recordings that are missing, empty or broken.

    Raises `UserError` when no release or several are found, and when the split's table is
    missing, not UTF-8 or lacks a column.
    """
    code = code_in(FOLDER, find_language(language))
    if split not in TABLES:
        raise UserError(f"Common Voice has no split {split!r}: choose from {', '.join(TABLES)}.")
    release = find_release(Path(locate(data_dir)), code, rest)
    path, clips = release / TABLES[split], release / CLIPS
    for needed in (path, clips):
        if not needed.exists():
            raise UserError(f"{needed} does not exist: unpack the whole release of {code!r} again.")
    table, dropped = _read_table(path, clips, find_language(language).code, split)
    about = {
        "name": FOLDER,
        "licence": "CC0-1.0",
        "source": f"Mozilla Common Voice, {SITE}",
        "release": next((p.name for p in release.parents if p.match(_RELEASES)), "not named"),
    }
    return Corpus(table, about, ClipChecks(clips, release / MEMORY), dropped)


def find_release(data_dir: Path, code: str, release: str = "") -> Path:
    """The folder of one language: ``common_voice/<code>``, or ``<code>`` in a cv-corpus-* folder.

    The latter may lie in `data_dir`, in ``data_dir/common_voice`` or in the former. `release` is
    ``<release>``, ``<locale>`` or ``<release>/<locale>``, the locale one of those that a language
    is split into, such as zh-TW, or another name of it. Raises `UserError`, saying how to get one,
    when there is none, and when there are several.
    """
    release, locale = _release_and_locale(release, code)
    root = data_dir / FOLDER
    places = [data_dir, root, root / code]
    releases = sorted(found for place in places for found in place.glob(release or _RELEASES))
    parents = releases if release else [root, root / code, *releases]
    folders = [p for parent in parents for p in _folders_of(parent, code, locale)]
    found = [p for p in folders if any((p / table).is_file() for table in TABLES.values())]
    # A delta release has validated clips only, and may lie beside the whole one.
    found = [p for p in found if any((p / TABLES[s]).is_file() for s in _SPLITS)] or found
    if not found:
        wanted = f"release {release} of Common Voice" if release else "Common Voice"
        raise UserError(
            f"There is no {wanted} for {locale or code!r} in {root}: get the language's archive "
            f"from {SITE} (it left the Hugging Face hub in October 2025) and unpack it there with "
            "distilwhisper_lib.data.common_voice.unpack_common_voice."
        )
    if len(found) > 1:
        listed = ", ".join(str(path.relative_to(data_dir)) for path in found)
        of_one = len({path.parent for path in found}) == 1
        example = found[-1].name if of_one else "cv-corpus-13.0-2023-03-09"
        raise UserError(
            f"There are several releases of Common Voice for {code!r}, {listed}: name one, as in "
            f"'common_voice/{example}'."
        )
    return found[0]


def _folders_of(parent: Path, code: str, locale: str) -> list[Path]:
    """What lies there of a language: the folder that has its code, then those that name it with
    the country (sv-SE) or otherwise than Whisper (nb-NO for no, jv for jw); or just a locale."""
    if locale:
        return [path for path in [parent / locale] if path.is_dir()]
    found = [p for p in parent.glob("*") if p.is_dir() and _means(p.name, code)]
    return sorted(found, key=lambda path: (path.name != code, path.name))


def _means(name: str, code: str) -> bool:
    try:
        return find_language(name).code == find_language(code).code
    except UserError:
        return False


def _release_and_locale(given: str, code: str) -> tuple[str, str]:
    """What the rest of a corpus's name says: a release, a locale of the language, or both."""
    release, slash, locale = given.partition("/")
    if not slash and _means(release, code):
        release, locale = "", release
    names = [name for name in (release, locale) if name]
    odd = any(Path(name).name != name or name in (".", "..") for name in names)
    if odd or (slash and not _means(locale, code)):
        raise UserError(
            f"Release {given!r} is not the name of a folder: write for example "
            f"'common_voice/cv-corpus-13.0-2023-03-09', or 'common_voice/{code}-XX' for a locale."
        )
    return release, locale


def _read_table(
    path: Path, clips: Path, code: str, split: str
) -> tuple[pd.DataFrame, list[Dropped]]:
    """The usable rows of one TSV file, and the others with the reason."""
    lines = _lines(path)
    columns = _columns(path, next(lines, (1, []))[1])
    votes = [name for name in VOTES if name in columns]
    # By column, because a release may have a million rows.
    values: dict[str, list[str]] = {n: [] for n in ("path", "sentence", "client_id", *votes)}
    dropped, seen = [], set()
    for number, fields in lines:
        row = _check_row(path, number, fields, columns)
        if isinstance(row, dict) and (id_ := _stem(row["path"])) in seen:
            row = Dropped(id_, TWICE, f"{path.name}, line {number}")
        if isinstance(row, Dropped):
            dropped.append(row)
            continue
        seen.add(id_)
        for name, column in values.items():
            column.append(row.get(name, ""))
    seconds_of = _durations(path.parent)
    table = {
        "id": [_stem(name) for name in values["path"]],
        "audio": [f"{clips}{os.sep}{name}" for name in values["path"]],
        "start": math.nan,
        "end": math.nan,
        "text": values["sentence"],
        "language": code,
        "speaker": values["client_id"],
        "seconds": [seconds_of.get(name, math.nan) for name in values["path"]],
        "split": split,
    }
    table |= {vote: [int(count or 0) for count in values[vote]] for vote in votes}
    return pd.DataFrame(table, columns=COLUMNS + votes), dropped


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each line's number and fields, split at tabs and at nothing else.

    Quotes are text, "null" and "NA" are words, and only a line feed ends a line: csv and pandas
    would join two rows at a stray quote, and end one at the separators that Unicode calls lines.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 ({error.reason}): unpack the release again."
        ) from None


def _columns(path: Path, columns: list[str]) -> list[str]:
    """The columns of a TSV file; versions differ, but these two there must be."""
    for name in ("path", "sentence"):
        if name not in columns:
            raise UserError(
                f"{path} has no column {name!r} but {', '.join(columns) or 'nothing'}: unpack the "
                "release again, as it was shipped."
            )
    return columns


def _check_row(
    path: Path, number: int, fields: list[str], columns: list[str]
) -> dict[str, str] | Dropped:
    """The row by column, its path a bare file name, or why it cannot be used."""
    row = dict(zip(columns, fields, strict=False))
    given, text = row.get("path", "").strip(), row.get("sentence", "").strip()
    # Early releases left the suffix out; some re-hosted copies put the folder before the name.
    name = given if _PLAIN.fullmatch(given) else re.sub(r"^(.*/)?clips/", "", given)
    name = name if "." in name else f"{name}.mp3"
    # Editors cut empty fields at the end of a line; a tab within a text makes one too many.
    if len(fields) > len(columns) or "sentence" not in row or not given:
        reason, detail = MALFORMED, f": {len(fields)} fields, expected {len(columns)}"
    elif not _PLAIN.fullmatch(name) or ".." in given:
        reason, detail = UNSAFE, f": {ascii(given)}"
    elif wrong := [vote for vote in VOTES if not _is_count(row.get(vote) or "0")]:
        reason, detail = MALFORMED, f": {wrong[0]} is {reprlib.repr(row[wrong[0]])}"
    elif says_nothing(text):
        reason, detail = NO_TEXT, f": {reprlib.repr(text)}" if text else ""
    else:
        return row | {"path": name, "sentence": text}
    where = f"{path.name}, line {number}"
    id_ = ascii(_stem(Path(name).name))[1:-1] if given else where
    return Dropped(id_, reason, where + detail)


def _is_count(field: str) -> bool:
    return field.isdecimal() and len(field) <= _MAX_DIGITS


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _durations(release: Path) -> dict[str, float]:
    """File name -> seconds by clip_durations.tsv; empty for older releases, which lack it."""
    path = release / "clip_durations.tsv"
    if not path.is_file():
        return {}
    status = path.stat()
    return _read_durations(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read_durations(path: Path, mtime_ns: int, size: int) -> dict[str, float]:
    seconds = {}
    for _, fields in _lines(path):
        if len(fields) > 1 and _is_count(fields[1]) and int(fields[1]) > 0:
            seconds[fields[0]] = int(fields[1]) / 1000
    return seconds


# Above every release so far (English, 25.0: 90 GB in 2.5 million clips), below a bomb.
MAX_BYTES = 2**38
MAX_MEMBERS = 10_000_000
MAX_DEPTH = 32  # folders in folders; Mozilla has 3, and Python cannot remove 1,000
_NAMES = reprlib.Repr()  # a member's name may have a million characters
_NAMES.maxstring = 200
MAX_RECORDS = 2**15  # bytes of what stands before a member: names of 4,096, and little else
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
    except (OSError, ValueError, OverflowError) as error:
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


class _Rationed:
    """The decompressed stream; raises UserError where more than `left` bytes are read of it.

    What stands before a member (a long name, attributes, the map of a sparse file) tarfile reads
    whole into memory, whatever its size, before anybody can look at it.
    """

    def __init__(self, archive: Path, stream: IO[bytes]) -> None:
        self.archive, self.stream, self.left = archive, stream, MAX_RECORDS

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise UserError(
                f"Archive {self.archive} holds a header of more than {MAX_RECORDS} bytes: do not "
                "trust it."
            )
        return data


def _extract(archive: Path, stream: IO[bytes], temporary: Path, folder: Path) -> None:
    """Write each member as it passes by, so that a hostile size is met before it is written."""
    room = min(MAX_BYTES, shutil.disk_usage(folder).free)
    count = size = 0
    rationed = _Rationed(archive, stream)
    with tarfile.open(archive, mode="r|", fileobj=rationed) as members:
        while (member := members.next()) is not None:
            _check_member(archive, member, temporary, folder)
            count, size = count + 1, size + member.size
            if count > MAX_MEMBERS or size > room:
                raise UserError(
                    f"Archive {archive} unpacks to more than {room} bytes or {MAX_MEMBERS} files: "
                    "make room on the disk, or do not trust the archive."
                )
            # The bytes of a file, and what stands before the next member.
            rationed.left = (member.size if member.isreg() else 0) + MAX_RECORDS
            members.extract(member, temporary, filter="data")
            members.members.clear()  # tarfile would keep all of a million of them
    while stream.read(2**20):  # to the end, where gzip's checksum is compared
        if (count := count + 1) > MAX_MEMBERS:
            raise UserError(f"Archive {archive} goes on after its end: do not trust it.")


def _check_member(archive: Path, member: tarfile.TarInfo, temporary: Path, folder: Path) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        fault = "which leads out of the folder"
    elif len(path.parts) > MAX_DEPTH:
        fault = f"which lies {len(path.parts)} folders deep, more than {MAX_DEPTH}"
    elif not (member.isreg() or member.isdir()):
        fault = "a link or device, which Common Voice does not"
    elif member.issparse():
        fault = "a sparse file, which Common Voice does not"
    elif member.size < 0:
        fault = f"with a size of {member.size} bytes"
    elif member.isreg() and (temporary / path).is_file():
        fault = "which it holds twice"
    elif member.isreg() and (folder / path).exists():
        raise UserError(
            f"{folder / path} exists, so {archive} seems to be unpacked already: use that, or "
            "move it away."
        )
    else:
        return
    raise UserError(
        f"Archive {archive} holds {_NAMES.repr(member.name)}, {fault}: do not trust it."
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

"""FLEURS: the same sentences read aloud in 102 languages, from the parquet files of google/fleurs.

A local copy is used where there is one; otherwise the files of one language and split come from
the hub, at a fixed revision and without an account. The parquet files hold each recording as
bytes, but a table names recordings by path: that is what hashing, caching, players and batches go
by, for every corpus. So each split is unpacked once, to
``<data_dir>/fleurs/<code>/audio/<revision or "local">/<split>/``.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from distilwhisper_lib.config.settings import locate
from distilwhisper_lib.data.clips import (
    COLUMNS,
    EMPTY,
    NO_TEXT,
    REASONS,
    SENTENCE,
    SILENT,
    UNREADABLE,
    Corpus,
    Dropped,
)
from distilwhisper_lib.data.inspection import require_readable
from distilwhisper_lib.errors import UserError, reason
from distilwhisper_lib.io.checked import check
from distilwhisper_lib.io.files import alone, parse_json, told, write_atomic
from distilwhisper_lib.languages import code_in, find_language
from distilwhisper_lib.scoring.text import says_nothing
from distilwhisper_lib.speech.audio import SAMPLE_RATE
from distilwhisper_lib.speech.guarded import listen

REPOSITORY = "google/fleurs"
# The hub's parquet files as they stood in September 2026; another is named behind "@".
REVISION = "70bb2e84b976b7e960aa89f1c648e09c59f894dd"
# transcription: lower case, without punctuation. raw_transcription: as it was to be read.
TEXTS = ("transcription", "raw_transcription")
SPLITS = ("train", "validation", "test")
_HUB_FOLDER = "parquet-data"
INDEX = "clips.json"
# What the index has: of each recording, and of each that was left out.
_INDEX_KINDS = {
    "clips": [
        {"file": str, SENTENCE: str, **dict.fromkeys(TEXTS, str), "bytes": int, "seconds": float}
    ],
    "broken": [{"file": str, "reason": REASONS, "detail": str}],
}
_MAX_NAME = 200  # bytes; file systems take 255
_WELCOME = ("path", "num_samples")  # columns that may be there
_BATCH = 32  # rows in memory at once; one is half a megabyte
_BUFFER = 2**20  # bytes that are read ahead


def open_fleurs(rest: str, language: str, split: str, data_dir: str) -> Corpus:
    """One split; `rest` is ``[<text field>][@<revision>]``, by default transcription @ `REVISION`.

    Ids are the recordings' file names without suffix; `SENTENCE` numbers the sentence, the same
    in every language, which several speakers may have read. Speakers are not told apart. Left out
    and reported: recordings that cannot be decoded, and those without text.

    Raises `UserError` for an unknown field or split, when there is no local copy and the hub
    cannot be reached, when a file is no parquet file of FLEURS, and when nothing can be unpacked.
    """
    field, revision = _parse(rest)
    if split not in SPLITS:
        raise UserError(f"FLEURS has no split {split!r}: choose one of {', '.join(SPLITS)}.")
    code, root = code_in("fleurs", find_language(language)), Path(locate(data_dir)) / "fleurs"
    files = local_files(root, code, split)
    origin = "local" if files else revision.replace("/", "_")
    folder = root / code / "audio" / origin / split
    if not is_unpacked(folder, files):
        unpack_fleurs(files or download_fleurs(code, split, revision), folder)
    table, dropped = _table(folder, field, find_language(language).code, split)
    about = {
        "name": "fleurs",
        "licence": "CC BY 4.0",
        "source": f"https://huggingface.co/datasets/{REPOSITORY}",
        "revision": "local copy" if files else revision,
        "text": field,
    }
    return Corpus(table, about, require_readable, dropped)


def local_files(root: Path, code: str, split: str) -> list[Path]:
    """The parquet files of a local copy, under the names that the hub's branches have used.

    ``<code>/test*.parquet`` or ``<code>/test/*.parquet``, in `root` or in its parquet-data/.
    """
    for folder in (root / code, root / _HUB_FOLDER / code):
        for pattern in (f"{split}*.parquet", f"{split}/*.parquet", f"fleurs-{split}*.parquet"):
            if files := sorted(folder.glob(pattern)):
                return files
    return []


def download_fleurs(code: str, split: str, revision: str) -> list[Path]:
    """The hub's parquet files of one language and split, in the hub's cache; resumes by itself."""
    from huggingface_hub import snapshot_download

    pattern = f"{_HUB_FOLDER}/{code}/{split}-*.parquet"
    try:
        snapshot = snapshot_download(
            REPOSITORY, repo_type="dataset", revision=revision, allow_patterns=pattern
        )
    except (OSError, ValueError) as error:  # no network, offline mode, no such revision
        raise UserError(
            f"FLEURS {code} {split} cannot be had from the hub at revision {revision} "
            f"({reason(error)}): go online, or put its {split}-*.parquet into "
            f"<data_dir>/fleurs/{code}/."
        ) from error
    files = sorted(Path(snapshot).glob(pattern))
    if not files:
        raise UserError(
            f"{REPOSITORY} has no {pattern} at revision {revision}: name another one, as in "
            "'fleurs@main'."
        )
    return files


def is_unpacked(folder: Path, files: list[Path]) -> bool:
    """Whether `folder` holds every recording of its index, and `files` are those it was made of.

    `files` may be empty: what came from the hub at a revision does not change.
    """
    try:
        index = parse_json((folder / INDEX).read_text(encoding="utf-8"))
        check(index, _INDEX_KINDS, folder / INDEX, "remove it")
        return all(_is_in(folder, clip) for clip in index["clips"]) and (
            not files or index["files"] == _stamp(files)
        )
    except (OSError, ValueError):  # a UserError is one
        return False


def _is_in(folder: Path, clip: dict[str, Any]) -> bool:
    """Whether a recording lies in the folder itself, is no link, and has its size."""
    path, name = folder / clip["file"], PurePosixPath(clip["file"])
    plain = name.name == clip["file"] and not {"\\", "\0"}.intersection(clip["file"])
    return plain and not path.is_symlink() and path.stat().st_size == clip["bytes"]


def unpack_fleurs(files: list[Path], folder: Path) -> None:
    """Write the recordings of parquet files and an index of them to `folder`, whole or not at all.

    Files are named as in the data set. A recording that cannot be decoded is left out and stands
    in the index with the reason. An earlier `folder`, no longer up to date, is replaced.
    """
    remedy = "set data_dir to a folder that can be written"
    with told(folder, remedy), alone(folder, "unpacking FLEURS"):
        if is_unpacked(folder, files):  # another process was faster
            return
        for left in folder.parent.glob(f".{folder.name}-*/"):  # by a killed process
            shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _unpack(files, folder, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _unpack(files: list[Path], folder: Path, temporary: Path) -> None:
    fresh, stale = temporary / "fresh", temporary / "stale"
    fresh.mkdir()
    index: dict[str, Any] = {"files": _stamp(files), "clips": [], "broken": []}
    taken: set[str] = set()
    for number, row in enumerate(_read_rows(files)):
        clip = unpack_row(row, file_name(row, number, taken), fresh)
        index["broken" if "reason" in clip else "clips"].append(clip)
    write_atomic(fresh / INDEX, json.dumps(index, ensure_ascii=False, indent=0))
    if folder.exists():
        folder.rename(stale)
    fresh.rename(folder)


def _parse(rest: str) -> tuple[str, str]:
    """The text field and the revision that the rest of a corpus's name asks for."""
    field, at, revision = rest.partition("@")
    field = field or TEXTS[0]
    if field not in TEXTS:
        raise UserError(
            f"FLEURS has no text field {field!r}: write 'fleurs/{TEXTS[0]}' or 'fleurs/{TEXTS[1]}'."
        )
    if at and not re.fullmatch(r"[\w][\w./-]*", revision) or ".." in revision:
        raise UserError(
            f"Revision {revision!r} of FLEURS is no branch or commit: see 'fleurs@main'."
        )
    return field, revision or REVISION


def _stamp(files: list[Path]) -> list[list[Any]]:
    return [[p.name, (status := p.stat()).st_size, status.st_mtime_ns] for p in files]


def _read_rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    """The rows of parquet files, recordings as the bytes that were put in."""
    import pyarrow  # late: only whoever unpacks needs it
    from pyarrow.parquet import ParquetFile

    needed = ["id", "audio", *TEXTS]
    for path in files:
        try:
            # Not with datasets, nor with pyarrow's read-ahead: both hold a whole file of half a
            # gigabyte. A buffer lets the column of recordings pass by, too.
            with ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER) as file:
                _check_columns(path, file.schema_arrow, needed)
                there = [name for name in (*needed, *_WELCOME) if name in file.schema_arrow.names]
                for batch in file.iter_batches(batch_size=_BATCH, columns=there):
                    for row in batch.to_pylist():
                        _check_row(row, path.name)
                        yield row
        except UserError:
            raise
        except (OSError, ValueError, TypeError, pyarrow.ArrowException) as error:
            raise UserError(
                f"{path.name} cannot be read ({reason(error)}): download it again."
            ) from error


def _check_columns(path: Path, schema: Any, needed: list[str]) -> None:
    if missing := sorted(set(needed) - set(schema.names)):
        raise UserError(
            f"{path.name} is not of FLEURS: there is no column {', '.join(missing)} among "
            f"{', '.join(schema.names)}."
        )
    parts = {field.name for field in schema.field("audio").flatten()}
    if "audio.bytes" not in parts:
        raise UserError(f"{path.name} is not of FLEURS: its column audio holds no bytes.")


def _check_row(row: dict[str, Any], names: str) -> None:
    """Raise UserError for a row whose values are not of FLEURS's kinds."""
    audio = row["audio"] or {}
    kinds = {"id": int, "num_samples": int, "path": str, **dict.fromkeys(TEXTS, str)}
    wrong = [n for n, kind in kinds.items() if not isinstance(row.get(n), kind | None)]
    wrong += [
        f"audio.{name}"
        for name, kind in {"bytes": bytes, "path": str}.items()
        if not isinstance(audio.get(name), kind | None)
    ]
    if wrong:
        raise UserError(
            f"{names} is not of FLEURS: column {wrong[0]} holds another kind of value: download it "
            "again."
        )


def file_name(row: dict[str, Any], number: int, taken: set[str]) -> str:
    """A name for a recording, without folders and unlike those that are taken."""
    given = (row["audio"] or {}).get("path") or str(row.get("path") or "")
    path = PurePosixPath(given.replace("\\", "/"))
    stem = re.sub(r"[^\w.-]", "_", path.stem).lstrip(".")
    if not stem or len(stem.encode()) > _MAX_NAME:
        stem = re.sub(r"[^\w-]", "_", f"{str(row['id'])[:20]}-{number}")
    # The third of two "a" and an "a-2" may not become another "a-2".
    free, again = stem, number
    while free in taken:
        free, again = f"{stem}-{again}", again + 1
    taken.add(stem := free)
    suffix = path.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", path.suffix) else ".wav"
    return stem + (".wav" if stem + suffix == INDEX else suffix)


def unpack_row(row: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """Write one recording; returns its entry in the index."""
    data = (row["audio"] or {}).get("bytes")
    clip = {"file": name, SENTENCE: str(row["id"])}
    if not data:
        return clip | {"reason": EMPTY, "detail": name}
    try:
        heard = listen(data)
    except UserError as error:
        return clip | {"reason": UNREADABLE, "detail": str(error)}
    seconds = heard.seconds
    if heard.silent:
        return clip | {"reason": SILENT, "detail": f"{seconds:.2f} s"}
    promised = (row.get("num_samples") or 0) / SAMPLE_RATE  # a WAV that was cut still decodes
    if seconds < 0.9 * promised:
        detail = f"cut short: {seconds:.2f} of {promised:.2f} s"
        return clip | {"reason": UNREADABLE, "detail": detail}
    (folder / name).write_bytes(data)
    texts = {text: (row[text] or "").strip() for text in TEXTS}
    return clip | texts | {"bytes": len(data), "seconds": seconds}


def _table(
    folder: Path, field: str, language: str, split: str
) -> tuple[pd.DataFrame, list[Dropped]]:
    index = parse_json((folder / INDEX).read_text(encoding="utf-8"))
    dropped = [Dropped(Path(c["file"]).stem, c["reason"], c["detail"]) for c in index["broken"]]
    records = []
    for clip in index["clips"]:
        id_, text = Path(clip["file"]).stem, clip[field]
        if says_nothing(text):
            dropped.append(Dropped(id_, NO_TEXT, f"{field} of sentence {clip[SENTENCE]}"))
            continue
        place = (str(folder / clip["file"]), math.nan, math.nan)
        records.append((id_, *place, text, language, "", clip["seconds"], split, clip[SENTENCE]))
    return pd.DataFrame.from_records(records, columns=[*COLUMNS, SENTENCE]), dropped

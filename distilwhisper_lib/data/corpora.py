"""Speech corpora of any origin as one table: a row an utterance, the columns of `COLUMNS`.

`open_corpus` finds the reader by the corpus's name; what a reader returns is described in
`clips.py`. What stands behind the slash of a name is the reader's own: see each of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import reprlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from distilwhisper_lib.data.clips import (
    COLUMNS,
    NO_TEXT,
    NOTE,
    SENTENCE,
    VOTES,
    WHERE,
    Changed,
    Corpus,
    Dropped,
)
from distilwhisper_lib.data.common_voice import open_common_voice
from distilwhisper_lib.data.fleurs import open_fleurs
from distilwhisper_lib.data.own_folder import open_folder, read_folder
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.scoring.text import clean_transcript, is_note, oddities, says_nothing

__all__ = [
    "COLUMNS", "SENTENCE", "VOTES", "READERS", "corpus_hash", "file_digest", "load_corpus",
    "open_corpus", "read_folder",
]  # fmt: skip

# What stands before the slash of a corpus's name -> its reader, called with the rest of the name,
# language, split and data folder.
READERS: dict[str, Callable[[str, str, str, str], Corpus]] = {
    "folder": open_folder,  # folder/<subfolder of data_dir>
    "common_voice": open_common_voice,  # common_voice[/<release>][/<locale>]
    "fleurs": open_fleurs,  # fleurs[/<text field>][@<revision>]
}


def open_corpus(
    name: str, language: str, split: str, data_dir: str | Path, keep_notes: bool = False
) -> Corpus:
    """One split of a corpus in one language, by metadata; its recordings are still to be opened.

    Transcripts are clean, whichever reader they come from: see `scoring.text.clean_transcript`.
    Those that say nothing then are left out, unless with `keep_notes`, those that are but a note.

    A `data_dir` that starts with ``"embedded"`` is the package's demo. Raises `UserError` for an
    unknown corpus and as the reader does.
    """
    kind = re.split("[/@]", name, maxsplit=1)[0]
    if kind not in READERS:
        known = ", ".join(READERS)
        raise UserError(
            f"Unknown corpus {name!r}: the kinds are {known}; write for example 'folder/speech'."
        )
    rest = name.removeprefix(kind).removeprefix("/")
    return _clean(READERS[kind](rest, language, split, str(data_dir)), keep_notes)


def _clean(corpus: Corpus, keep_notes: bool) -> Corpus:
    """The corpus with clean transcripts, and without those that are none."""
    table = corpus.table
    places = table[WHERE] if WHERE in table else [""] * len(table)
    texts, keep, changed, dropped, odd = [], [], [], list(corpus.dropped), {}
    for id_, before, where in zip(table["id"], table["text"], places, strict=True):
        after, what = clean_transcript(before)
        texts.append(after)
        if found := oddities(before):
            odd[id_] = found
        empty = says_nothing(after)
        keep.append(not empty and (keep_notes or not is_note(after)))
        if not keep[-1]:
            told = [*([where] if where else []), reprlib.repr(before)]
            dropped.append(Dropped(id_, NO_TEXT if empty else NOTE, ": ".join(told)))
        elif what:
            changed.append(Changed(id_, what, before, after, where))
    table = table.assign(text=texts)[np.array(keep, dtype=bool)].reset_index(drop=True)
    return replace(corpus, table=table, dropped=dropped, changed=changed, odd=odd)


def load_corpus(name: str, language: str, split: str, data_dir: str | Path) -> pd.DataFrame:
    """The rows of one corpus in one language and split whose recordings can be read.

    Returns the columns of `COLUMNS`, and more where a corpus has more, in the corpus's order.
    Errors as `open_corpus`.
    """
    corpus = open_corpus(name, language, split, data_dir)
    found = corpus.inspect([Path(path) for path in corpus.table["audio"]])
    table = corpus.table.assign(
        seconds=[
            result.seconds if math.isnan(seconds) else seconds
            for seconds, result in zip(corpus.table["seconds"], found, strict=True)
        ]
    )
    return table[[result.reason is None for result in found]].reset_index(drop=True)


def corpus_hash(table: pd.DataFrame) -> str:
    """SHA-256 (hex) of what a model hears and is told: ids, texts, languages, segments, audio.

    The order of the rows and the place of the files do not matter. Each audio file is read once.
    """
    needed = table[["id", "text", "language", "start", "end", "audio"]].sort_values("id")
    digest = hashlib.sha256()
    for id_, text, language, start, end, audio in needed.itertuples(index=False):
        bounds = [None if math.isnan(bound) else bound for bound in (start, end)]
        line = [id_, text, language, *bounds, file_digest(audio)]
        digest.update(json.dumps(line, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()


def file_digest(audio: str) -> str:
    """SHA-256 (hex) of a file, computed once while it stays as it is."""
    path = Path(audio)
    if not path.is_file():
        raise UserError(f"Audio file {audio} does not exist: check its name and folder.")
    status = path.stat()
    return _digest(audio, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2**17)
def _digest(path: str, mtime_ns: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

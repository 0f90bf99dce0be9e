"""What every corpus reader returns: a table of clips, what it left out, and where it is from.

Readers look at metadata only. Whether a recording can be decoded is asked later, by `inspect`, and
only of the clips that a run considers: a release may hold a million of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd

# audio: path; start, end: seconds within it, NaN for the whole file; language: Whisper code;
# seconds: NaN where only the recording knows; split: train, validation or test.
COLUMNS = ["id", "audio", "start", "end", "text", "language", "speaker", "seconds", "split"]
VOTES = ["up_votes", "down_votes"]  # where a corpus has them: what the selection rule goes by
WHERE = "where"  # where a reader knows it: the file and line that a person can mend
NOTES = "notes"  # of clips that were opened: what is worth knowing of their text and sound
SENTENCE = "sentence_id"  # where a corpus has it: the same number in every language

# Why a clip is left out.
TOO_LONG = "longer than the window"
LABEL_TOO_LONG = "label over the limit"
NO_TEXT = "empty text"
NOTE = "nothing but a note in brackets"
MISSING = "missing file"
EMPTY = "empty file"
UNREADABLE = "unreadable audio"
SILENT = "silence"
UNSAFE = "unsafe file name"
MALFORMED = "malformed row"
TWICE = "named twice"
REASONS = (
    TOO_LONG, LABEL_TOO_LONG, NO_TEXT, NOTE, MISSING, EMPTY, UNREADABLE, SILENT, UNSAFE, MALFORMED,
    TWICE,
)  # fmt: skip
# Those that speak of a broken copy rather than of a clip that does not fit.
BROKEN = (NO_TEXT, MISSING, EMPTY, UNREADABLE, UNSAFE, MALFORMED)


class Dropped(NamedTuple):
    """A clip that is left out: its id, one of `REASONS`, and what exactly was found."""

    id: str
    reason: str
    detail: str = ""


class Changed(NamedTuple):
    """A transcript that was cleaned: its clip's id, what was done, before and after, where it is
    from."""

    id: str
    what: tuple[str, ...]  # of scoring.text.clean_transcript
    before: str
    after: str
    where: str = ""


class Inspection(NamedTuple):
    """What the recording itself says: its seconds, or one of `REASONS` and the detail; and what is
    worth knowing of how it was read, and where it is silent (both of speech/audio.py)."""

    seconds: float
    reason: str | None = None
    detail: str = ""
    notes: tuple[str, ...] = ()
    silences: tuple[tuple[float, float], ...] = ()  # from and to, in seconds


@dataclass(frozen=True)
class Corpus:
    """One split of one corpus in one language, as a reader found it.

    `table` has the columns of `COLUMNS` and may have `WHERE`, `VOTES` and `SENTENCE`; `dropped` are
    the rows that metadata alone rules out, `changed` the texts that open_corpus() cleaned; `about`
    says name, licence, source and whatever else it takes to find the same data again; `inspect`
    opens recordings, one result a path in order, and raises `UserError` where the corpus is one in
    which nothing may be broken; `sheet` has the places of all rows of a person's own sheet, by
    language and split, so that those which nobody reads can be told, and `unknown_columns` those
    that nobody reads either; `odd` tells by id what in a
    text as it was given may not be meant (`scoring.text.oddities`).
    """

    table: pd.DataFrame
    about: dict[str, str]
    inspect: Callable[[Sequence[Path]], list[Inspection]]
    dropped: list[Dropped] = field(default_factory=list)
    changed: list[Changed] = field(default_factory=list)
    sheet: Mapping[tuple[str, str], Sequence[str]] = field(default_factory=dict)
    unknown_columns: Sequence[str] = ()
    odd: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

"""What one run reads: four tables, checked before anything is trained, their labels too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any, NamedTuple

import pandas as pd

from distilwhisper_lib.config.settings import TRAINED, RunConfig, locate
from distilwhisper_lib.data.clips import NOTES, TOO_LONG, WHERE, Changed, Corpus, Dropped
from distilwhisper_lib.data.corpora import corpus_hash, open_corpus
from distilwhisper_lib.data.page import write_faults
from distilwhisper_lib.data.subsets import (
    Leak,
    check_disjoint,
    read_subset,
    take_usable,
)
from distilwhisper_lib.errors import Faults, UserError
from distilwhisper_lib.scoring.text import normalize_marks
from distilwhisper_lib.speech.audio import FFMPEG_READ

PROMPT = 4  # start, language, task, no-timestamps; the end token takes the place of the start
_AT_ONCE = 500  # texts: a tokenizer remembers several kilobytes of each


class LabelLimit:
    """Counts label tokens as features.Collator lays them out, and knows how many are too many.

    `limit` is the decoder's number of positions (448 for every Whisper); the tokenizer is loaded
    when first asked for, which `over` seldom has to.
    """

    def __init__(self, limit: int, load: Callable[[], Any]) -> None:
        self.limit, self._load = limit, load

    @cached_property
    def tokenizer(self) -> Any:
        return self._load()

    def tokens(self, text: str) -> int:
        """The decoder positions that a transcript takes, prompt included."""
        return self.count([text])[0]

    def count(self, texts: Sequence[str]) -> list[int]:
        """`tokens` of many transcripts at once."""
        counts: list[int] = []
        for start in range(0, len(texts), _AT_ONCE):
            some = list(texts[start : start + _AT_ONCE])
            # Not verbose: that a text is too long is what is asked, and nothing is run on it.
            ids = self.tokenizer(some, add_special_tokens=False, verbose=False).input_ids
            counts += [len(tokens) + PROMPT for tokens in ids]
        return counts

    def over(self, text: str) -> str | None:
        """What is wrong when a transcript is too long to be learnt, else None."""
        # A token of byte-level BPE is one byte at least, so most texts need no counting.
        if len(text.encode()) + PROMPT <= self.limit or (tokens := self.tokens(text)) <= self.limit:
            return None
        return f"{tokens} tokens, at most {self.limit}"


def label_limit(config: RunConfig) -> LabelLimit:
    """The limit of the model that a run trains; `UserError` when it cannot be found."""
    from distilwhisper_lib.model.checkpoint import Source, read_fields  # seconds: transformers

    source, revision = locate(config.student), config.student_revision
    fields = read_fields(Source(source, {"revision": revision}))
    return LabelLimit(
        fields.get("max_target_positions", 448), lambda: _load_tokenizer(source, revision)
    )


def _load_tokenizer(source: str, revision: str) -> Any:
    from transformers import WhisperProcessor

    return WhisperProcessor.from_pretrained(source, revision=revision).tokenizer


TESTS = ("in_domain", "out_of_domain")
PARTS = ("train", "validation", *TESTS)


class Unread(NamedTuple):
    """Rows of a corpus's sheet in a language or split that a run has no use for."""

    corpus: str
    language: str
    split: str
    where: tuple[str, ...]  # of each row


@dataclass(frozen=True)
class RunData:
    """Corpus tables (columns of corpora.COLUMNS) of one run."""

    train: pd.DataFrame
    validation: pd.DataFrame
    in_domain: pd.DataFrame  # test
    out_of_domain: pd.DataFrame  # test
    corpora: dict[str, str]  # part -> corpus name
    dropped: dict[str, list[Dropped]]  # part -> clips that cannot be used, each with its reason
    changed: dict[str, list[Changed]]  # part -> its clips whose transcript was cleaned
    leaks: list[Leak]  # sentences or ids that stand in two parts
    about: dict[str, dict[str, str]]  # part -> name, licence, source, ... of its corpus
    asked: dict[str, int | None]  # part -> the clips that the configuration wants, None for all
    # Rows of a person's own sheets that no part reads.
    unread: list[Unread] = field(default_factory=list)
    # corpus -> of a person's own sheet, how many rows, and columns of which nothing is known
    sheets: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Corpus and where it is from, clips, hours and hash of each part, and how many of its
        clips FFmpeg decoded, by which PyAV, where it did.
        """
        return {
            part: {
                "corpus": self.corpora[part],
                "about": self.about[part],
                "clips": len(table),
                "hours": round(float(table["seconds"].sum()) / 3600, 4),
                "sha256": corpus_hash(table),
                **_by_ffmpeg(table),
            }
            for part, table in self.tables().items()
        }

    def report(self) -> dict[str, Any]:
        """`describe` and, for each part, its language and split, the number of clips that were
        asked for (None: all), the lengths of its shortest and longest, its speakers, every clip
        that was left out, and why, every transcript that was cleaned, and what is worth knowing of
        how recordings were read and of texts that look odd. Beside them "leaks", with the rows
        that hold them, "unread" and "sheets".
        """
        parts = self.describe()
        for part, table in self.tables().items():
            lengths = table["seconds"]
            parts[part] |= {
                "language": table["language"].iloc[0],
                "split": table["split"].iloc[0],
                "asked": self.asked[part],
                "seconds": {
                    "shortest": round(float(lengths.min()), 2),
                    "longest": round(float(lengths.max()), 2),
                },
                "speakers": int(table["speaker"].replace("", pd.NA).nunique()),
                "dropped": [clip._asdict() for clip in self.dropped[part]],
                "notes": _noted(table),
                "changed": [c._asdict() | {"what": list(c.what)} for c in self.changed[part]],
            }
        places = self._places() if self.leaks else {}
        leaks = []
        for leak in self.leaks:
            rows = {  # once, where one test set stands for both domains
                f"{self.corpora[part]}: {places[part][leak.value]}": None
                for part in leak.splits
                if leak.value in places.get(part, ())
            }
            leaks.append(leak._asdict() | {"splits": list(leak.splits), "where": list(rows)})
        unread = [
            rest._asdict() | {"rows": len(rest.where), "where": list(rest.where)}
            for rest in self.unread
        ]
        sheets = {
            name: {"rows": rows, "columns_not_read": columns}
            for name, (rows, columns) in self.sheets.items()
        }
        return {"parts": parts, "leaks": leaks, "unread": unread, "sheets": sheets}

    def _places(self) -> dict[str, dict[str, str]]:
        """Of each part with a sheet, the first row of each sentence."""
        return {
            part: dict(
                zip(table["text"].map(normalize_marks)[::-1], table[WHERE][::-1], strict=True)
            )
            for part, table in self.tables().items()
            if WHERE in table
        }

    def tables(self) -> dict[str, pd.DataFrame]:
        return {part: getattr(self, part) for part in PARTS}

    def summary(self) -> pd.DataFrame:
        """One row a part, to look at."""
        rows = {
            part: {
                "corpus": self.corpora[part],
                "clips": len(table),
                "asked for": asked_for(self.asked[part], len(table)),
                "minutes": round(float(table["seconds"].sum()) / 60, 1),
                "mean seconds": round(float(table["seconds"].mean()), 2),
                "speakers": table["speaker"].replace("", pd.NA).nunique(),
                "dropped": _count_reasons(self.dropped[part]) or "none",
            }
            for part, table in self.tables().items()
        }
        return pd.DataFrame.from_dict(rows, orient="index")


def _by_ffmpeg(table: pd.DataFrame) -> dict[str, Any]:
    clips = sum(FFMPEG_READ in notes for notes in table[NOTES])
    return {"by_ffmpeg": {"clips": clips, "av": version("av")}} if clips else {}


def _noted(table: pd.DataFrame) -> list[dict[str, str]]:
    """id, place and note of each note on a clip."""
    places = table.get(WHERE, pd.Series("", index=table.index))
    noted = table[["id", NOTES]].assign(where=places).explode(NOTES).dropna()
    return noted.to_dict("records")


def data_of(config: RunConfig, data: RunData) -> dict[str, dict[str, Any] | None]:
    """The record's "data": what a run reads, None for what one that trains nothing does not."""
    read = PARTS if config.method in TRAINED else TESTS
    return {part: about if part in read else None for part, about in data.describe().items()}


def asked_for(asked: int | None, clips: int) -> str:
    """ "all", "3000", or, where the corpus has not so many that can be used, how many it has."""
    if asked is None:
        return "all"
    return f"{asked}" if clips >= asked else f"{asked}, has {clips}"


def load_data(config: RunConfig) -> RunData:
    """Read a run's four tables, leave out what it cannot use, choose and check.

    Left out are clips over the window, broken recordings of corpora that have such, and, where a
    transcript has to be learnt, those too long for the decoder. A corpus with fewer clips than
    asked for gives all that it has; tables and reports say so. Raises UserError when the run's
    models cannot do what it asks, before anything is read, when a corpus or a recording that must
    be readable is not, and when a part is empty.
    """
    from distilwhisper_lib.model.checkpoint import check_models  # seconds: transformers

    # Longer clips would be cut, and their texts not.
    limit = min(config.max_seconds, check_models(config))
    wanted = {
        "train": (config.in_domain, "train", config.train_size),
        "validation": (config.in_domain, "validation", config.validation_size),
        "in_domain": (config.in_domain, "test", config.test_size),
        "out_of_domain": (config.out_of_domain, "test", config.test_size),
    }
    subsets = {"train": config.train_subset, "validation": config.validation_subset}
    tables: dict[str, pd.DataFrame] = {}
    dropped: dict[str, list[Dropped]] = {}
    changed: dict[str, list[Changed]] = {}
    about: dict[str, dict[str, str]] = {}
    asked: dict[str, int | None] = {}
    unread: dict[str, dict[tuple[str, str], Sequence[str]]] = {}
    sheets: dict[str, tuple[int, list[str]]] = {}
    stopped: list[UserError] = []
    for part, (name, split, size) in wanted.items():
        try:
            corpus = open_part(config, name, split)
            ids = read_subset(listed) if (listed := subsets.get(part)) is not None else None
            asked[part] = size if ids is None else len(ids)
            table, left_out = _take(config, corpus, part, limit, asked[part], ids)
        except UserError as error:
            stopped.append(error)
            if not name.startswith("folder"):  # the next may be a download
                break
            continue  # to tell at once all that a person has to mend
        tables[part], dropped[part], about[part] = table, left_out, corpus.about
        if corpus.sheet:
            sheets[name] = sum(map(len, corpus.sheet.values())), list(corpus.unknown_columns)
        unread.setdefault(name, dict(corpus.sheet)).pop((config.language, split), None)
        ours = set(table["id"])
        changed[part] = [clip for clip in corpus.changed if clip.id in ours]
    if stopped:
        raise _one_error(config, stopped)
    corpora = {part: name for part, (name, _, _) in wanted.items()}
    # An id names a clip within its corpus only.
    named = {p: t.assign(id=f"{corpora[p]}:" + t["id"]) for p, t in tables.items()}
    leaks = check_disjoint(named)
    return RunData(
        **tables,
        corpora=corpora,
        dropped=dropped,
        changed=changed,
        leaks=leaks,
        about=about,
        asked=asked,
        unread=[
            Unread(name, *of, tuple(places))
            for name, rest in unread.items()
            for of, places in rest.items()
        ],
        sheets=sheets,
    )


def _take(
    config: RunConfig,
    corpus: Corpus,
    part: str,
    limit: float,
    size: int | None,
    ids: Sequence[str] | None,
) -> tuple[pd.DataFrame, list[Dropped]]:
    """What a part takes of its corpus, of clips up to `limit` seconds, and what it leaves;
    `UserError` where nothing is left."""
    over = {"label_over": label_limit(config).over} if part == "train" else {}
    table, left_out = take_usable(corpus, size, limit, ids=ids, **over)
    if table.empty:
        reasons = {clip.reason for clip in left_out}
        mend = (
            f"use clips of at most {limit:g} s"
            + (", or raise max_seconds" if limit == config.max_seconds else "")
            if reasons == {TOO_LONG}
            else f"put recordings there that can be used; the first: {left_out[0].detail}"
            if left_out
            else "add rows"
        )
        name, what = corpus.about["name"], "test" if part in TESTS else part
        raise UserError(
            f"corpus {name!r} has no {what} clip in {config.language!r} that can be used "
            f"({_count_reasons(left_out) or 'no rows'}): {mend}"
        )
    return table, left_out


def _one_error(config: RunConfig, stopped: Sequence[UserError]) -> UserError:
    """All that stops a reading as one error; with a page, where rows of a sheet are at fault."""
    found: dict[tuple[str, str], None] = {}
    for error in stopped:
        each = error.found if isinstance(error, Faults) else [("", str(error))]
        found |= dict.fromkeys(each)  # a sheet of several parts is read for each of them
    if not any(isinstance(error, Faults) for error in stopped):
        return stopped[0] if len(found) == 1 else Faults(list(found))
    return Faults(list(found), str(write_faults(config.data_report, list(found))))


def open_part(config: RunConfig, name: str, split: str, language: str | None = None) -> Corpus:
    """A split of a corpus as a run sees it; in another language than the run's, where given."""
    language = language or config.language
    return open_corpus(name, language, split, config.data_dir, config.keep_notes)


def sample_clips(config: RunConfig, count: int | None) -> pd.DataFrame:
    """The first clips of the in-domain test set alone, None for all: no other part is read."""
    corpus = open_part(config, config.in_domain, "test")
    return take_usable(corpus, count, config.max_seconds)[0]


def _count_reasons(dropped: list[Dropped]) -> str:
    counts = Counter(clip.reason for clip in dropped)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())

"""What one run reads: four tables, checked before anything is trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .audio import audio_seconds
from .config import RunConfig
from .corpora import corpus_hash, load_corpus
from .errors import UserError
from .files import write_atomic
from .subsets import Leak, check_disjoint, select, within_window, write_subset

PARTS = ("train", "validation", "in_domain", "out_of_domain")


@dataclass(frozen=True)
class RunData:
    """Corpus tables (columns of corpora.COLUMNS) of one run."""

    train: pd.DataFrame
    validation: pd.DataFrame
    in_domain: pd.DataFrame  # test
    out_of_domain: pd.DataFrame  # test
    corpora: dict[str, str]  # part -> corpus name
    dropped: dict[str, int]  # part -> clips longer than the window
    leaks: list[Leak]  # sentences or ids that stand in two parts

    def describe(self) -> dict[str, dict[str, Any]]:
        """The record's "data": corpus, clips, hours and hash of each part."""
        return {
            part: {
                "corpus": self.corpora[part],
                "clips": len(table),
                "hours": round(float(table["seconds"].sum()) / 3600, 4),
                "sha256": corpus_hash(table),
            }
            for part, table in self.tables().items()
        }

    def tables(self) -> dict[str, pd.DataFrame]:
        return {part: getattr(self, part) for part in PARTS}

    def summary(self) -> pd.DataFrame:
        """One row a part, to look at."""
        rows = {
            part: {
                "corpus": self.corpora[part],
                "clips": len(table),
                "minutes": round(float(table["seconds"].sum()) / 60, 1),
                "mean seconds": round(float(table["seconds"].mean()), 2),
                "speakers": table["speaker"].replace("", pd.NA).nunique(),
                "too long, dropped": self.dropped[part],
            }
            for part, table in self.tables().items()
        }
        return pd.DataFrame.from_dict(rows, orient="index")


def load_data(config: RunConfig) -> RunData:
    """Read, cut to the window, choose and check a run's four tables.

    Raises UserError when a corpus cannot be read, a part is empty, or an audio file cannot be
    opened.
    """
    wanted = {
        "train": (config.in_domain, "train", config.train_size),
        "validation": (config.in_domain, "validation", config.validation_size),
        "in_domain": (config.in_domain, "test", config.test_size),
        "out_of_domain": (config.out_of_domain, "test", config.test_size),
    }
    tables: dict[str, pd.DataFrame] = {}
    dropped: dict[str, int] = {}
    for part, (corpus, split, size) in wanted.items():
        table = load_corpus(corpus, config.language, split, config.data_dir)
        table, too_long = within_window(table, config.max_seconds)
        if table.empty:
            raise UserError(
                f"corpus {corpus!r} has no {split} clip in {config.language!r} of at most "
                f"{config.max_seconds:g} s: use shorter clips or raise max_seconds"
            )
        tables[part], dropped[part] = select(table, size), len(too_long)
    for path in sorted({path for table in tables.values() for path in table["audio"]}):
        audio_seconds(path)  # raises for a file whose header cannot be read
    corpora = {part: corpus for part, (corpus, _, _) in wanted.items()}
    # An id names a clip within its corpus only.
    named = {p: t.assign(id=f"{corpora[p]}:" + t["id"]) for p, t in tables.items()}
    return RunData(**tables, corpora=corpora, dropped=dropped, leaks=check_disjoint(named))


def write_data_report(config: RunConfig, data: RunData) -> list[str]:
    """Publish what the runs of this preset and language read; returns the files written.

    ``data/<preset>-<language>.json``: clips, hours, speakers, dropped clips, leaks and hashes.
    ``subsets/<preset>-<language>-<part>.txt``: the chosen clip names with their SHA-256.
    """
    name = f"{config.preset}-{config.language}"
    report = {
        "preset": config.preset,
        "language": config.language,
        "parts": data.describe(),
        "speakers": {
            part: int(table["speaker"].replace("", pd.NA).nunique())
            for part, table in data.tables().items()
        },
        "too_long": data.dropped,
        "leaks": [leak._asdict() for leak in data.leaks],
    }
    text = json.dumps(report, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    paths = [write_atomic(config.results_dir / "data" / f"{name}.json", text)]
    for part, table in data.tables().items():
        paths.append(write_subset(table, config.results_dir / "subsets" / f"{name}-{part}.txt"))
    return [str(path) for path in paths]

"""Long recordings made of test clips: words lost, errors, and how well the borders are heard.

    python -m benchmarks.study.longform RUN ... [--domain in_domain] [--minutes 10] [--out FILE]

The test clips of the speaker who has most of them are joined, a pause between two, so that it is
known when each begins and ends. Each RUN (the folder of a trained one), and before it the Whisper
that it began with, decodes the recording by the timestamps that it predicts, and window by window.
``--srt FOLDER`` keeps what was heard as subtitles; ``--out`` adds to the file, in the place of what
it has of the same run and way.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from benchmarks.study.tuning import add_row
from distilwhisper_lib import session
from distilwhisper_lib.config.settings import DOMAINS
from distilwhisper_lib.data.corpora import corpus_hash
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.errors import command
from distilwhisper_lib.evaluation.run import load_run
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.results.provenance import provenance
from distilwhisper_lib.scoring.rates import score
from distilwhisper_lib.speech.audio import SAMPLE_RATE
from distilwhisper_lib.speech.features import SpeechDataset
from distilwhisper_lib.transcription.transcriber import Transcriber
from distilwhisper_lib.transcription.transcripts import Transcript

PAUSES = 0.3, 1.0  # seconds between two clips, at least and at most
SEED = 77
RULE = "whisper"  # of the errors


class Long(NamedTuple):
    """A recording of many clips: (samples,) at 16 kHz, and what is said from when to when."""

    samples: np.ndarray
    clips: pd.DataFrame  # with the columns opens and closes, in seconds of the recording
    speaker: str


def joined(table: pd.DataFrame, minutes: float) -> Long:
    """Clips of one speaker end to end, in an order and with pauses of the seed's."""
    speaker = table["speaker"].value_counts().index[0]
    rng = np.random.default_rng(SEED)
    table = table[table["speaker"] == speaker].sample(frac=1, random_state=SEED)
    clips = SpeechDataset(table)
    parts, opens, closes, at = [], [], [], 0
    for number in range(len(clips)):
        sound = clips[number]["audio"]
        if at + len(sound) > 60 * minutes * SAMPLE_RATE:
            break
        pause = np.zeros(int(rng.uniform(*PAUSES) * SAMPLE_RATE), np.float32)
        parts += [sound, pause]
        opens.append(at / SAMPLE_RATE)
        closes.append((at + len(sound)) / SAMPLE_RATE)
        at += len(sound) + len(pause)
    placed = table.head(len(opens)).assign(opens=opens, closes=closes)
    return Long(np.concatenate(parts[:-1]), placed, speaker)


def border_errors(heard: Transcript, clips: pd.DataFrame) -> np.ndarray:
    """Seconds from where each clip begins to the nearest begin of a segment, and so for its end."""
    found = []
    for true, told in (
        (clips["opens"], [s.start for s in heard.segments]),
        (clips["closes"], [s.end for s in heard.segments]),
    ):
        gaps = np.abs(true.to_numpy()[:, None] - np.array(told)[None])  # (clips, segments)
        found.append(gaps.min(1))
    return np.concatenate(found)


def measured(heard: Transcript, long: Long, language: str) -> dict[str, Any]:
    """Per cent of the words wrong and lost, and seconds between borders and those heard."""
    rows = [{"reference": " ".join(long.clips["text"]), "hypothesis": heard.text}]
    words = score(rows, language)[RULE]["wer"]
    errors = border_errors(heard, long.clips)
    total = words["hits"] + words["substitutions"] + words["deletions"]
    return {
        "segments": len(heard.segments),
        "wer": round(100 * words["wer"], 2),
        "lost": round(100 * words["deletions"] / total, 2),
        "inserted": round(100 * words["insertions"] / total, 2),
        "border_median": round(float(np.median(errors)), 3),
        "border_90th": round(float(np.quantile(errors, 0.9)), 3),
    }


def rows_of(
    folder: Path, domain: str, minutes: float, srt: Path | None, known: set[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    """What a run and its student hear of the recording, each in both ways.

    A student that an earlier run had as well is not heard again: systems and recordings in `known`.
    """
    config = load_run(folder).config
    long = joined(getattr(load_data(config), domain), minutes)
    about = {
        "language": config.language,
        "domain": domain,
        "speaker": long.speaker,
        "clips": len(long.clips),
        "clips_sha256": corpus_hash(long.clips),
        "seconds": round(len(long.samples) / SAMPLE_RATE, 1),
    }
    stock = {"system": f"{config.student}, stock", "learned_timestamps": None, "overrides": {}}
    ours = {"learned_timestamps": config.timestamps, "overrides": config.overrides()}
    both = (
        (stock, config.student, config.spoken),  # it knows the language whose token is borrowed
        ({"system": config.run_id} | ours, folder, config.language),
    )
    for system, name, language in both:
        if (pair := (system["system"], about["clips_sha256"])) in known:
            continue
        known.add(pair)
        listener = Transcriber.load(name, revision=config.student_revision)
        for timestamps in (True, False):
            begin = time.process_time()
            heard = listener.transcribe(long.samples, language, timestamps=timestamps)
            seconds = time.process_time() - begin
            if srt is not None:
                named = config.run_id if name == folder else f"stock-{config.run_id}"
                write_atomic(srt / f"{named}-{heard.timed_by}.srt", heard.srt())
            yield {
                **system,
                "timed_by": heard.timed_by,
                "window_seconds": listener.window,
                **about,
                **measured(heard, long, config.language),
                "cpu_seconds": round(seconds, 1),
                "made": provenance(),
            }


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study.longform",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--domain", choices=tuple(DOMAINS), default="in_domain")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--srt", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    session.quieten()
    known: set[tuple[str, str]] = set()
    for run in given.runs:
        for row in rows_of(run, given.domain, given.minutes, given.srt, known):
            names = ("segments", "wer", "lost", "inserted", "border_median", "border_90th")
            print(row["system"], row["timed_by"], *(f"{k} {row[k]}" for k in names), flush=True)
            if given.out:
                add_row(given.out, row, "system", "timed_by", "clips_sha256")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What is in a run's data, and what is wrong with it, before anything is trained on it."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import Any

import pandas as pd

from distilwhisper_lib.config.settings import RunConfig
from distilwhisper_lib.data.clips import (
    EMPTY,
    LABEL_TOO_LONG,
    MISSING,
    NO_TEXT,
    TOO_LONG,
    UNREADABLE,
    WHERE,
)
from distilwhisper_lib.data.corpora import file_digest
from distilwhisper_lib.data.page import write_page
from distilwhisper_lib.data.splits import LabelLimit, RunData, asked_for
from distilwhisper_lib.data.subsets import write_subset
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.io.leaks import mask_values
from distilwhisper_lib.languages import find_language
from distilwhisper_lib.scoring.text import normalize_marks
from distilwhisper_lib.speech.audio import FFMPEG_READ

_FIRST = 3  # of many clips
_BARS = 32  # of the histogram of label lengths

_SHARED = {"text": "sentence", "speaker": "speaker", "id": "id"}
# What became of clips, as clips_table() says it, and of what asks to be looked at, one and many.
_KEPT, _AMONG = "kept", "among them"
_LOOK, _CHANGED, _LEFT = "look at", "changed", "left out"
_TWO_PARTS, _TWICE, _NOT_READ = "in two parts", "twice", "not read"
_TOLD = {
    _LOOK: ("clip that looks odd", "clips that look odd"),
    _CHANGED: ("change to a text", "changes to texts"),
    _LEFT: ("clip left out", "clips left out"),
    _TWO_PARTS: ("sentence or speaker in two parts", "sentences or speakers in two parts"),
    _TWICE: ("recording that stands there twice", "recordings that stand there twice"),
    _NOT_READ: ("row not read", "rows not read"),
}
_LEGEND = (
    "Each row counts the clips of a part, which is a corpus and its split: kept; among them, those "
    "read in another way, which nobody need mend; look at, used as they are although they look "
    "odd; changed, their text as it is used; left out; in two parts, in two parts of the data; "
    "twice, one recording under two names; not read, rows of the sheet in another language or "
    "split. The last column shows up to three of them; the CSV file beside this page has all."
)

# Column of the table -> the reasons it counts; all others go to "other".
_COLUMNS = {
    "over the window": (TOO_LONG,),
    "label over the limit": (LABEL_TOO_LONG,),
    "no text": (NO_TEXT,),
    "unreadable": (MISSING, EMPTY, UNREADABLE),
}


def preflight(data: RunData, labels: LabelLimit) -> dict[str, Any]:
    """`RunData.report` with what takes a closer look, as plain values for JSON.

    Each of "parts" gains "tokens", the lengths of its labels (decoder
    positions, prompt included; 'labels' knows the model's limit); "label_over_limit", the ids of
    clips that are over it and stay, because they are transcribed and not learnt;
    "repeated_sentences", how many clips say what an earlier one of the part says. Beside them:
    "leaks", with speakers that stand in several parts of one corpus as well as sentences and ids;
    "duplicates", groups of clips with the same recording to the byte.
    """
    report = data.report()
    for part, table in data.tables().items():
        counts = labels.count(list(table["text"]))
        over = [id_ for id_, n in zip(table["id"], counts, strict=True) if n > labels.limit]
        report["parts"][part] |= {
            "tokens": _lengths(counts, labels.limit),
            "label_over_limit": over,
            "repeated_sentences": int(table["text"].map(normalize_marks).duplicated().sum()),
        }
    report["leaks"] += _shared_speakers(data)
    report["duplicates"] = _same_recordings(data)
    return report


def preflight_table(report: dict[str, Any]) -> pd.DataFrame:
    """A row a part: what it holds, what was left out by reason, what it shares, whose it is."""
    return pd.DataFrame.from_dict(
        {name: _row(name, part, report) for name, part in report["parts"].items()}, orient="index"
    )


def dropped_table(report: dict[str, Any]) -> pd.DataFrame:
    """A row a clip that was left out: part, id, reason, detail; and those kept in spite of it."""
    rows = [
        {"part": name, **clip} for name, part in report["parts"].items() for clip in part["dropped"]
    ]
    rows += [
        {"part": name, "id": id_, "reason": LABEL_TOO_LONG, "detail": "kept: not learnt"}
        for name, part in report["parts"].items()
        for id_ in part["label_over_limit"]
    ]
    return pd.DataFrame(rows, columns=["part", "id", "reason", "detail"])


def clips_table(report: dict[str, Any], shown: int | None = _FIRST) -> pd.DataFrame:
    """A row for all that happened to clips alike, to be sent to whoever made them and their sheet.

    Columns: "part", the corpus and its split; "what" became of them; "why"; "count"; "which", the
    first `shown` of them (None: all), each with the place that can be mended. A part's first row
    counts all that are "kept", with their lengths; the rows "among them" and "look at" are about
    some of them, "changed" about their texts; "left out" are not in it. At the end what stands in
    two parts, what is one recording under two names or bounds ("twice"), if `preflight` looked, and
    rows of a sheet that no part reads ("not read").
    """
    rows = []
    names = {name: f"{part['corpus']}, {part['split']}" for name, part in report["parts"].items()}
    for name, part in report["parts"].items():
        lengths = "{shortest:.1f} to {longest:.1f} s".format(**part["seconds"])
        told = f"{lengths} each, {60 * part['hours']:.1f} min"
        rows.append((names[name], _KEPT, told, part["clips"], ""))
        noted, cleaned, dropped = defaultdict(list), defaultdict(list), defaultdict(list)
        for clip in part["notes"]:
            noted[clip["notes"]].append(clip["where"] or clip["id"])
        for clip in part["changed"]:
            told = f"{clip['where'] or clip['id']}: {clip['before']!r} -> {clip['after']!r}"
            for what in clip["what"]:
                cleaned[what].append(told)
        for clip in part["dropped"]:
            dropped[clip["reason"]].append(f"{clip['id']} ({clip['detail']})")
        if read := noted.pop(FFMPEG_READ, None):
            rows.append((names[name], _AMONG, FFMPEG_READ, len(read), ""))
        for what, clips in ((_LOOK, noted), (_CHANGED, cleaned), (_LEFT, dropped)):
            for why, told in clips.items():
                rows.append((names[name], what, why, len(told), _first(told, shown)))
    shared = defaultdict(list)
    for leak in report["leaks"]:
        parts = list(dict.fromkeys(names[part] for part in leak["splits"]))
        if len(parts) > 1:  # one test set may stand for both domains
            told = _placed(leak["value"], leak["where"])
            shared["; ".join(parts), f"the same {_SHARED[leak['kind']]}"].append(told)
    rows += [
        (parts, _TWO_PARTS, why, len(told), _first(told, shown))
        for (parts, why), told in shared.items()
    ]
    groups = [
        dict.fromkeys((names[clip["part"]], clip["id"], clip["where"]) for clip in group)
        for group in report.get("duplicates", [])
    ]
    if told := [
        " = ".join(_placed(id_, [where]) for _, id_, where in group)
        for group in groups
        if len(group) > 1
    ]:
        rows.append(("all", _TWICE, "one recording, several names", len(told), _first(told, shown)))
    for rest in report["unread"]:
        why = f"language {rest['language']}, split {rest['split']}"
        rows.append((rest["corpus"], _NOT_READ, why, rest["rows"], _first(rest["where"], shown)))
    return pd.DataFrame(rows, columns=["part", "what", "why", "count", "which"])


def _first(told: list[str], shown: int | None) -> str:
    more = len(told) - len(told[:shown])
    return "; ".join([*told[:shown], *([f"and {more} more"] if more else [])])


def _placed(value: str, places: list[str]) -> str:
    """A value and where it stands, where that is known."""
    told = ", ".join(filter(None, places))
    return f"{value} ({told})" if told else value


def _verdict(clips: pd.DataFrame) -> str:
    """What a person should know who reads no further."""
    counts = clips[clips["what"].isin(_TOLD)].groupby("what", sort=False)["count"].sum()
    if counts.empty:
        return "Every clip is used as it is: there is nothing to mend."
    told = ", ".join(f"{count} {_TOLD[what][count > 1]}" for what, count in counts.items())
    return (
        f"To look at: {told}. The table says which and why; all other clips are used as they are."
    )


def _sheet(name: str, sheet: dict[str, Any]) -> str:
    """How many rows a sheet has, and which of its columns nobody reads."""
    columns = sheet["columns_not_read"]
    besides = f", and columns that are not read: {', '.join(columns)}" if columns else ""
    return f"The sheet of {name} has {sheet['rows']} rows{besides}."


def write_data_report(
    config: RunConfig, data: RunData, report: dict[str, Any] | None = None
) -> list[str]:
    """Publish what the runs of this preset and language read; returns the files written.

    ``config.data_report``: `report`, as preflight() makes it, or `RunData.report`; beside it
    `clips_table` as .csv and as a page, .html, for whoever made the recordings and their sheet.
    ``subsets/``, by the same name, ``-<part>.txt``: the chosen clips with the list's SHA-256. The
    report is written last: where it stands, the lists do, too.
    """
    about, path = {"preset": config.preset, "language": config.language}, config.data_report
    told = mask_values(about | (report or data.report()), path)
    lists = [
        write_subset(table, config.results_dir / "subsets" / f"{path.stem}-{part}.txt")
        for part, table in data.tables().items()
    ]
    clips = clips_table(told)
    sheets = [_sheet(name, sheet) for name, sheet in told["sheets"].items()]
    pages = write_page(
        path,
        f"What was read of {', '.join(dict.fromkeys(data.corpora.values()))}",
        " ".join([_verdict(clips), *sheets]),
        clips,
        f"In {find_language(config.language).name.title()}. {_LEGEND}",
        whole=clips_table(told, shown=None),
    )
    write_atomic(path, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    return [str(written) for written in (path, *lists, *pages)]


def _row(name: str, part: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    reasons = [clip["reason"] for clip in part["dropped"]]
    counts = {column: sum(r in known for r in reasons) for column, known in _COLUMNS.items()}
    leaks = [leak["kind"] for leak in report["leaks"] if name in leak["splits"]]
    twice = sum(clip["part"] == name for group in report["duplicates"] for clip in group)
    return {
        "language": part["language"],
        "split": part["split"],
        "corpus": part["corpus"],
        "clips": part["clips"],
        "asked for": asked_for(part["asked"], part["clips"]),
        "hours": round(part["hours"], 3),
        "speakers": part["speakers"] or "not told apart",
        "tokens, median": part["tokens"]["median"],
        "tokens, longest": part["tokens"]["longest"],
        **{f"dropped: {column}": count for column, count in counts.items()},
        "dropped: other": len(reasons) - sum(counts.values()),
        "label over the limit, kept": len(part["label_over_limit"]),
        "same recording": twice,
        "repeated sentences": part["repeated_sentences"],
        "sentences elsewhere": leaks.count("text"),
        "speakers elsewhere": leaks.count("speaker"),
        "licence": part["about"]["licence"],
        "source": part["about"]["source"],
        "version": part["about"].get("release") or part["about"].get("revision") or "",
    }


def _lengths(counts: list[int], limit: int) -> dict[str, Any]:
    """Mean, median, longest, and a histogram: clips in bars of `width` tokens from 0 on."""
    longest, width = max(counts), max(1, math.ceil(limit / _BARS))
    bars = [0] * (longest // width + 1)
    for count in counts:
        bars[count // width] += 1
    series = pd.Series(counts)
    return {
        "mean": round(float(series.mean()), 2),
        "median": float(series.median()),
        "longest": longest,
        "limit": limit,
        "histogram": {"width": width, "clips": bars},
    }


def _shared_speakers(data: RunData) -> list[dict[str, Any]]:
    """Leaks of kind "speaker"; the same name in another corpus is another person."""
    places: dict[tuple[str, str], set[str]] = defaultdict(set)
    for part, table in data.tables().items():
        for speaker in set(table["speaker"]) - {""}:
            places[data.corpora[part], speaker].add(part)
    return [
        {"kind": "speaker", "value": speaker, "splits": sorted(parts), "where": []}
        for (_, speaker), parts in sorted(places.items())
        if len(parts) > 1
    ]


def _same_recordings(data: RunData) -> list[list[dict[str, str]]]:
    """Clips of any part that hold the same sound, in groups: byte-identical files, or segments of
    one that share more than half of the shorter."""
    heard: dict[str, list[tuple[float, float, dict[str, str]]]] = defaultdict(list)
    for part, table in data.tables().items():
        for clip in table.itertuples():
            start = 0.0 if math.isnan(clip.start) else clip.start
            end = start + clip.seconds if math.isnan(clip.end) else clip.end
            told = {"part": part, "id": clip.id, "where": getattr(clip, WHERE, "")}
            heard[file_digest(clip.audio)].append((start, end, told))
    return [group for clips in heard.values() if len(clips) > 1 for group in _overlapping(clips)]


def _overlapping(clips: list[tuple[float, float, dict[str, str]]]) -> list[list[dict[str, str]]]:
    """Of the segments of one recording, groups in which each shares sound with the longest yet."""
    groups: list[tuple[float, float, list[dict[str, str]]]] = []
    for start, end, told in sorted(clips, key=lambda clip: clip[:2]):
        if groups:
            first, last, group = groups[-1]
            shared = min(last, end) - max(first, start)
            if shared > min(last - first, end - start) / 2:
                groups[-1] = (first, max(last, end), [*group, told])
                continue
        groups.append((start, end, [told]))
    return [group for _, _, group in groups if len(group) > 1]

"""Recordings to text from the command line, going on where an earlier call stopped.

    python -m distilwhisper_lib transcribe recordings/ --language ca --to heard.jsonl

Everything else about it is Transcriber.stream().
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from distilwhisper_lib.config.settings import locate
from distilwhisper_lib.errors import UserError, command
from distilwhisper_lib.io.files import parse_json, told, write_atomic
from distilwhisper_lib.session import quieten
from distilwhisper_lib.transcription.recordings import find_recordings
from distilwhisper_lib.transcription.transcriber import Transcriber
from distilwhisper_lib.transcription.transcripts import (
    SUBTITLES,
    Transcript,
    form_of,
    json_line,
    save_subtitles,
    save_transcripts,
)

_BEGIN = b'{"error": '  # of every line of JSONL, its names being sorted


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where a recording failed, which does not stop the others."""
    parser = argparse.ArgumentParser(prog="python -m distilwhisper_lib transcribe")
    parser.add_argument("source", nargs="+", help="recordings, or one folder of them")
    parser.add_argument("--language", help="name or code; left out, Whisper chooses")
    parser.add_argument("--model", default="openai/whisper-small", help="name or folder")
    parser.add_argument("--experts", help="folder, file or hub name with expert files")
    parser.add_argument("--task", default="transcribe", choices=("transcribe", "translate"))
    parser.add_argument("--timestamps", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--to", help=".jsonl (grows as it goes), .txt, .srt, .vtt, or a folder")
    parser.add_argument("--format", default="srt", choices=SUBTITLES, help="with a folder")
    return _listen(parser.parse_args(arguments))


def _listen(given: argparse.Namespace) -> int:
    named = find_recordings(given.source if len(given.source) > 1 else given.source[0])
    if not any(os.path.exists(locate(str(path))) for _, path in named):
        one, *others = [name for name, _ in named]
        more = f" and {len(others)} more do" if others else " does"
        raise UserError(f"{one}{more} not exist: name recordings, or a folder of them")
    to = Path(given.to) if given.to else None
    growing = False
    if to is not None and to.suffix:  # refused before anything is decoded
        growing = form_of(to, len(named)) == "jsonl"
    if growing:
        done = _done(to)
        named = [one for one in named if one[0] not in done]
    found = []
    if named:
        quieten()
        listener = Transcriber.load(given.model, given.experts)
        options = {"task": given.task, "timestamps": given.timestamps}
        paths = [path for _, path in named]
        heard = listener.stream(paths, given.language, batch_size=given.batch_size, **options)
        for transcript in tqdm(heard, total=len(named), unit="recording", disable=to is None):
            found.append(transcript)
            if growing:
                _append(to, transcript)
            elif to is None:
                print(transcript)
    good = [transcript for transcript in found if transcript.error is None]
    if good and to is not None and not growing:
        if to.suffix:
            save_transcripts(found, to)
        else:
            save_subtitles(found, to, given.format)
    failed = [transcript for transcript in found if transcript.error is not None]
    for transcript in failed if to is not None else ():
        print(f"{transcript.source}: {transcript.error}", file=sys.stderr)
    return 1 if failed else 0


def _done(path: Path) -> set[str]:
    """The recordings that an earlier call finished.

    A torn last line goes, and so do the recordings that failed, which are tried again. UserError
    for a file that holds something else, which stays as it is.
    """
    if not path.exists():
        return set()
    given = path.read_bytes()
    *lines, torn = given.split(b"\n")
    if torn[: len(_BEGIN)] != _BEGIN[: len(torn)]:
        raise _not_ours(path, len(lines) + 1)
    rows = [_row(line, path, number) for number, line in enumerate(lines, start=1)]
    whole = [line for line, row in zip(lines, rows, strict=True) if row["error"] is None]
    good = b"".join(line + b"\n" for line in whole)
    if good != given:
        write_atomic(path, good)
    return {row["source"] for row in rows if row["error"] is None}


def _row(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError:
        raise _not_ours(path, number) from None
    if not isinstance(row, dict) or not {"error", "source"} <= row.keys():
        raise _not_ours(path, number)
    return row


def _not_ours(path: Path, number: int) -> UserError:
    return UserError(
        f"{path}: line {number} is no transcript, and transcripts are added to a .jsonl that is "
        "there: name another file, or move it away"
    )


def _append(path: Path, transcript: Transcript) -> None:
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json_line(transcript))

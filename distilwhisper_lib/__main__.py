"""The one command: ``python -m distilwhisper_lib WORD``, or ``distilwhisper WORD``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from distilwhisper_lib import __version__
from distilwhisper_lib.errors import UserError, command

# Word -> the module whose main() does it (imported when it is asked for) and what that is.
WORDS = {
    "transcribe": ("transcription.command", "recordings to text and subtitles"),
    "train": (
        "training.command",
        "train, evaluate and record one run; also under torchrun",
    ),
    "batch": ("batch.command", "run the notebooks headlessly: a language, a study, a cluster"),
    "results": (
        "report.command",
        "tables, report and pages of what was run",
    ),
    "gates": ("evaluation.forced", "decode a run's test clips again with its gates forced"),
    "export": ("export.bundle", "a run as a plain Whisper, or as expert file and card"),
    "publish": ("export.publish", "an export to the Hugging Face hub"),
}


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Hand the arguments after the word to its command; returns the exit status."""
    word, *rest = (sys.argv[1:] if arguments is None else [*arguments]) or ["--help"]
    if word in ("-h", "--help"):
        print(_help())
        return 0
    if word == "--version":
        print(__version__)
        return 0
    if word not in WORDS:
        raise UserError(f"unknown word {word!r}: expected one of {', '.join(WORDS)}, or --help")
    return importlib.import_module(f"distilwhisper_lib.{WORDS[word][0]}").main(rest)


def _help() -> str:
    lines = [f"  {word:<12}{does}" for word, (_, does) in WORDS.items()]
    return "\n".join(
        [
            "usage: python -m distilwhisper_lib WORD ...   (or: distilwhisper WORD ...)",
            "",
            "Language experts for Whisper (arXiv 2311.01070). `WORD --help` tells the rest.",
            "",
            *lines,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())

"""The exceptions for what a person can mend, and how a command says them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence


class UserError(ValueError):
    """A wrong value, file or setting: the message is one sentence that names the bad value,
    what was expected and how to mend it. It is raised before anything is written or trained.

    What it repeats of a file may be of any length and hold anything, also codes that a terminal
    obeys: the message is one line of at most `LONGEST` printable characters.
    """

    def __init__(self, sentence: object = "") -> None:
        super().__init__(_printable(str(sentence)))


LONGEST = 2000


def _printable(text: str) -> str:
    if text.startswith("Caught ") and "UserError: " in text:  # torch's, of a worker that reads data
        text = text.rsplit("UserError: ", 1)[1].strip()
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    half = LONGEST // 2 - 3
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"


class Faults(UserError):
    """Many faults of a person's own files, found at once.

    ``found`` has all of them, each with the place that can be mended ("metadata.csv, line 3") and
    what is wrong there; the sentence tells the first few, how many more there are and ``where`` all
    of them stand.
    """

    def __init__(self, found: Sequence[tuple[str, str]], where: str = "") -> None:
        self.found = list(found)
        told, before = [], ""
        for place, fault in self.found[:_NAMED]:
            file, _, line = place.rpartition(", ")
            its = line if file and file == before else place  # a file's name once in a row
            told.append(f"{its}: {_ended(fault)}" if its else _ended(fault))
            before = file
        more = len(self.found) - len(told)
        told += [f"And {more} more."] if more else []
        told += [f"All of them: {where}."] if where else []
        super().__init__(" ".join(told))


_NAMED = 3  # of many faults


def _ended(sentence: str) -> str:
    return f"{sentence.rstrip('.')}."


class DiskError(UserError, OSError):
    """The disk is full, read-only or gone. An OSError too, for those who can do without the file.

    Arguments: the operating system's error number and the sentence.
    """

    def __init__(self, number: int | None, sentence: str) -> None:
        OSError.__init__(self, number, _printable(sentence))

    def __str__(self) -> str:
        return self.strerror


def command(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """Decorates the main() of a command line: a UserError is one line on stderr and status 2."""

    @functools.wraps(main)
    def telling(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return telling


def reason(error: BaseException) -> str:
    """What another library's exception says, as part of a sentence: its first line."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__

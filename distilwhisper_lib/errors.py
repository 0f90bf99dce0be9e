"""The exceptions for what a person can mend."""

from __future__ import annotations


class UserError(ValueError):
    """A wrong value, file or setting: the message is one sentence that names the bad value,
    what was expected and how to mend it. It is raised before anything is written or trained."""


class DiskError(UserError, OSError):
    """The disk is full, read-only or gone. An OSError too, for those who can do without the file.

    Arguments: the operating system's error number and the sentence.
    """

    def __init__(self, number: int | None, sentence: str) -> None:
        OSError.__init__(self, number, sentence)

    def __str__(self) -> str:
        return self.strerror


def reason(error: BaseException) -> str:
    """What another library's exception says, as part of a sentence: its first line."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__

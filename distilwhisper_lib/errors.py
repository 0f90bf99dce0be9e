"""The one exception for mistakes that a person can mend."""

from __future__ import annotations


class UserError(ValueError):
    """A wrong value, file or setting: the message is one sentence that names the bad value,
    what was expected and how to mend it. It is raised before anything is written or trained."""


def reason(error: BaseException) -> str:
    """What another library's exception says, as part of a sentence: its first line."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__

"""The one exception for mistakes that a person can mend."""

from __future__ import annotations


class UserError(ValueError):
    """A wrong value, file or setting: the message is one sentence that names the bad value,
    what was expected and how to mend it. It is raised before anything is written or trained."""

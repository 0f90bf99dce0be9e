"""Nobody's tokens and nobody's folders in what is kept or published.

Results that a run leaves, and every executed notebook, pass through here before they are written.
What is found is masked rather than refused, because a run of three hours must not be lost over a
path: a path loses the folders that are this machine's, a token becomes `REMOVED`, and whoever
started the run is told to revoke it. Values that a person gives (parameters, settings) and what is
about to be uploaded are refused instead: there, nothing is lost by asking again.

Tokens belong into the environment (HF_TOKEN, MDC_API_KEY), Colab's secrets, or the hub's own login.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from distilwhisper_lib import PACKAGE
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.files import write_atomic

REMOVED = "[token removed]"
# What the tokens of services that this kit's users meet look like.
_LOOKS_LIKE = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|api_org_[A-Za-z0-9]{20,}"  # Hugging Face, of organisations
    r"|sk-[A-Za-z0-9_-]{20,}"  # OpenAI, Anthropic
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"  # GitHub
    r"|glpat-[\w-]{20,}"  # GitLab
    r"|xox[abeprs]-[\w-]{10,}"  # Slack
    r"|A[KS]IA[0-9A-Z]{16}(?![A-Za-z0-9])"  # AWS
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,}"  # Google
    r"|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{40,}"  # package registries
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"  # JSON web tokens
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[A-Za-z0-9+/=\s\\]*(?:-----END [A-Z ]*PRIVATE KEY-----)?"
    r")"
    r"|(?<=://)[^\s/:@'\"]+:[^\s/@'\"]+(?=@)"  # who, and with which password, in an address
)
# Colours of a terminal, as they are or escaped: their last letter is not part of what follows.
_COLOUR = re.compile(r"((?:\x1b|\\u001b|\\x1b)\[[0-9;]*[A-Za-z])", re.IGNORECASE)
# Variables of the environment whose values are secrets, and how long a value is one.
_SECRET_NAME = re.compile(r"(?:^|_)(?:TOKEN|(?:API)?KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")
_SHORTEST, _SHORTEST_WORD = 8, 16
# The home of anybody, on any system; in JSON, backslashes come in pairs.
_SOMEBODYS_HOME = re.compile(
    r"(?:(?<![\w.~:/\\-])|(?<=file://))(?:"
    r"/(?:home|Users|media|run/media|mnt/[a-z]/Users)/[^\s/\\'\"<>:,;()\[\]{}]+|"
    r"[A-Za-z]:\\{1,2}Users\\{1,2}[^\s/\\'\"<>:,;()\[\]{}]+)"
)
_EDGE = r"(?=[/\\'\"\s<>:,;()\[\]{}`|?#&]|\.?$|\.\s)"  # where the name of a folder is over
_BINARY = re.compile(r"image/(?!svg)|application/pdf|audio/|video/")  # base64 in notebooks


def mask(text: str) -> str:
    """``text`` without tokens and without the folders of this machine.

    A path below the checkout becomes relative to it, a home becomes ``~``.
    """
    return _Mask().text(text)


def mask_values(value: Any, path: str | Path | None = None) -> Any:
    """As `mask`, of every text in JSON values; pictures and sounds of a notebook stay as they are.

    For what becomes JSON, rather than `mask` of that: there, what stands before a path may be the
    second half of an escape. ``path``: what to call it when a token was found.
    """
    masking = _Mask()
    masked = masking.values(value)
    masking.warn(path)
    return masked


def write_public(path: str | Path, content: str) -> Path:
    """`write_atomic` of the masked text: how text files of results are written."""
    masking = _Mask()
    masked = masking.text(content)
    masking.warn(path)
    return write_atomic(path, masked)


def mask_notebook(path: str | Path) -> None:
    """Mask an executed notebook where it lies; one that is no JSON, as a text.

    Raises nothing but what the disk does: whatever is in it, the notebook stays.
    """
    text, masking = Path(path).read_text(encoding="utf-8", errors="surrogateescape"), _Mask()
    try:
        notebook = json.loads(text)
        masking = _Mask(_given_paths(notebook))
        masked = json.dumps(masking.values(notebook), ensure_ascii=False, indent=1) + "\n"
    except (ValueError, RecursionError):
        masked = masking.text(text)
    masking.warn(path)
    if masked != text:
        write_atomic(path, masked.encode("utf-8", errors="surrogateescape"))


def has_token(text: str) -> bool:
    """Whether something in a text is a token, or looks like one."""
    masking = _Mask()
    masking.text(text)
    return masking.tokens > 0


def refuse_tokens(what: str, value: Any) -> None:
    """Raise `UserError`, which does not repeat it, when a value that was given holds a token."""
    if has_token(value if isinstance(value, str) else repr(value)):
        raise UserError(
            f"{what} holds what looks like a token, which would be written into notebooks and "
            "records: leave it out, put it into the environment (HF_TOKEN), Colab's secrets or "
            "`hf auth login`, and revoke it if it was shown anywhere"
        )


class _Mask:
    """What to look for, gathered once for many texts, and how many tokens were found."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self.tokens = 0
        self._secrets = _secrets()
        self._paths = _host_paths(str(Path.home()), _working_folder(), tuple(sorted(set(paths))))

    def text(self, text: str) -> str:
        return "".join(
            part if odd % 2 else self._plain(part) for odd, part in enumerate(_COLOUR.split(text))
        )

    def _plain(self, text: str) -> str:
        text, count = _LOOKS_LIKE.subn(REMOVED, text)
        for secret in self._secrets:
            count += text.count(secret)
            text = text.replace(secret, REMOVED)
        self.tokens += count
        for pattern, instead in self._paths:
            text = pattern.sub(instead, text)
        return _SOMEBODYS_HOME.sub("~", text)

    def values(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.values(key): self._entry(key, item) for key, item in value.items()}
        return [self.values(item) for item in value] if isinstance(value, list | tuple) else value

    def _entry(self, key: Any, item: Any) -> Any:
        return item if isinstance(key, str) and _BINARY.match(key) else self.values(item)

    def warn(self, path: str | Path | None) -> None:
        if self.tokens:
            name = "what was written" if path is None else Path(path).name
            print(
                f"{name}: held a token, which was removed from it: revoke that token, and take it "
                "out of what wrote it",
                file=sys.stderr,
            )


# What to look for ----------------------------------------------------------------------------


def _secrets() -> list[str]:
    """The values of this process's secret variables, and the token of the hub's login."""
    named = (value for name, value in os.environ.items() if _SECRET_NAME.search(name.upper()))
    values = {value.strip() for value in (*named, _login())}
    return sorted(filter(_is_secret, values), key=len, reverse=True)


def _is_secret(value: str) -> bool:
    """Not a word or a path, which a variable called TOKEN may hold too."""
    shortest = _SHORTEST_WORD if value.isalpha() else _SHORTEST
    return len(value) >= shortest and not os.path.exists(value)


def _login() -> str:
    """What ``hf auth login`` has kept. Not `huggingface_hub.get_token`, which asks on Colab."""
    from huggingface_hub import constants  # late: records are read without it

    try:
        return Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def _given_paths(notebook: Any) -> Iterator[str]:
    """The absolute paths among the parameters that papermill gave a notebook."""
    metadata = notebook.get("metadata") if isinstance(notebook, dict) else None
    papermill = metadata.get("papermill") if isinstance(metadata, dict) else None
    waiting = [papermill.get("parameters")] if isinstance(papermill, dict) else []
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, str) and value.startswith("{"):  # settings, as JSON
            with suppress(ValueError, RecursionError):
                waiting.append(json.loads(value))
        elif isinstance(value, str) and Path(value).is_absolute():
            yield value


@lru_cache(maxsize=8)
def _host_paths(home: str, here: str, given: tuple[str, ...]) -> list[tuple[re.Pattern[str], str]]:
    """Patterns of this machine's folders, longest first, and what stands for each: of the checkout
    nothing, of a home ``~``, of Python's environment and of what was given the last part."""
    roots = (
        {str(PACKAGE.resolve().parent)}
        if (PACKAGE.resolve().parent / "notebooks").is_dir()
        else set()
    )
    roots |= {str(root) for root in (Path(here), Path(here).resolve()) if is_checkout(root)}
    named = {*given, *([sys.prefix] if sys.prefix != sys.base_prefix else [])}
    instead = {path: Path(path).name for path in named}
    instead |= dict.fromkeys((home, str(Path(home).resolve())), "~") | dict.fromkeys(roots, ".")
    patterns = []
    for path in sorted(instead, key=len, reverse=True):
        if len(Path(path).parts) < 2:  # "/"
            continue
        # In JSON, a backslash is two of them.
        name = r"(?<![\w.~-])" + re.escape(path.rstrip("/\\")).replace(r"\\", r"\\{1,2}")
        if path in roots:
            patterns.append((re.compile(rf"{name}[/\\]{{1,2}}(?=[^\s/\\'\"<>])"), ""))
        patterns.append((re.compile(name + _EDGE, re.MULTILINE), instead[path]))
    return patterns


def is_checkout(folder: Path) -> bool:
    """Whether a folder is the kit with its notebooks."""
    return (folder / "notebooks").is_dir() and (folder / "distilwhisper_lib").is_dir()

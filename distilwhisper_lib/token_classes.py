"""What a decoder token is: part of the prompt, a word's first, inside a word, or punctuation.

Read off the tokenizer's own byte-level tokens, put together again to text: a character may be cut
over several tokens, so no token is judged by itself.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

# prompt: tokens that carry no text: start, language, task, no-timestamps (and any other special
#   token, should the model say one).
# word_initial: the first token, punctuation aside, of each stretch of text between spaces; the
#   space belongs to what follows it, as in the tokenizer. That is a word's first token. Where
#   words are written without spaces (Thai, Chinese, Japanese, ...: Language.spaced is False) it is
#   the first token of a phrase, and a word's first token is mostly found under "inside".
# inside: every other token of letters, digits, marks, or parts of them.
# punctuation: nothing but punctuation and symbols (Unicode's categories P and S) beside spaces.
TOKEN_CLASSES = ("prompt", "word_initial", "inside", "punctuation")


def token_classes(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The class of each token of a transcript, prompt or not; see TOKEN_CLASSES."""
    added = _added_ids(tokenizer)
    names = tokenizer.convert_ids_to_tokens(list(ids))
    pieces = [
        b"" if token in added or name is None else _bytes(name)
        for token, name in zip(ids, names, strict=True)
    ]
    spoken = _characters(pieces)
    found = []
    opened = False  # whether the current stretch has had its first token
    for place, characters in enumerate(spoken):
        if characters is None:
            found.append("prompt")
            continue
        if characters[0].isspace():
            opened = False
        # A token of spaces alone goes with what follows it, one at the end with punctuation.
        following = (c for c in spoken[place:] if c is not None and not c.isspace())
        if all(c.isspace() or unicodedata.category(c)[0] in "PS" for c in next(following, "")):
            found.append("punctuation")
        else:
            found.append("inside" if opened else "word_initial")
            opened = True
    return found


def _characters(pieces: Sequence[bytes]) -> list[str | None]:
    """For each piece the characters of the whole text that it has a byte of; None without bytes.

    A byte that is no UTF-8 counts as a character of its own, and is no punctuation.
    """
    owners = [place for place, piece in enumerate(pieces) for _ in piece]
    found = [[] if piece else None for piece in pieces]
    position = 0
    for character in b"".join(pieces).decode("utf-8", "surrogateescape"):
        size = len(character.encode("utf-8", "surrogateescape"))
        for place in dict.fromkeys(owners[position : position + size]):
            found[place].append(character)
        position += size
    return [characters if characters is None else "".join(characters) for characters in found]


def _bytes(token: str) -> bytes:
    """The bytes that a byte-level token stands for; a letter of no byte stands for itself."""
    alphabet = _alphabet()
    return b"".join(
        bytes([alphabet[c]]) if c in alphabet else c.encode("utf-8", "replace") for c in token
    )


@lru_cache(maxsize=1)
def _alphabet() -> dict[str, int]:
    """Letter -> byte, of byte-level BPE: Latin-1's visible characters are themselves.

    The other bytes are, in order, the letters from U+0100 on. Source: Radford et al., Language
    models are unsupervised multitask learners, 2019 (GPT-2), whose tokenizer Whisper took over.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in visible]
    letters = {chr(byte): byte for byte in visible}
    return letters | {chr(0x100 + place): byte for place, byte in enumerate(hidden)}


@lru_cache(maxsize=4)
def _added_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    return frozenset(tokenizer.get_added_vocab().values())

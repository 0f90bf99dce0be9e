"""What a decoder token is: part of the prompt, a word's first, inside a word, or punctuation; and
how it is written.

Read off the tokenizer's own byte-level tokens, put together again to text: a character may be cut
over several tokens, so no token is judged by itself.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
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
REST = "\u203f"  # an undertie: the rest of a character whose first bytes the token before has


def token_classes(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The class of each token of a transcript, prompt or not; see TOKEN_CLASSES."""
    spoken = _characters(_pieces(tokenizer, ids))
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


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Each token as it is written, special ones by their names.

    A character that is cut over several tokens stands in the first, and the others begin with
    REST instead of it.
    """
    pieces = _pieces(tokenizer, ids)
    texts = [
        "" if piece else name or ""
        for piece, name in zip(pieces, tokenizer.convert_ids_to_tokens(list(ids)), strict=True)
    ]
    for character, (first, *others) in _spelled(pieces):
        texts[first] += character
        for place in others:
            texts[place] = REST
    return [text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in texts]


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[bytes]:
    """The bytes of each token; none for special ones."""
    added = _added_ids(tokenizer)
    names = tokenizer.convert_ids_to_tokens(list(ids))
    return [
        b"" if token in added or name is None else _bytes(name)
        for token, name in zip(ids, names, strict=True)
    ]


def _characters(pieces: Sequence[bytes]) -> list[str | None]:
    """For each piece the characters of the whole text that it has a byte of; None without bytes."""
    found = [[] if piece else None for piece in pieces]
    for character, places in _spelled(pieces):
        for place in places:
            found[place].append(character)
    return [characters if characters is None else "".join(characters) for characters in found]


def _spelled(pieces: Sequence[bytes]) -> Iterator[tuple[str, list[int]]]:
    """Each character of the whole text, and the pieces that have a byte of it.

    A byte that is no UTF-8 counts as a character of its own, and is no punctuation.
    """
    owners = [place for place, piece in enumerate(pieces) for _ in piece]
    position = 0
    for character in b"".join(pieces).decode("utf-8", "surrogateescape"):
        size = len(character.encode("utf-8", "surrogateescape"))
        yield character, list(dict.fromkeys(owners[position : position + size]))
        position += size


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

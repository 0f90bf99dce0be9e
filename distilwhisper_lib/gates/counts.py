"""What the gates did in one batch of transcripts, counted by utterance and kind of token.

Counts, because everything that is shown of a test set is a ratio of their sums, and intervals
need them by speaker. Made while decoding, from what a GateRecorder heard.

A decoder token is part of the prompt, a word's first, inside a word, or punctuation: read off the
tokenizer's own byte-level tokens, put together again to text, because a character may be cut over
several tokens, so that no token is judged by itself.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
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


SIDES = ("encoder", "decoder")
FRAME_CLASSES = ("audio", "padding")  # encoder positions of 20 ms: heard, or filling the window
CLASSES = {"encoder": FRAME_CLASSES, "decoder": TOKEN_CLASSES}
# A side's headline is the share over these; padding frames are counted apart.
COUNTED = {"encoder": ("audio",), "decoder": TOKEN_CLASSES}

# Scores are binned by their size, five bins a tenfold, because nothing says how large they are.
# A score of 0 or more sends the token to the expert, and 0 is an edge: the bins from there on
# hold exactly the tokens that the expert got.
_SIZES = [float(f"{0.01 * 10 ** (step / 5):.3g}") for step in range(21)]  # 0.01 to 100
SCORE_EDGES = (*(-size for size in reversed(_SIZES)), 0.0, *_SIZES)
BINS = len(SCORE_EDGES) + 1  # below the first edge, between edges, from the last one on

Histograms = dict[str, list[list[int]]]  # side -> (layers, BINS)


def count_gates(
    heard: dict[str, Tensor], audio: Tensor, classes: Sequence[Sequence[str]]
) -> tuple[list[dict[str, Any]], Histograms]:
    """The gates of each utterance of a batch, and how often each score came up in all of it.

    ``heard`` as GateRecorder.take() gives it; ``audio`` (B,): encoder positions that hold audio;
    ``classes``: of each row's decoder inputs, prompt and all, see token_classes(). The last token
    may be there, though it never went through the layers. Returns for each row

    - "encoder", "decoder": share of positions that took the expert, by layer; padding left out
    - "positions": {class: how many positions there are}
    - "expert": {class: of these, how many took the expert, by layer}; empty classes left out
    - "soft": {"encoder", "decoder": mean of sigmoid(score) by layer}, what the gates would be in
      training, without its noise; None where no gate was asked

    and histograms by side and layer over SCORE_EDGES, padding left out.
    """
    masks = {"encoder": _frames(heard["encoder"], audio), "decoder": _tokens(heard, classes)}
    rows: list[dict[str, Any]] = [{"positions": {}, "expert": {}, "soft": {}} for _ in classes]
    histograms: Histograms = {}
    for side in SIDES:
        for name, mask in masks[side].items():
            hits = (heard[side] & mask).sum(2).T.tolist()  # (B, layers)
            for row, units, layers in zip(rows, mask.sum(1).tolist(), hits, strict=True):
                row["positions"][name] = units
                if units:
                    row["expert"][name] = layers
        counted = torch.stack([masks[side][name] for name in COUNTED[side]]).any(0)  # (B, T)
        shares = _means(heard[side].float(), counted)
        scores = heard[f"{side}_scores"]
        soft = _means(scores.sigmoid(), counted)
        for row, share, mean in zip(rows, shares.tolist(), soft.tolist(), strict=True):
            row[side] = _rounded(share)
            row["soft"][side] = None if np.isnan(mean).any() else _rounded(mean)
        histograms[side] = _histograms(scores, counted)
    return rows, histograms


def add_histograms(parts: Iterable[Histograms]) -> Histograms:
    """The sum of several batches' histograms."""
    total: dict[str, np.ndarray | int] = dict.fromkeys(SIDES, 0)
    for part in parts:
        total = {side: total[side] + np.asarray(part[side]) for side in SIDES}
    return {side: counts.tolist() for side, counts in total.items()}


def _frames(gates: Tensor, audio: Tensor) -> dict[str, Tensor]:
    """Class -> bool (B, positions)."""
    heard = torch.arange(gates.shape[2]) < audio[:, None]
    return {"audio": heard, "padding": ~heard}


def _tokens(heard: dict[str, Tensor], classes: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    codes = torch.full(heard["decoder"].shape[1:], -1)
    for row, names in zip(codes, classes, strict=True):
        known = torch.tensor([TOKEN_CLASSES.index(name) for name in names])[: len(row)]
        row[: len(known)] = known
    return {name: codes == code for code, name in enumerate(TOKEN_CLASSES)}


def _means(values: Tensor, counted: Tensor) -> Tensor:
    """(layers, B, T), (B, T) -> (B, layers): mean over the positions that count."""
    total = values.masked_fill(~counted, 0.0).sum(2).T
    return total / counted.sum(1, keepdim=True).clamp(min=1)


def _histograms(scores: Tensor, counted: Tensor) -> list[list[int]]:
    """(layers, B, T) -> (layers, BINS); NaN is nowhere."""
    bins = torch.bucketize(scores, torch.tensor(SCORE_EDGES), right=True)
    known = counted & ~scores.isnan()
    return [
        torch.bincount(layer[mask], minlength=BINS).tolist()
        for layer, mask in zip(bins, known, strict=True)
    ]


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), 4) for value in values]

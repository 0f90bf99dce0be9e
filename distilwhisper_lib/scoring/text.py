"""Named text normalisers, applied to references and hypotheses alike before scoring.

`"whisper"` is the rule of the paper's code: Whisper's basic normaliser with the letters of
unspaced scripts set apart. It removes every combining mark, so Thai tone errors vanish and Tamil
words fall to pieces; its numbers compare with published ones. `"marks"` keeps what a reader of
the language would call a mistake. Results always carry both.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

import regex

from distilwhisper_lib.errors import UserError

# Blocks whose characters the paper's rule scores one by one, as first and last code point.
_UNSPACED_BLOCKS = (
    (0x0E00, 0x109F),  # Thai, Lao, Tibetan, Myanmar
    (0x1100, 0x11FF),  # Hangul jamo
    (0x2E80, 0x9FFF),  # CJK radicals to unified ideographs, kana and bopomofo among them
    (0xA000, 0xA4CF),  # Yi
    (0xA960, 0xA97F),  # Hangul jamo extended A
    (0xAC00, 0xD7FF),  # Hangul syllables, jamo extended B
    (0xF900, 0xFAFF),  # CJK compatibility ideographs
    (0xFE30, 0xFE4F),  # CJK compatibility forms
    (0xFF00, 0xFFEF),  # half- and full-width forms
    (0x1B000, 0x1B16F),  # kana supplements
    (0x20000, 0x3FFFF),  # CJK extensions
)
_UNSPACED = re.compile("[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in _UNSPACED_BLOCKS) + "]")

# Whatever keyboards and fonts put where an apostrophe belongs: grave, acute, modifier letters,
# curly quotes, prime, saltillo, full-width.
_APOSTROPHES = dict.fromkeys(map(ord, "`´ʹʻʼʽ‘’‛′ꞌ＇"), "'")

# Bullet, hyphenation point, bullet operator, dot operator, katakana dot: typed for the Catalan "·".
_MIDDLE_DOT = regex.compile(r"(?<=l)[·•‧∙⋅・](?=l)")
# Zero-width characters, soft hyphens, variation selectors: nothing one could hear or see.
# And the Arabic tatweel, which only stretches a word on the page.
_INVISIBLE = regex.compile(r"[\p{Default_Ignorable_Code_Point}\u0640]+")
_WORD_APOSTROPHE = r"(?<=[\p{L}\p{M}\p{N}])'(?=[\p{L}\p{N}])"
_NOT_TEXT = regex.compile(rf"(?!{_WORD_APOSTROPHE})(?!(?<=l)·(?=l))[^\p{{L}}\p{{M}}\p{{N}}]")
# A mark that stands on no letter (an emoji's, say) belongs to no word.
_STRAY_MARK = regex.compile(r"(?<![\p{L}\p{M}\p{N}])\p{M}+")
# Any of these stays under the mark-preserving rule: a short cut for nearly every text.
_SOUNDED = regex.compile(
    r"(?V1)[[\p{Ll}\p{Lo}\p{Nd}]--[\p{Default_Ignorable_Code_Point}ꞌ\uFB50-\uFEFF]]"
)

# What other tools and models write around speech: <|endoftext|>, <|ca|>, <|0.00|>.
_SPECIAL = regex.compile(r"<\|[^<>|]{0,40}\|>")
# Format characters that show nothing: zero-width spaces, marks of order and direction, soft
# hyphens. Joiners and the Mongolian separator are spelling where such a script's letter precedes.
_JOINED = "".join(
    rf"\p{{{script}}}"
    for script in (
        "Arab", "Syrc", "Mong", "Deva", "Beng", "Guru", "Gujr", "Orya", "Taml", "Telu", "Knda",
        "Mlym", "Sinh", "Mymr", "Khmr", "Tibt",
    )
)  # fmt: skip
_FORMAT = regex.compile(
    rf"(?V1)[\p{{Cf}}&&\p{{Default_Ignorable_Code_Point}}--[\u200C\u200D\u180E]]"
    rf"|(?<![{_JOINED}])[\u200C\u200D\u180E]"
)
_CONTROL = regex.compile(r"\p{Cc}")
# Why a text looks odd.
FORMULA, LOST, MISREAD, MARKS, BRACKETED, TWO_ROWS = (
    "a spreadsheet's formula or error for a text", "letters that were lost (\ufffd)",
    "UTF-8 that was read as another alphabet", "another program's marks",
    "notes beside words, which are learnt and by Whisper's rule not scored",
    "a text that looks as if it held another row",
)  # fmt: skip
# A word that Whisper's rule takes for a note rather than for speech stands in one of these.
_BRACKETS = re.compile(r"[\[(<]")

# What other programs leave in a transcript: nobody says it, and nobody can know what was meant.
_FORMULA = regex.compile(r"\s*(?:=\w+\(|=[\d(+-]|[#]{2,}|#[¡¿]?[\p{Lu}/0]+[!?]?\s*$)")
_MARKUP = regex.compile(
    r"<[|/]?\w[^<>]{0,40}>|<\s*\|[^<>]{0,40}\|\s*>|<\|\w|&(?:[a-zA-Z]{2,8}|#\d{1,6});"
    r"|\[(?:UNK|PAD|BOS|EOS|CLS|SEP|MASK)\]|▁|\\(?:[nrt]|u[0-9a-fA-F]{4})"
)
# What Whisper's rule takes out, and what else people put around what is not said.
_BESIDE = regex.compile(r"\[[^\]]+\]|\([^)]+\)|\{[^}]+\}|（[^）]+）|\*\w[^*]*\*|[♪♫♬]")
# A line, and in the next one two separators of a sheet.
_ROWS = re.compile(r"[\r\n][^\r\n]*([,;\t|])[^\r\n]*\1")
# Tables of 8 bits as which UTF-8 is read by mistake.
_TABLES = ("cp1252", "cp1250", "cp1251", "mac_roman", "cp437")

# What clean_transcript() may have changed.
TOKENS, FORM, INVISIBLE, SPACES = (
    "special tokens taken out", "letters put together (NFC)", "invisible characters taken out",
    "spaces and line breaks made one space",
)  # fmt: skip


def clean_transcript(text: str) -> tuple[str, tuple[str, ...]]:
    """(a transcript as it can be learnt and scored, what had to be changed for it).

    NFC, as models' own texts are; without special tokens of Whisper's, which a tokenizer would
    take for its own, and without characters that show nothing; runs of white space one space, none
    at the ends. Letters, marks, case and punctuation stay as they are.
    """
    changed = []
    for what, step in _CLEANING.items():
        if (cleaned := step(text)) != text:
            changed.append(what)
        text = cleaned
    return text, tuple(changed)


_CLEANING: dict[str, Callable[[str], str]] = {
    TOKENS: lambda text: _without_tokens(text) if _SPECIAL.search(text) else text,
    INVISIBLE: lambda text: _FORMAT.sub("", text),
    FORM: lambda text: unicodedata.normalize("NFC", text),
    SPACES: lambda text: " ".join(_CONTROL.sub(" ", text).split()),
}


def oddities(text: str) -> tuple[str, ...]:
    """Why a transcript, as it was given, should be looked at: each a few words; mostly none.

    A spreadsheet's formula or error, letters that were lost or read by another alphabet's table,
    marks of another program. All may be what somebody said, so that nothing is changed for it.
    """
    found = {
        FORMULA: _FORMULA.match(text),
        LOST: "\ufffd" in text,
        MISREAD: not text.isascii() and _misread(text),
        MARKS: _MARKUP.search(plain := _SPECIAL.sub(" ", text)),
        TWO_ROWS: _ROWS.search(text),
    }
    if not any(found.values()):  # else brackets are part of that
        found[BRACKETED] = _BESIDE.search(plain) and not is_note(plain)
    return tuple(what for what, is_so in found.items() if is_so)


def _misread(text: str) -> bool:
    """Whether the bytes of an 8-bit table make whole UTF-8: other texts hardly ever do."""
    for table in _TABLES:
        with suppress(UnicodeError):
            text.encode(table).decode("utf-8")
            return True
    return False


def _without_tokens(text: str) -> str:
    """What stands between special tokens, one space apart: these spaces are nobody's fault."""
    return " ".join(filter(None, map(str.strip, _SPECIAL.split(text))))


def is_note(text: str) -> bool:
    """Whether a text says nothing under Whisper's rule, which drops what stands in brackets:
    "[music]", "(laughs)"."""
    return bool(_BRACKETS.search(text)) and not normalize_whisper(text)


@lru_cache(maxsize=1)
def _whisper_basic() -> Callable[[str], str]:
    # Late, because importing transformers takes a second.
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer(remove_diacritics=False, split_letters=False)


def normalize_whisper(text: str) -> str:
    """The paper's rule: lower case, no bracketed words, no marks, symbols or punctuation.

    Characters of unspaced scripts (Chinese, Japanese, Korean, Thai, Lao, ...) stand apart.
    Differs: transformers 5 splits *every* script into letters when asked to split, which the
    code behind the paper did not, so the splitting is done here.
    """
    return " ".join(_UNSPACED.sub(r" \g<0> ", _whisper_basic()(text)).split())


def normalize_marks(text: str) -> str:
    """The mark-preserving rule: NFKC, lower case, letters, digits and combining marks only.

    Apostrophes inside words stay, written ``'`` whichever variant was typed, and so does the
    Catalan ``l·l``; all other punctuation and symbols separate words; invisible characters go;
    runs of white space become one space. Words in brackets are kept: somebody may have said them.
    """
    # Apostrophes first: NFKC would turn the acute accent into a space and a combining mark.
    # Afterwards again, since NFKC takes ligatures such as "ŉ" apart.
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower()
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text.translate(_APOSTROPHES)))
    text = _MIDDLE_DOT.sub("·", _STRAY_MARK.sub("", text))
    return " ".join(_NOT_TEXT.sub(" ", text).split())


def says_nothing(text: str) -> bool:
    """Whether the mark-preserving rule leaves nothing: no text, punctuation, invisible characters.

    Then Whisper's rule leaves at most some of the invisible ones.
    """
    return not (_SOUNDED.search(text) or normalize_marks(text))


NORMALIZERS: dict[str, Callable[[str], str]] = {
    "whisper": normalize_whisper,
    "marks": normalize_marks,
}


def normalize(text: str, name: str) -> str:
    """`text` under the normaliser called `name`, a key of `NORMALIZERS`."""
    if name not in NORMALIZERS:
        raise UserError(f"Unknown normaliser {name!r}: choose one of {', '.join(NORMALIZERS)}.")
    return NORMALIZERS[name](text)

"""The normalisers: the paper's rule against recorded outputs, ours by what must stay and go."""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from pathlib import Path

import pytest

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.text import NORMALIZERS, normalize, normalize_marks, normalize_whisper

GOLDEN = Path(__file__).parent / "golden" / "normalizer"
CASES = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))


def test_the_golden_file_is_the_recorded_one():
    manifest = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256((GOLDEN / "cases.json").read_bytes()).hexdigest()
    assert digest == manifest["files"]["cases.json"]["sha256"]
    assert len(CASES["normalize"]) == 49


@pytest.mark.parametrize("case", CASES["normalize"], ids=lambda case: repr(case["input"]))
def test_whisper_rule_gives_the_reference_s_output(case):
    assert normalize_whisper(case["input"]) == case["split_letters_true"]


@pytest.mark.parametrize("pair", CASES["pairs"], ids=lambda pair: repr(pair["reference"]))
def test_whisper_rule_on_the_scored_pairs(pair):
    assert normalize_whisper(pair["reference"]) == pair["normalized_reference"]
    assert normalize_whisper(pair["hypothesis"]) == pair["normalized_hypothesis"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Col·legi, PARAL·LEL!", "col·legi paral·lel"),
        ("Col•legi col‧legi coŀlegi", "col·legi col·legi col·legi"),
        ("punt · volat, a·b", "punt volat a b"),
        ("L'Anna se'n va", "l'anna se'n va"),
        ("L’Anna l‘home l`hora l´aigua", "l'anna l'home l'hora l'aigua"),
        ("dʼaquí l′any l＇or", "d'aquí l'any l'or"),
        ("«Bon dia» 'digué' els nois'", "bon dia digué els nois"),
        ("Об’єднання з'їзд", "об'єднання з'їзд"),
        ("així-així 3,14 % x_y", "així així 3 14 x y"),
        ("Příliš žluťoučký kůň", "příliš žluťoučký kůň"),
        ("Łódź ŻÓŁĆ", "łódź żółć"),
        ("ＡＢＣ\u3000１２３ ﬁne", "abc 123 fine"),
        ("a\u200bb c\xadd \ufeffe\u2060", "ab cd e"),
        ("Hola 😀👍🏽 ❤️ món 👨\u200d👩\u200d👧", "hola món"),
        (" a \t\n  b\xa0c ", "a b c"),
        ("*️⃣ a !́ b", "a b"),
        ("[música] (riu) i canta", "música riu i canta"),
        ("!!! ... ---", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_marks_rule(text, expected):
    assert normalize_marks(text) == expected


@pytest.mark.parametrize(
    "letters", ["ภา", "ລາ", "ངར", "ကခ", "ᄀᄂ", "가나", "ꀀꀁ", "ひカ", "漢字", "𠀀𠀁"]
)
def test_whisper_rule_sets_unspaced_letters_apart(letters):
    assert normalize_whisper(letters) == " ".join(letters)


def test_composed_and_decomposed_letters_are_the_same():
    composed = "příliš žluťoučký kůň àèéíòóú"
    decomposed = unicodedata.normalize("NFD", composed)
    assert decomposed != composed
    assert normalize_marks(decomposed) == composed


@pytest.mark.parametrize(
    "text",
    ["สวัสดีครับ", "ไม่ใช่", "வணக்கம் எப்படி இருக்கிறீர்கள்", "नमस्ते आप कैसे हैं", "عَلَيْكُمْ"],
)
def test_marks_rule_keeps_every_mark_and_breaks_no_word(text):
    assert normalize_marks(text) == text
    assert normalize_whisper(text) != text  # the paper's rule does lose them


def test_a_thai_tone_error_counts_only_under_marks():
    right, wrong = "ใกล้", "ใกล่"  # "near", and the same letters in another tone
    assert normalize_whisper(right) == normalize_whisper(wrong)
    assert normalize_marks(right) != normalize_marks(wrong)


def test_marks_rule_changes_nothing_the_second_time():
    draw = random.Random(0)
    points = [*range(0x20, 0x600), *range(0x900, 0xF00), *range(0x1E00, 0x2200), 0x1F468, 0xFE0F]
    for _ in range(3000):
        once = normalize_marks("".join(map(chr, draw.choices(points, k=6))))
        assert normalize_marks(once) == once


def test_normalize_goes_by_name():
    assert set(NORMALIZERS) == {"whisper", "marks"}
    assert normalize("Col·legi!", "whisper") == "col legi"
    assert normalize("Col·legi!", "marks") == "col·legi"
    with pytest.raises(UserError, match="'basic'.*whisper, marks"):
        normalize("x", "basic")

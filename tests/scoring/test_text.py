"""The normalisers: the paper's rule against recorded outputs, ours by what must stay and go."""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from pathlib import Path

import pytest

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.scoring.text import (
    NORMALIZERS,
    normalize,
    normalize_marks,
    normalize_whisper,
    oddities,
    says_nothing,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "normalizer"
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


# The mark-preserving rule, worked out by hand, in each language that the kit is about.
BY_LANGUAGE = {
    "ca": [
        ("L'Anna va dir: «Bon dia!» — i se'n va anar.", "l'anna va dir bon dia i se'n va anar"),
        ("Col·legi, PINGÜÍ, àèéíòóú, Ç", "col·legi pingüí àèéíòóú ç"),
        ("l’intel·ligent; PARAL•LEL, escriu-me'n", "l'intel·ligent paral·lel escriu me'n"),
    ],
    "gl": [
        ("O can ñoño comeu 25 mazás; ¿si ou non?", "o can ñoño comeu 25 mazás si ou non"),
        ("A Coruña, ó mencer… ¡Boas!", "a coruña ó mencer boas"),
    ],
    "cs": [
        ("Pr\u030cíliš z\u030cluťoučky\u0301 ku\u030an\u030c!", "příliš žluťoučký kůň"),
        ("č. 5/2023 – str. 10–12", "č 5 2023 str 10 12"),
    ],
    "hu": [
        ("Árvíztűrő tükörfúrógép.", "árvíztűrő tükörfúrógép"),
        ("„Idézet” – mondta (halkan).", "idézet mondta halkan"),
    ],
    "pl": [
        ("Zażółć gęślą jaźń; ŁÓDŹ, Łódź", "zażółć gęślą jaźń łódź łódź"),
        ("„W 2020 r. było ok. 38 mln osób.”", "w 2020 r było ok 38 mln osób"),
    ],
    "ta": [
        ("வணக்கம், எப்படி இருக்கிறீர்கள்?", "வணக்கம் எப்படி இருக்கிறீர்கள்"),
        ("௧௨௩ ரூபாய்!", "௧௨௩ ரூபாய்"),
    ],
    "th": [
        ("เด็กๆ ไป (โรงเรียน) แล้ว!", "เด็กๆ ไป โรงเรียน แล้ว"),
        # NFKC writes the vowel "am" as the two signs that it is made of.
        ("น\u0e49\u0e33 ๑๒๓ บาท ฯลฯ", "น\u0e49\u0e4d\u0e32 ๑๒๓ บาท ฯลฯ"),
    ],
    "uk": [
        ("з’їзд, пам`ять, ЇЖАК, Ґанок", "з'їзд пам'ять їжак ґанок"),
        ("Привіт, як справи? Об'єднання «Мрія»", "привіт як справи об'єднання мрія"),
    ],
    "ar": [
        ("السَّلامُ عَلَيْكُمْ، كيف حالُكَ؟", "السَّلامُ عَلَيْكُمْ كيف حالُكَ"),
        ("١٢٣٤٥ ريالاً ﷺ", "١٢٣٤٥ ريالاً صلى الله عليه وسلم"),
    ],
    "hi": [
        ("नमस्ते, आप कैसे हैं?", "नमस्ते आप कैसे हैं"),
        ("क्षत्रिय १२३ रुपये।", "क्षत्रिय १२३ रुपये"),
    ],
}


@pytest.mark.parametrize("language", BY_LANGUAGE)
def test_both_rules_have_goldens_in_every_language(language):
    recorded = [case for case in CASES["normalize"] if case["lang"] == language]
    assert len(recorded) >= 2  # of the paper's rule
    for text, expected in BY_LANGUAGE[language]:
        assert normalize_marks(text) == expected
        assert normalize_marks(expected) == expected


def test_the_two_rules_differ_just_where_the_paper_s_loses_something():
    agree = {
        language
        for language, pairs in BY_LANGUAGE.items()
        if all(normalize_whisper(expected) == expected for _, expected in pairs)
    }
    assert agree == {"gl", "cs", "hu", "pl"}  # no apostrophes, no combining marks


@pytest.mark.parametrize(
    "text",
    ["", "  ", "\u200b", "...", "«»", "\u00ad.\ufeff", "\N{GRINNING FACE}", "´", "ʼ", "ꞌ", "\u0301",
     "\u3164", "\ufc5e", "— !"],
)  # fmt: skip
def test_nothing_is_said(text):
    assert normalize_marks(text) == "" and says_nothing(text)


@pytest.mark.parametrize(
    "text", ["a", "é.", "1", "½", "①", "ก", "ﻻ", "Ǆ", "ﬁ", "[soroll]", "𝔸", "l·"]
)
def test_something_is_said(text):
    assert normalize_marks(text) and not says_nothing(text)


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


def test_the_tatweel_stretches_a_word_and_is_no_letter():
    assert normalize("كـــتاب", "marks") == normalize("كتاب", "marks") == "كتاب"
    assert says_nothing("ـــ")


@pytest.mark.parametrize(
    "text",
    [
        "#NAAM?", "#¿NOMBRE?", "#DIV/0!", "#N/A", "#######", "=ALS(A1;2)",  # of a spreadsheet
        "caf\ufffd", "cafÃ©", "Ã\xa0 demain", "PÅ™Ã\xadliÅ¡", "PĹ™Ă\xadliĹˇ", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚",
        "< |endoftext| >", "<unk>", "<i>molt</i>", "R&amp;D", "&#233;l",
        "hola [EOS]", "▁hal ▁lo", "l\\u00e9", "caf√©", "caf├⌐", "=1+1", "<|endoftext hola",
        "(rialles) sí", "sí [tos] no", "*tos* sí", "♪ la la ♪", "hola,ca,train\nb.wav,dia,ca",
    ],
)  # fmt: skip
def test_what_another_program_left_in_a_text_is_noticed(text):
    assert len(oddities(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "molt bé", "CAFÉ", "l'été à Noël", "«Señor», ¿qué?", "příliš žluťoučký kůň", "привет",
        "ไม่เป็นไร", "1 = 2", "= dos", "#hola", "Il-Ġimgħa Ġorġ", "a < b & c > d",
        "AT&T; R & D;", "No. #1", "",
    ],
)  # fmt: skip
def test_what_people_write_is_not(text):
    assert oddities(text) == ()

"""Languages are found under every name their models and corpora use."""

from __future__ import annotations

import pytest
from transformers.models.whisper.tokenization_whisper import LANGUAGES as WHISPER
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.languages import (
    _ALIASES,
    LANGUAGES,
    code_in,
    find_language,
    whisper_language,
)

PAPER = "ca cs gl hu pl ta th uk bg fi hi id ro sk sl vi ar".split()


def test_the_paper_s_languages_and_the_two_of_the_demo_are_there():
    assert list(LANGUAGES) == [*PAPER, "en", "nl"]
    assert all(code == language.code for code, language in LANGUAGES.items())


@pytest.mark.parametrize("code", LANGUAGES)
def test_codes_and_names_are_whisper_s_own(code):
    assert LANGUAGES[code].name == WHISPER[code]
    assert LANGUAGES[code].fleurs.split("_")[0] == code


def test_aliases_are_whisper_s_own():
    whisper_aliases = {
        alias: code
        for alias, code in TO_LANGUAGE_CODE.items()
        if code in LANGUAGES and alias != WHISPER[code]
    }
    assert whisper_aliases == _ALIASES


@pytest.mark.parametrize(
    "given", ["ca", "CA", "catalan", "Catalan", " CATALAN ", "Valencian", "ca_es", "CA_ES"]
)
def test_any_case_name_code_alias_and_fleurs_code(given):
    assert find_language(given) is LANGUAGES["ca"]


def test_unspaced_languages_are_headlined_by_characters():
    assert find_language("thai").headline == "cer"
    assert find_language("tamil").headline == "wer"
    unspaced = {code for code in WHISPER if find_language(code).headline == "cer"}
    assert unspaced == {"th", "zh", "yue", "ja", "lo", "km", "my", "bo"}


def test_every_language_of_whisper_is_known_by_each_of_its_names():
    for code, name in WHISPER.items():
        language = find_language(code.upper())
        assert (language.code, language.name) == (code, name)
        assert whisper_language(f" {name.title()} ") == (code, name)
        assert (language.code in LANGUAGES) == (language.fleurs is not None)
    for alias, code in TO_LANGUAGE_CODE.items():
        assert find_language(alias).code == code


def test_corpora_know_the_languages_of_the_table_only():
    assert code_in("common_voice", find_language("ca")) == "ca"
    assert code_in("fleurs", find_language("ca")) == "ca_es"
    for corpus in ("common_voice", "fleurs"):
        with pytest.raises(UserError, match=rf"'eu' \(basque\) in corpus '{corpus}' is not known"):
            code_in(corpus, find_language("basque"))


@pytest.mark.parametrize("given", ["klingon", "", "c", None, 7, ["ca"]])
def test_unknown_language_lists_the_known_ones(given):
    with pytest.raises(
        UserError, match=r"Unknown language .*ca \(catalan\), cs \(czech\)"
    ) as error:
        find_language(given)
    assert repr(given) in str(error.value)

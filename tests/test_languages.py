"""Languages are found under every name their models and corpora use."""

from __future__ import annotations

import pytest
from transformers.models.whisper.tokenization_whisper import LANGUAGES as WHISPER
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.languages import (
    ALIASES,
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
    assert whisper_aliases == ALIASES


@pytest.mark.parametrize(
    "given", ["ca", "CA", "catalan", "Catalan", " CATALAN ", "Valencian", "ca_es", "CA_ES"]
)
def test_any_case_name_code_alias_and_fleurs_code(given):
    assert find_language(given) is LANGUAGES["ca"]


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        ("ca-ES", "ca"), ("ca-valencia", "ca"), ("pt-BR", "pt"), ("pt_PT", "pt"), ("zh-CN", "zh"),
        ("zh-Hant-TW", "zh"), ("zh-yue", "yue"), ("nb", "no"), ("nb-NO", "no"), ("nn", "nn"),
        ("jv", "jw"), ("fil", "tl"), ("fil-PH", "tl"), ("iw", "he"), ("in", "id"), ("cmn", "zh"),
        ("cat", "ca"), ("deu", "de"), ("ger", "de"), ("ces", "cs"), ("cze", "cs"), ("arb", "ar"),
        ("swh", "sw"), ("prs", "fa"), ("sr-Latn-RS", "sr"), ("es-419", "es"), ("EN-us", "en"),
    ],
)  # fmt: skip
def test_tags_of_bcp_47_and_codes_of_iso_639(tag, code):
    assert find_language(tag).code == code


@pytest.mark.parametrize(
    ("tag", "code", "fleurs"),
    [("gn", "gn", None), ("grn", "gn", None), ("gn-PY", "gn", None), ("ast", "ast", "ast_es"),
     ("lg_ug", "lg", "lg_ug"), ("ckb", "ckb", "ckb_iq"), ("WUU", "wuu", None)],
)  # fmt: skip
def test_a_language_that_whisper_does_not_know_goes_by_its_code(tag, code, fleurs):
    found = find_language(tag)
    assert (found.code, found.name, found.title, found.fleurs) == (code, code, code, fleurs)
    assert not found.known and find_language("ca").known


@pytest.mark.parametrize(
    "unknown", ["und", "mul", "zxx", "qaa", "foo", "x-private", "en--", "日本語", "a" * 300]
)
def test_a_tag_of_no_language_of_whisper_is_one_sentence(unknown):
    with pytest.raises(UserError, match="Unknown language '.*': give the code or English name of"):
        find_language(unknown)


def test_a_misspelt_name_is_told_with_those_that_are_near():
    with pytest.raises(UserError, match="such as catalan"):
        find_language("Catlan")


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
        assert language.fleurs is None or find_language(language.fleurs) is language
    for alias, code in TO_LANGUAGE_CODE.items():
        assert find_language(alias).code == code


# All of FLEURS.
FLEURS = """
af_za am_et ar_eg as_in ast_es az_az be_by bg_bg bn_in bs_ba ca_es ceb_ph ckb_iq cmn_hans_cn cs_cz
cy_gb da_dk de_de el_gr en_us es_419 et_ee fa_ir ff_sn fi_fi fil_ph fr_fr ga_ie gl_es gu_in ha_ng
he_il hi_in hr_hr hu_hu hy_am id_id ig_ng is_is it_it ja_jp jv_id ka_ge kam_ke kea_cv kk_kz km_kh
kn_in ko_kr ky_kg lb_lu lg_ug ln_cd lo_la lt_lt luo_ke lv_lv mi_nz mk_mk ml_in mn_mn mr_in ms_my
mt_mt my_mm nb_no ne_np nl_nl nso_za ny_mw oc_fr om_et or_in pa_in pl_pl ps_af pt_br ro_ro ru_ru
sd_in sk_sk sl_si sn_zw so_so sr_rs sv_se sw_ke ta_in te_in tg_tj th_th tr_tr uk_ua umb_ao ur_pk
uz_uz vi_vn wo_sn xh_za yo_ng yue_hant_hk zu_za
""".split()
# What Whisper calls otherwise.
OTHERWISE = {"zh": "cmn_hans_cn", "no": "nb_no", "tl": "fil_ph", "jw": "jv_id"}


def test_fleurs_has_every_language_of_whisper_that_it_has():
    assert len(FLEURS) == 102
    by_code = {name.split("_")[0]: name for name in FLEURS}
    expected = {code: OTHERWISE.get(code, by_code.get(code)) for code in WHISPER}
    assert {code: find_language(code).fleurs for code in WHISPER} == expected
    assert {find_language(name).fleurs for name in FLEURS} == {*FLEURS}
    assert code_in("fleurs", find_language("Swahili")) == "sw_ke"
    with pytest.raises(UserError, match=r"'fleurs' does not have 'eu' \(basque\): choose another"):
        code_in("fleurs", find_language("basque"))


def test_common_voice_calls_languages_as_whisper_does():
    assert {code: code_in("common_voice", find_language(code)) for code in WHISPER} == {
        code: code for code in WHISPER
    }


@pytest.mark.parametrize("given", ["klingon", "", "c", None, 7, ["ca"]])
def test_unknown_language_lists_the_known_ones(given):
    with pytest.raises(
        UserError, match=r"Unknown language .*ca \(catalan\), cs \(czech\)"
    ) as error:
        find_language(given)
    assert repr(given) in str(error.value)

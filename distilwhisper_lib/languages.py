"""The languages of the kit: what Whisper, Common Voice and FLEURS call them, and how they write.

Any language that Whisper knows will do, and any other that borrows the token of one (the setting
speaks_as). The first table has those that the kit names. Source: the paper's settings
(arXiv 2311.01070): the eight main languages, those added for the 3k runs, plus English and Dutch,
which the demo and the small real corpora use. The second has what FLEURS calls the others; Common
Voice calls most of them as Whisper does, and its folders decide.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache

import langcodes
from langcodes.tag_parser import LanguageTagError

from distilwhisper_lib.errors import UserError


@dataclass(frozen=True)
class Language:
    """One language under the names its models and corpora use.

    ``code`` and ``name`` are Whisper's (``"ca"``, ``"catalan"``), ``common_voice`` and ``fleurs``
    the corpora's codes (``fleurs`` is None where FLEURS has not the language), ``script`` the
    writing system, None outside the kit's table. ``spaced`` is False where words are written
    without spaces between them, so that a word error rate means little. ``known`` is False of a
    language that Whisper was not taught: its code is that of BCP 47, and its name too.
    """

    code: str
    name: str
    common_voice: str
    fleurs: str | None = None
    script: str | None = None
    spaced: bool = True
    known: bool = True

    @property
    def title(self) -> str:
        """What a table or a figure calls it: ``"Catalan"``."""
        return self.name.capitalize() if self.known else self.code

    @property
    def headline(self) -> str:
        """The metric to read first: ``"wer"``, or ``"cer"`` where words are not spaced."""
        return "wer" if self.spaced else "cer"


_ALL = (
    # The eight of the paper's main table.
    Language("ca", "catalan", "ca", "ca_es", "Latin"),
    Language("cs", "czech", "cs", "cs_cz", "Latin"),
    Language("gl", "galician", "gl", "gl_es", "Latin"),
    Language("hu", "hungarian", "hu", "hu_hu", "Latin"),
    Language("pl", "polish", "pl", "pl_pl", "Latin"),
    Language("ta", "tamil", "ta", "ta_in", "Tamil"),
    Language("th", "thai", "th", "th_th", "Thai", spaced=False),
    Language("uk", "ukrainian", "uk", "uk_ua", "Cyrillic"),
    # Added by the 3k setting.
    Language("bg", "bulgarian", "bg", "bg_bg", "Cyrillic"),
    Language("fi", "finnish", "fi", "fi_fi", "Latin"),
    Language("hi", "hindi", "hi", "hi_in", "Devanagari"),
    Language("id", "indonesian", "id", "id_id", "Latin"),
    Language("ro", "romanian", "ro", "ro_ro", "Latin"),
    Language("sk", "slovak", "sk", "sk_sk", "Latin"),
    Language("sl", "slovenian", "sl", "sl_si", "Latin"),
    Language("vi", "vietnamese", "vi", "vi_vn", "Latin"),
    Language("ar", "arabic", "ar", "ar_eg", "Arabic"),
    # Not in the paper.
    Language("en", "english", "en", "en_us", "Latin"),
    Language("nl", "dutch", "nl", "nl_nl", "Latin"),
)

LANGUAGES: dict[str, Language] = {language.code: language for language in _ALL}

# Code -> the name in FLEURS of those that the table lacks. Source: the folders of google/fleurs,
# data/<name>; it has 102 languages, of which Whisper does not know all.
_FLEURS = {
    "af": "af_za", "am": "am_et", "as": "as_in", "az": "az_az", "be": "be_by", "bn": "bn_in",
    "bs": "bs_ba", "cy": "cy_gb", "da": "da_dk", "de": "de_de", "el": "el_gr", "es": "es_419",
    "et": "et_ee", "fa": "fa_ir", "fr": "fr_fr", "gu": "gu_in", "ha": "ha_ng", "he": "he_il",
    "hr": "hr_hr", "hy": "hy_am", "is": "is_is", "it": "it_it", "ja": "ja_jp", "jw": "jv_id",
    "ka": "ka_ge", "kk": "kk_kz", "km": "km_kh", "kn": "kn_in", "ko": "ko_kr", "lb": "lb_lu",
    "ln": "ln_cd", "lo": "lo_la", "lt": "lt_lt", "lv": "lv_lv", "mi": "mi_nz", "mk": "mk_mk",
    "ml": "ml_in", "mn": "mn_mn", "mr": "mr_in", "ms": "ms_my", "mt": "mt_mt", "my": "my_mm",
    "ne": "ne_np", "no": "nb_no", "oc": "oc_fr", "pa": "pa_in", "ps": "ps_af", "pt": "pt_br",
    "ru": "ru_ru", "sd": "sd_in", "sn": "sn_zw", "so": "so_so", "sr": "sr_rs", "sv": "sv_se",
    "sw": "sw_ke", "te": "te_in", "tg": "tg_tj", "tl": "fil_ph", "tr": "tr_tr", "ur": "ur_pk",
    "uz": "uz_uz", "yo": "yo_ng", "yue": "yue_hant_hk", "zh": "cmn_hans_cn",
    # Whisper does not know these.
    "ast": "ast_es", "ceb": "ceb_ph", "ckb": "ckb_iq", "ff": "ff_sn", "ga": "ga_ie", "ig": "ig_ng",
    "kam": "kam_ke", "kea": "kea_cv", "ky": "ky_kg", "lg": "lg_ug", "luo": "luo_ke",
    "nso": "nso_za", "ny": "ny_mw", "om": "om_et", "or": "or_in", "umb": "umb_ao", "wo": "wo_sn",
    "xh": "xh_za", "zu": "zu_za",
}  # fmt: skip

# Of Whisper's other languages: Chinese, Cantonese, Japanese, Lao, Khmer, Burmese, Tibetan.
_UNSPACED = {"zh", "yue", "ja", "lo", "km", "my", "bo"}

# What BCP 47 calls languages that Whisper has under another code.
_WHISPERS = {"nb": "no", "fil": "tl", "jv": "jw"}

# Codes of ISO 639 that mean no language: undetermined, several, none, uncoded; private ones.
_NO_LANGUAGE = re.compile("und|mul|zxx|mis|q[a-t][a-z]|.*-.*")

_SHORT, _LONGEST = 3, 40  # letters of a code, which is like many others; of a name

# Whisper accepts these other names for languages of the table.
ALIASES = {"valencian": "ca", "flemish": "nl", "moldavian": "ro", "moldovan": "ro"}

_BY_ANY_NAME: dict[str, Language] = {
    **{language.fleurs: language for language in _ALL},
    **{language.name: language for language in _ALL},
    **{alias: LANGUAGES[code] for alias, code in ALIASES.items()},
    **LANGUAGES,
}


def find_language(name_or_code: str) -> Language:
    """The language known under this name or code, in any case.

    Accepts the codes, English names and aliases of every language that Whisper knows (``"ca"``,
    ``"Catalan"``, ``"Valencian"``, ``"eu"``), the FLEURS codes of those that FLEURS has
    (``"ca_es"``), and tags of BCP 47 and codes of ISO 639 (``"pt-BR"``, ``"nb"``, ``"iw"``,
    ``"deu"``, ``"cmn"``); by these, also languages that Whisper does not know (``"gn"``), which
    are not ``known``. Raises `UserError` with near names or examples.
    """
    key = name_or_code.strip().lower() if isinstance(name_or_code, str) else None
    known = _BY_ANY_NAME.get(key) or (key and (_others().get(key) or _by_tag(key)))
    if not known:
        raise unknown_language(name_or_code)
    return known


def unknown_language(name_or_code: str) -> UserError:
    """The error where a language that Whisper knows was expected."""
    key = name_or_code.strip().lower() if isinstance(name_or_code, str) else ""
    names = {*_BY_ANY_NAME, *_others()} if len(key) > _SHORT else ()
    near = difflib.get_close_matches(key[:_LONGEST], names)
    examples = ", ".join(near or (f"{language.code} ({language.name})" for language in _ALL[:8]))
    return UserError(
        f"Unknown language {name_or_code!r}: give the code or English name of a language that "
        f"Whisper knows, such as {examples}; any other goes by its ISO 639 code, with the setting "
        "speaks_as."
    )


def _by_tag(tag: str) -> Language | None:
    """The language that a tag of BCP 47 or a code of ISO 639 means, its region and script aside."""
    try:
        broad, narrow = (
            langcodes.Language.get(langcodes.standardize_tag(tag, macro=macro))
            for macro in (True, False)
        )
    except LanguageTagError:
        return None
    code = _WHISPERS.get(broad.language, broad.language)
    return LANGUAGES.get(code) or _others().get(code) or _beyond(narrow.language)


@cache
def _beyond(code: str | None) -> Language | None:
    """A language that Whisper does not know; None where ISO 639 does not either."""
    if not code or _NO_LANGUAGE.fullmatch(code) or not langcodes.Language.get(code).is_valid():
        return None
    return Language(code, code, code, _FLEURS.get(code), known=False)


@cache
def _others() -> dict[str, Language]:
    """Whisper's languages that the kit's table lacks, under each of their names."""
    # Late, because importing transformers takes a second.
    from transformers.models.whisper.tokenization_whisper import LANGUAGES as CODES
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    made = {
        code: Language(code, name, code, _FLEURS.get(code), spaced=code not in _UNSPACED)
        for code, name in CODES.items()
        if code not in LANGUAGES
    }
    named = {name: made[code] for name, code in TO_LANGUAGE_CODE.items() if code in made}
    theirs = {name: made[code] for code, name in _FLEURS.items() if code in made}
    return made | named | theirs


def code_in(corpus: str, language: Language) -> str:
    """What a corpus, "common_voice" or "fleurs", calls a language; `UserError` if it has it not."""
    code = getattr(language, corpus)
    if code is None:
        raise UserError(
            f"Corpus {corpus!r} does not have {language.code!r} ({language.name}): choose another "
            "corpus or bring recordings of your own as 'folder/<name>'."
        )
    return code


def whisper_language(name_or_code: str) -> tuple[str, str]:
    """(code, English name) of a language, as Whisper has them; takes what find_language() takes.

    Of one that Whisper does not know, the code stands for both.
    """
    language = find_language(name_or_code)
    return language.code, language.name

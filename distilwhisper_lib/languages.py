"""The languages of the kit: what Whisper, Common Voice and FLEURS call them, and how they write.

Source: the paper's settings (arXiv 2311.01070): the eight main languages, those added for the
3k runs, plus English and Dutch, which the demo and the small real corpora use.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import UserError


@dataclass(frozen=True)
class Language:
    """One language under the names its models and corpora use.

    ``code`` and ``name`` are Whisper's (``"ca"``, ``"catalan"``), ``common_voice`` and ``fleurs``
    the corpora's codes, ``script`` the writing system. ``spaced`` is False where words are
    written without spaces between them, so that a word error rate means little.
    """

    code: str
    name: str
    common_voice: str
    fleurs: str
    script: str
    spaced: bool = True

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

# Whisper accepts these other names for languages of the table.
_ALIASES = {"valencian": "ca", "flemish": "nl", "moldavian": "ro", "moldovan": "ro"}

_BY_ANY_NAME: dict[str, Language] = {
    **{language.fleurs: language for language in _ALL},
    **{language.name: language for language in _ALL},
    **{alias: LANGUAGES[code] for alias, code in _ALIASES.items()},
    **LANGUAGES,
}


def find_language(name_or_code: str) -> Language:
    """The language known under this name or code, in any case.

    Accepts Whisper's codes, English names and aliases (``"ca"``, ``"Catalan"``, ``"Valencian"``)
    and FLEURS codes (``"ca_es"``). Raises `UserError` listing what is known.
    """
    key = name_or_code.strip().lower() if isinstance(name_or_code, str) else None
    if key not in _BY_ANY_NAME:
        known = ", ".join(f"{language.code} ({language.name})" for language in _ALL)
        raise UserError(
            f"Unknown language {name_or_code!r}: give one of these codes or names: {known}."
        )
    return _BY_ANY_NAME[key]


def whisper_language(name_or_code: str) -> tuple[str, str]:
    """(code, English name) of any language that Whisper speaks, known to the kit's table or not.

    Takes what find_language() takes, and Whisper's own codes, names and aliases in any case.
    """
    try:
        known = find_language(name_or_code)
        return known.code, known.name
    except UserError:
        # Late, because importing transformers takes a second.
        from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

        key = name_or_code.strip().lower() if isinstance(name_or_code, str) else None
        code = key if key in LANGUAGES else TO_LANGUAGE_CODE.get(key)
        if code is None:
            raise
        return code, LANGUAGES[code]

"""The words and sentence templates of the embedded demo, and the split of its sentences.

About ninety words a language, spelled and inflected correctly. A template names *slots* (keys of
the language's word lists); everything else in it is taken literally. Catalan and Czech slots carry
gender (`m`, `f`, `n`) and, in Czech, the accusative (`4`), so that every sentence is grammatical.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

ENGLISH_SLOTS = {
    "name": "anna peter maria tom",
    "det": "the my this",
    "who": "cat dog horse bird teacher doctor child friend mother father boy girl",
    "what": "bread water milk cheese apple book letter house table flower chair window lamp song "
    "garden river stone bag",
    "does": "sees buys finds wants takes brings draws needs sells hides",
    "acts": "sleeps runs sings works waits laughs reads",
    "how": "red green small big old new white black good beautiful",
    "when": "today tomorrow always never often now here slowly quickly",
    "prep": "with without",
}
ENGLISH_TEMPLATES = (
    "name acts",
    "how what",
    "det who acts",
    "name acts when",
    "when name acts",
    "name and name",
    "det what prep what",
    "det how who acts",
    "det who acts when",
    "name does det what",
    "det what is how",
    "name does how what",
    "when name does what",
    "det who does det what",
    "name does det how what",
    "det what is very how",
    "det how who acts when",
    "name does what and what",
)

CATALAN_SLOTS = {
    "name": "marta pere jordi núria laia andreu",
    "detm": "el un aquest",
    "detf": "la una aquesta",
    "whom": "gat gos cavall nen metge mestre germà pare",
    "whof": "nena mare germana veïna mestra vaca tieta",
    "whatm": "pa llibre formatge vi col·legi mercat jardí cotxe pont peix camí cafè",
    "whatf": "poma llet casa taula flor cançó pel·lícula finestra clau cadira",
    "elided": "l'aigua l'arbre",
    "does": "veu compra busca troba vol porta pinta ven coneix mira",
    "acts": "dorm corre canta treballa riu llegeix balla",
    "howm": "petit vermell blanc vell nou verd gran negre bonic",
    "howf": "petita vermella blanca vella nova verda gran negra bonica",
    "when": "avui demà sempre ara aquí després sovint",
    "prep": "amb sense",
}
CATALAN_TEMPLATES = (
    "name acts",
    "whatm howm",
    "whatf howf",
    "detm whom acts",
    "detf whof acts",
    "name acts when",
    "when name acts",
    "name i name",
    "name does elided",
    "whatm prep whatf",
    "detm whom howm acts",
    "detf whof howf acts",
    "detm whom acts when",
    "detf whof acts when",
    "name does detm whatm",
    "name does detf whatf",
    "detm whatm és howm",
    "detf whatf és howf",
    "when name does whatm",
    "detm whom does elided",
    "detf whof does elided",
    "detm whom does detf whatf",
    "detf whof does detm whatm",
    "name does detm whatm howm",
    "name does detf whatf howf",
    "detm whatm és molt howm",
    "detf whatf és molt howf",
    "name does whatm i whatf",
)

CZECH_SLOTS = {
    "name": "jana petr tomáš lucie jiří eliška",
    "whom": "pes kocour kůň učitel lékař bratr otec soused chlapec",
    "whof": "kočka matka sestra dívka babička učitelka ryba kráva",
    "whatm": "dům stůl chléb sýr dopis strom obraz klíč kámen hrad",
    "whatf4": "vodu knihu školu květinu hračku píseň židli řeku",
    "whatn": "mléko okno město jablko pivo auto",
    "does": "vidí kupuje hledá chce nese maluje zná prodává má",
    "acts": "spí běží zpívá pracuje čeká čte tančí",
    "how": "první poslední cizí moderní domácí zimní",
    "howm": "malý velký starý nový červený černý",
    "when": "dnes zítra vždy teď tady často rychle dobře",
}
CZECH_TEMPLATES = (
    "name acts",
    "how whatn",
    "howm whatm",
    "ten whom acts",
    "ta whof acts",
    "name acts when",
    "when name acts",
    "name a name",
    "name does whatf4",
    "whatm a whatn",
    "ten howm whom acts",
    "ta how whof acts",
    "ten whom acts when",
    "ta whof acts when",
    "name does ten whatm",
    "name does tu whatf4",
    "name does to whatn",
    "name does howm whatm",
    "when name does whatf4",
    "to whatn je how",
    "ten whatm je howm",
    "ten whom does tu whatf4",
    "ta whof does ten whatm",
    "ta whof does to whatn",
    "name does tu how whatf4",
    "name does ten howm whatm",
    "ten whatm je velmi howm",
    "name does whatm a whatf4",
)


@dataclass(frozen=True)
class Grammar:
    """The word lists and templates of one language."""

    slots: dict[str, tuple[str, ...]]
    templates: tuple[tuple[str, ...], ...]

    @property
    def words(self) -> list[str]:
        """Every word that a sentence can hold, sorted."""
        literal = {part for t in self.templates for part in t if part not in self.slots}
        return sorted(literal | {word for words in self.slots.values() for word in words})

    def sample(self, rng: random.Random) -> str:
        """One sentence: a template drawn uniformly, then each of its slots."""
        template = rng.choice(self.templates)
        return " ".join(rng.choice(self.slots.get(part, (part,))) for part in template)


def _grammar(slots: dict[str, str], templates: tuple[str, ...]) -> Grammar:
    return Grammar(
        {slot: tuple(words.split()) for slot, words in slots.items()},
        tuple(tuple(template.split()) for template in templates),
    )


GRAMMARS = {
    "en": _grammar(ENGLISH_SLOTS, ENGLISH_TEMPLATES),
    "ca": _grammar(CATALAN_SLOTS, CATALAN_TEMPLATES),
    "cs": _grammar(CZECH_SLOTS, CZECH_TEMPLATES),
}


def distinct_sentences(language: str, count: int, seed: int) -> list[str]:
    """`count` different sentences in random order; the short templates run dry, which is fine."""
    rng = random.Random(f"{seed}-{language}-sentences")
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(GRAMMARS[language].sample(rng))
    sentences = list(found)
    # Short sentences are found first; without a shuffle the first split would hold them all.
    rng.shuffle(sentences)
    return sentences


def split_sentences(language: str, sizes: dict[str, int], seed: int) -> dict[str, list[str]]:
    """Disjoint sentences for each named split, e.g. {"train": 800, "test": 200}."""
    sentences = distinct_sentences(language, sum(sizes.values()), seed)
    splits = {}
    for name, size in sizes.items():
        splits[name], sentences = sentences[:size], sentences[size:]
    return splits


def fragments(
    language: str, sentences: list[str], words_each: int, pairs: int, seed: int, forbidden: set[str]
) -> list[str]:
    """Single words and two-word pieces for the first stages of the curriculum.

    Every word comes `words_each` times (each time spoken by another voice); pairs are cut out of
    `sentences`. Nothing in `forbidden` (the stored sentences) is returned.
    """
    rng = random.Random(f"{seed}-{language}-fragments")
    cut = []
    while len(cut) < pairs:
        words = rng.choice(sentences).split()
        start = rng.randrange(len(words) - 1)
        cut.append(" ".join(words[start : start + 2]))
    singles = GRAMMARS[language].words * words_each
    return [text for text in singles + cut if text not in forbidden]

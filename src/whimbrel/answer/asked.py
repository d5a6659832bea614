"""What a question asks for: the terms that an answer would have, however it writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from whimbrel.answer.words import listed, stem, terms

LEAST_PARTED = 6
"""Letters of a word that a text may write as two."""

LEAST_BEGINNING = 5
"""Letters in which two forms of a word begin alike, and `MOST_OF_IT` of the longer: "dauert", "dauern"."""
MOST_OF_IT = 0.75

ASKING = {
    "en": listed(
        "what how who whom whose which when where why do does did can could should would is are was were am be i"
        " you we my your our me us there have has had much many please tell explain happen happens happened mean"
        " means meaning called name named work works come comes came get gets got list describe define give"
    ),
    "de": listed(
        "was wie wer wen wem wessen wann wo wohin woher warum wieso weshalb welche welcher welches welchen"
        " welchem wozu wofür womit wovon ist sind war waren wird werden wurde wurden kann können könnte darf"
        " dürfen soll sollte muss müssen hat haben hatte gibt gab heißt nennt bedeutet funktioniert geht viel"
        " viele man bitte erkläre nenne mein meine meinen ich wir ihr dein deine"
    ),
    "fr": listed(
        "que quoi qui quel quelle quels quelles comment quand où pourquoi combien lequel laquelle est sont était"
        " étaient a ont avait peut peuvent puis pouvez dois doit faut fait faire y il elle on je nous vous mon ma"
        " mes votre vos appelle signifie fonctionne existe cela ce"
    ),
    "es": listed(
        "qué que quién quiénes cuál cuáles cómo cuándo dónde adónde por cuánto cuánta cuántos cuántas es son era"
        " eran fue fueron hay puede pueden puedo debo debe tiene tienen hace se llama significa funciona mi su tu"
        " yo nosotros"
    ),
    "it": listed(
        "che cosa chi quale quali come quando dove perché quanto quanta quanti quante è sono era erano fu ha"
        " hanno può possono posso devo deve c'è ci si chiama significa funziona mio mia suo io noi"
    ),
    "pt": listed(
        "que quê quem qual quais como quando onde porque quanto quanta quantos quantas é são era eram foi foram"
        " há pode podem posso devo deve tem têm se chama significa funciona meu minha seu sua eu nós"
    ),
    "nl": listed(
        "wat hoe wie wiens wanneer waar waarheen waarom waarmee welke welk is zijn was waren wordt worden werd"
        " werden kan kunnen mag mogen moet moeten heeft hebben had er veel heet betekent werkt ik we wij mijn je"
        " jouw uw"
    ),
}
"""By language, words of questions that their answers lack, beside stop words."""
_WORD = re.compile(r"[^\W_]+")
_CONTRACTED = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")


@dataclass(frozen=True, slots=True)
class Asked:
    """The content terms of a question; of all its words where it has no other."""

    terms: frozenset[str]
    language: str
    joined: Mapping[str, frozenset[str]]
    """What two neighbouring words give as one ("back up", "backup"), with the terms of the two."""
    parted: Mapping[str, re.Pattern[str]]
    """The same the other way round: a term, and its word as two."""
    written: Mapping[str, str]
    """The terms' words, in lower case, where the stemmer leaves forms of a word apart: not in English."""

    @classmethod
    def of(cls, question: str, language: str) -> Asked:
        asking = ASKING.get(language, frozenset())
        content = _CONTRACTED.sub(lambda word: " " if word[0].lower() in asking else word[0], question)
        wanted = frozenset(terms(content, language)) or frozenset(terms(question, language))
        words = [(word[0].lower(), stem(word[0], language)) for word in _WORD.finditer(question)]
        joined = {
            stem(first + second, language): frozenset({one, other}) & wanted
            for (first, one), (second, other) in pairwise(words)
            if one in wanted
        }
        parted = {term: _in_two(word) for word, term in words if term in wanted and len(word) >= LEAST_PARTED}
        written = {term: word for word, term in words if term in wanted and len(word) >= LEAST_BEGINNING}
        return cls(wanted, language, joined, parted, written if language != "en" else {})

    def within(self, text: str) -> set[str]:
        """Those of the terms that `text` has."""
        there = set(terms(text, self.language))
        found = there & self.terms
        for whole in self.joined.keys() & there:
            found |= self.joined[whole]
        found.update(term for term, in_two in self.parted.items() if term not in found and in_two.search(text))
        missing = self.written.keys() - found
        others = set(_WORD.findall(text.lower())) if missing else ()
        found.update(term for term in missing if any(_alike(self.written[term], other) for other in others))
        return found


def _in_two(word: str) -> re.Pattern[str]:
    places = range(3, len(word) - 1)
    return re.compile("|".join(rf"\b{word[:at]}[ \t\n-]{word[at:]}" for at in places), re.IGNORECASE)


def _alike(word: str, other: str) -> bool:
    begin = max(LEAST_BEGINNING, math.ceil(MOST_OF_IT * max(len(word), len(other))))
    return len(other) >= begin and word[:begin] == other[:begin]

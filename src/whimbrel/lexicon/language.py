"""The language that a lexicon's texts are analysed in: what it is called, where it stands, and finding it out.

A language is a code of ISO 639, `de`, or several that share no script, `ru+en`: each word then meets the stemmer of its
own script. It stands in the uri of a lexicon's view (`tantivy:de`), so that a view is never read in another language
than it was written in: a collection whose language changes gets a new view.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from whimbrel.errors import BadInput
from whimbrel.lexicon.scripts import script_of, shares_script

AUTO = "auto"
"""What a collection's row says while its language is found out from its documents."""

DEFAULT = "en"
"""Where nothing tells: in most collections of few words, names and code it does no harm."""

_SCHEME = "tantivy:"
_CODE = re.compile(r"[a-z]{2,3}")
_MOST_LANGUAGES = 4


def checked(language: str) -> str:
    """`auto`, or codes as they are kept: `de` of `DE`, `pt` of `pt-BR`. Raises `BadInput`."""
    said = language.strip().lower()
    if said == AUTO:
        return AUTO
    codes = [re.split("[-_]", part.strip())[0] for part in said.split("+")]
    if not all(_CODE.fullmatch(code) for code in codes):
        raise BadInput(
            f"{language[:50]!r} is no language.",
            "Give its code of ISO 639, such as en, de or ja; two of different scripts as ru+en; or auto.",
        )
    scripts = [script_of(code) for code in codes]
    if len(set(scripts)) < len(scripts) or len(codes) > _MOST_LANGUAGES:
        raise BadInput(
            f"{language[:50]!r} names two languages of one script, or more than {_MOST_LANGUAGES}.",
            "A word tells by its script which of them it belongs to: name the one that most texts are in.",
        )
    return "+".join(codes)


def uri_of(language: str) -> str:
    """Of a lexicon that is analysed so."""
    return f"{_SCHEME}{language}"


def language_of(uri: str, collection_language: str) -> str:
    """What the lexicon at a view's uri is analysed as; one that does not say was made in the collection's language."""
    found = uri.removeprefix(_SCHEME)
    return found or (DEFAULT if collection_language == AUTO else collection_language)


# --- finding it out --------------------------------------------------------------------------------------------------

LEAST_LETTERS = 100
"""Of all texts together; by fewer a language is not told from its neighbours."""

LEAST_ALONE = 20
"""Where its script is no other language's."""

SAMPLE_CHARS = 2_000
"""Of each text."""

_LEAST_SHARE = 0.1
"""Of the letters, for a second language to count."""

_NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|<[^<>\n]{1,200}>|\S*(?:://|[_@\\]|\w/\w)\S*", re.DOTALL)


def detect(texts: Sequence[str]) -> str | None:
    """The language of documents, by a sample of each; None where there is too little to tell.

    Each text votes with its letters. Of the languages of one script the one with most letters is taken, and a script
    counts from a tenth of all letters on. By `whatlang`, through Kreuzberg.
    """
    votes: Counter[str] = Counter()
    for text in texts:
        prose = _NOT_PROSE.sub(" ", text[: 2 * SAMPLE_CHARS])[:SAMPLE_CHARS]
        letters = sum(map(str.isalpha, prose))
        code = _language(prose) if letters else None
        if code is not None:
            votes[code] += letters
    total = votes.total()
    if sum(count / (LEAST_LETTERS if shares_script(code) else LEAST_ALONE) for code, count in votes.items()) < 1:
        return None
    scripts: Counter[str] = Counter()
    for code, letters in votes.items():
        scripts[script_of(code)] += letters
    first = {script_of(code): code for code, _ in reversed(votes.most_common())}
    chosen = [script for script, letters in scripts.most_common(_MOST_LANGUAGES) if letters >= _LEAST_SHARE * total]
    return "+".join(first[script] for script in chosen)


def _language(text: str) -> str | None:
    """The code of a text's language; None where that is not certain."""
    from kreuzberg import ExtractionConfig, KreuzbergError, LanguageDetectionConfig, extract_bytes_sync

    config = ExtractionConfig(
        use_cache=False, language_detection=LanguageDetectionConfig(enabled=True, min_confidence=0.8)
    )
    try:
        found = extract_bytes_sync(text.encode("utf-8", "replace"), "text/plain", config=config).detected_languages
    except KreuzbergError:  # it does not read this text: then the others vote
        return None
    return _SHORT.get(found[0], found[0]) if found else None


_SHORT = dict(
    pair.split(":")
    for pair in """
        afr:af aka:ak amh:am ara:ar aze:az bel:be ben:bn bul:bg cat:ca ces:cs cmn:zh dan:da deu:de ell:el eng:en epo:eo
        est:et fin:fi fra:fr guj:gu heb:he hin:hi hrv:hr hun:hu hye:hy ind:id ita:it jav:jv jpn:ja kan:kn kat:ka khm:km
        kor:ko lat:la lav:lv lit:lt mal:ml mar:mr mkd:mk mya:my nep:ne nld:nl nob:no ori:or pan:pa pes:fa pol:pl por:pt
        ron:ro rus:ru sin:si slk:sk slv:sl sna:sn spa:es srp:sr swe:sv tam:ta tel:te tgl:tl tha:th tuk:tk tur:tr ukr:uk
        urd:ur uzb:uz vie:vi yid:yi zul:zu
    """.split()  # noqa: SIM905
)
"""The codes of two letters for those of three that whatlang gives."""

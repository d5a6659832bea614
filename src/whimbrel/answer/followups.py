"""Follow-up questions rewritten by rules, for when there is no model to do it. English first; openers in a few more.

Care goes to leaving alone what stands alone: a question is touched only where it cannot be understood by itself, which
the rules see by its form (see `depends`). Of 16,326 questions of nine collections, each alone, they touch none; of 40
follow-ups written without looking at the rules, they completed 33. What they do not see stays as it was, and is
searched for as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_WH = r"(?:what|who|whom|whose|which|when|where|why|how)"
_AUX = (
    r"(?:is|are|was|were|am|do|does|did|has|have|had|can|could|will|would|should|may|might|must"
    r"|isn['’]t|aren['’]t|wasn['’]t|doesn['’]t|don['’]t|didn['’]t|can['’]t|won['’]t)"
)
_SUBJECT = r"(?:he|she|it|they|this|that|these|those)"
_OBJECT = r"(?:him|her|it|them|this|that|these|those)"
_OWNER = r"(?:his|her|its|their)"
_START = (
    r"^(?:(?:and|but|so|or|then|also|ok|okay|yes|no|well),?\s+)*"
    rf"(?:(?:(?:for|in|on|at|by|to|from|since)\s+)?{_WH}\b(?:\s+(?!{_AUX}\b|{_SUBJECT}\b)[\w'’-]+){{0,2}}\s+)?"
)

_SUBJECT_FIRST = re.compile(rf"{_START}{_AUX}\s+(?:not\s+)?(?P<said>{_SUBJECT})\b(?P<rest>.*)$", re.IGNORECASE)
_OWNER_FIRST = re.compile(rf"{_START}{_AUX}\s+(?P<said>{_OWNER})\s+(?P<rest>.*)$", re.IGNORECASE)
_OBJECT_EARLY = re.compile(
    rf"^(?:(?:and|but|so|or|then|also)\s+)?(?:{_WH}\s+)?(?:{_AUX}\s+)?(?:not\s+)?(?:(?:i|you|we|one|people)\s+)?"
    rf"(?:(?:also|still|then|just)\s+)?(?!{_WH}\b|{_AUX}\b)[\w-]+\s+(?P<said>{_OBJECT})\b"
    rf"(?!\s+(?:{_AUX}|{_WH}|ain['’]t|been)\b|['’])(?P<rest>.*)$",
    re.IGNORECASE,
)
_THERE_LAST = re.compile(
    rf"{_START}(?:{_AUX}\s+)?[\w\s'’-]*?(?<!is )(?<!are )(?<!was )(?<!were )(?P<said>there)(?P<rest>\s*\??)$",
    re.IGNORECASE,
)
_ONE_OF_THEM = re.compile(r"^(?:and\s+)?which\s+(?:ones?|of\s+(?:them|these|those))\b(?P<rest>.*)$", re.IGNORECASE)
_BARE = re.compile(
    rf"^(?:and\s+|but\s+)?(?:{_WH}|why not|how so|how come|since when|by whom|how (?:much|many|long|often|old|far|big))"
    r"\s*[?!.]*$",
    re.IGNORECASE,
)
_MORE = re.compile(
    r"^(?:please\s+)?(?:(?:can|could) you\s+)?(?:tell me more|more|more details?|go on|continue|elaborate|explain"
    r"|(?:give|show) (?:me )?(?:an |some )?examples?|for example|any examples?|an example"
    r"|(?:what|who|where|anything|anyone) else|such as|in (?:more )?detail)"
    r"(?:\s+(?:about|on))?(?:\s+(?:it|this|that|them))?(?:\s+(?:further|more|please))*"
    r"\s*[?!.]*$",
    re.IGNORECASE,
)
_OPENED = re.compile(
    r"^(?:(?:and|but|or)\s+)?(?:what|how)\s+about\s+(?P<x>.+?)\s*\??$"
    r"|^(?:and|but|or|und|oder|aber|et|ou|mais|y|pero|e)\s+(?P<y>[^?]{1,60}?)\s*\?$",
    re.IGNORECASE,
)
_EXPLETIVE = re.compile(
    r"\bit\s+(?:rain|snow|hail|freeze|['’]s\b)"
    r"|\b(?:is|was|be|isn['’]t|wasn['’]t)\s+it\b.*\b(?:to|that|when|if|whether|before|for)\s+\w"
    r"|\bit\s+(?:take|cost|mean|hurt|matter|make|feel|seem|look|happen|need|been|be|called)\b"
    r".*\b(?:to|that|when|if|whether|since|until|before|for)\s+\w",
    re.IGNORECASE,
)
"""An "it" that stands for nothing: "how long does it take to ...", "is it safe to ...\"."""
_VERBS_OF_ITS_OWN = re.compile(rf"\b(?:{_WH}|{_AUX})\b", re.IGNORECASE)

_WORD = re.compile(r"[^\W_][\w'’.-]*")
_PLAIN_WORD = re.compile(r"[^\W_][\w'’-]*")
_EMPTY_WORDS = (
    "a an the of in on at to for from by with without about as into over under up down off out and or but so than "
    "not no i you we he she it they me him her us them my your his its our their this that these those there here "
    "some any one ones what who whom whose which when where why how is are was were am be been being do does did "
    "done doing has have had can could will would should may might must get got make made use used work works "
    "mean means many much long often also still just only then now please really actually ever again too very "
    "more most other else same such if "
)
_EMPTY = frozenset(_EMPTY_WORDS.split())
_FEW = {
    "it": 3,
    "he": 3,
    "she": 3,
    "him": 2,
    "her": 2,
    "them": 2,
    "they": 1,
    "this": 2,
    "that": 2,
    "these": 1,
    "those": 1,
}
"""So many words of its own may a question have after a pronoun and still depend on what was said before: more would say
by themselves what it is about ("where do they grow hops in the us")."""


_LONGEST = 300
"""Characters: a longer question says by itself what it is about."""
_RECENT = 5
"""Turns that are looked into."""
_READ = 1_000
"""Characters of the turn before: what it is about stands at its beginning."""


@dataclass(frozen=True, slots=True)
class Said:
    """A turn before, as far as rules read it."""

    question: str
    answer: str = ""


def rewrite(question: str, history: Sequence[Said]) -> str:
    """`question` with what it leaves to `history` (oldest first) put in; unchanged where it stands alone."""
    asked = " ".join(question.split())
    if not history or not asked or len(asked) > _LONGEST:
        return question
    last = Said(history[-1].question[:_READ], history[-1].answer[:_READ])
    told = [last.answer, *(text[:_READ] for turn in history[-_RECENT:-1] for text in (turn.question, turn.answer))]
    if _BARE.match(asked) or _MORE.match(asked):
        return f"{_bare(last.question)}: {asked}"
    opened = _OPENED.match(asked)
    about = (opened["x"] or opened["y"]).strip() if opened else ""
    if about and len(_own(about)) <= 3 and not _VERBS_OF_ITS_OWN.search(about):
        return _replaced(last.question, about, told)
    found = _pronoun(asked)
    if found is None:
        return question
    start, end, pronoun = found
    topic = _topic(last, pronoun, told)
    if not topic:
        return f"{asked.rstrip('?! ')} ({_bare(last.question)})?"
    return asked[:start] + _declined(topic, pronoun) + asked[end:]


def depends(question: str) -> bool:
    """Whether the rules see that a question cannot be understood alone."""
    marked = Said("\0")
    return rewrite(question, [marked]) != question


# --- what refers -----------------------------------------------------------------------------------------------------


def _pronoun(asked: str) -> tuple[int, int, str] | None:
    """Where a pronoun refers to something said before: its start, its end, and itself."""
    for pattern in (_SUBJECT_FIRST, _OWNER_FIRST, _OBJECT_EARLY, _THERE_LAST, _ONE_OF_THEM):
        match = pattern.match(asked)
        if match is None:
            continue
        rest = match["rest"]
        if pattern is _ONE_OF_THEM:
            return (len(asked), len(asked), "which") if len(_own(rest)) <= 2 else None
        said = match["said"].lower()
        if said == "it" and _EXPLETIVE.search(asked[max(0, match.start("said") - 8) :]):
            continue
        if pattern is _OBJECT_EARLY and _VERBS_OF_ITS_OWN.search(rest):
            continue
        most = 3 if pattern is _OWNER_FIRST else _FEW.get(said, 1)
        if pattern is _SUBJECT_FIRST and said in ("this", "that", "these", "those") and _is_noun_next(rest):
            continue
        if len(_own(rest)) <= most:
            owning = pattern is _OWNER_FIRST and said == "her"
            return match.start("said"), match.end("said"), "his" if owning else said
    return None


def _own(text: str) -> list[str]:
    """The words that say something."""
    return [word for word in _WORD.findall(text) if word.lower() not in _EMPTY and len(word) > 1]


def _is_noun_next(rest: str) -> bool:
    """ "this year", "that book": it says itself what it means, or its noun does."""
    words = _WORD.findall(rest)
    return len(words) > 1 and words[0].lower() in ("year", "week", "month", "season", "morning", "century", "world")


# --- what it refers to -----------------------------------------------------------------------------------------------

_NAME = re.compile(
    r"`[^`]+`|\"[^\"]+\"|“[^”]+”"
    r"|\b(?:[A-Z][\w'’.&-]*|\w*[a-z][A-Z]\w*|\w+_\w+|\w+\.\w+)"
    r"(?:\s+(?:(?:of|de|von|van|the|&)\s+)?(?:[A-Z0-9][\w'’.&-]*))*"
)
_COPULAR = re.compile(rf"^{_WH}(?:['’]s|['’]re|\s+(?:is|are|was|were))\s+(?P<x>[^?]+?)\s*\??$", re.IGNORECASE)
_DOER = re.compile(
    r"^(?:[^?,]*?\s)?(?:do|does|did|can|could|will|would|should|is|are|was|were|has|have|had)"
    r"\s+(?P<article>the|an?)\s+(?P<rest>[\w'’ -]+)",
    re.IGNORECASE,
)
_LEADING = re.compile(rf"^(?:{_WH}|{_AUX}|i|you|we|the|a|an|many|much|long|often|\s)+\b", re.IGNORECASE)
_PERSONAL = frozenset({"he", "she", "him", "his", "her"})


def _topic(last: Said, pronoun: str, told: Sequence[str]) -> str:
    """What a pronoun stands for, as far as the last turn shows; empty where it does not."""
    names = _names(last.question)
    if pronoun in _PERSONAL and re.match(r"^(?:and\s+)?who\b", last.question, re.IGNORECASE):
        people = [name for name in _names(last.answer, first=True) if " " in name and name not in last.question]
        names = people[:1] or names
    copular = _COPULAR.match(" ".join(last.question.split()))
    if pronoun in ("its", "their", "there") and names:
        return names[-1]
    if pronoun not in _PERSONAL and copular and len(copular["x"].split()) <= 6:
        return copular["x"]
    doer = _doer(last.question, told) if pronoun not in _PERSONAL else ""
    return doer or (names[0] if names else "")


def _doer(question: str, told: Sequence[str]) -> str:
    """`the arctic tern` of "How far does the arctic tern fly?": the words after the article that its answer, or a turn
    before, says in a row; empty where none says any."""
    match = _DOER.match(question)
    if match is None:
        return ""
    words = match["rest"].split()[:4]
    said = "\n".join(f" {' '.join(_PLAIN_WORD.findall(text.lower()))} " for text in told)
    for count in range(len(words), 0, -1):
        if words[count - 1].lower() not in _EMPTY and f" {' '.join(words[:count]).lower()} " in said:
            return " ".join([match["article"], *words[:count]])
    return ""


def _names(text: str, *, first: bool = False) -> list[str]:
    """Names and identifiers; the word that begins a sentence is one only where `first` allows it."""
    found = []
    for match in _NAME.finditer(text):
        name = match[0].strip(".")
        if match.start() == 0 and not first:
            head, _, tail = name.partition(" ")
            name = tail if re.fullmatch(rf"{_WH}|{_AUX}", head, re.IGNORECASE) or not tail else name
            if name == tail and not re.match(r"[A-Z0-9]", tail):
                continue
        if name and name.lower() not in _EMPTY:
            found.append(name)
    return found


def _declined(topic: str, pronoun: str) -> str:
    if pronoun == "which":
        return f" ({topic})"
    if pronoun == "there":
        return topic if re.match(r"(?:in|on|at)\b", topic) else f"in {topic}"
    if pronoun in ("his", "its", "their"):
        return f"{topic}'" if topic.endswith("s") else f"{topic}'s"
    return topic


# --- an ellipsis -----------------------------------------------------------------------------------------------------

_PREPOSED = re.compile(
    r"^(?P<p>in|on|for|with|without|at|from|to|under|by|since|before|after|during)\s+", re.IGNORECASE
)
_ARTICLE = re.compile(r"\b(?:the|a|an|der|die|das|le|la|les|el|los|las|de l['’]\w*|du|des)\s+$", re.IGNORECASE)
_NUMBER = re.compile(r"\b\d[\d.,]*\b")


def _replaced(before: str, x: str, told: Sequence[str]) -> str:
    """The question before, asked about `x`: in the place of its last name, number or such phrase, or else added."""
    preposed = _PREPOSED.match(x)
    if preposed:
        phrase = re.compile(
            rf"\b{preposed['p']}\s+[^?,]+?(?=\s+(?:in|on|for|with|at|from|by)\s|\s*[?,]|$)", re.IGNORECASE
        )
        places = list(phrase.finditer(before))
        if places:
            return before[: places[-1].start()] + x + before[places[-1].end() :]
        return f"{_bare(before)} {x}?"
    if _NUMBER.fullmatch(x) and _NUMBER.search(before):
        number = list(_NUMBER.finditer(before))[-1]
        return before[: number.start()] + x + before[number.end() :]
    names = _names(before)
    if names and (_names(x, first=True) or x[:1].isupper()):
        place = before.rindex(names[-1])
        start = _ARTICLE.sub("", before[:place]) if _ARTICLE.search(f"{x.split()[0]} ") else before[:place]
        return start + x + before[place + len(names[-1]) :]
    doer = _doer(before, told)
    if doer and _ARTICLE.search(f"{x.split()[0]} "):
        return before.replace(doer, x, 1)
    return f"{_bare(before)}, {x}?"


def _bare(question: str) -> str:
    return " ".join(question.split()).rstrip("?!. ")

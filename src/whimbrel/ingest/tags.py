"""The elements of an HTML page that say what its parts are, and the page again without some of them.

A scanner, not a parser: it takes the page as it is, however badly its elements are nested, in time linear in its
length.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_TRACKED = "body|main|article|section|div|nav|aside|header|footer|form|ul|ol|dl|table|pre|a|button|select|dialog|menu"
_TAG = re.compile(
    rf"<(?:(?P<mark>!--)|(?P<raw>script|style|template|svg|noscript|iframe)\b[^<>]*+>|"
    rf"(?P<close>/?)(?P<name>{_TRACKED}|img)(?=[\s/>])(?P<rest>(?:[^<>\"']|\"[^\"]*\"|'[^']*')*+)>)",
    re.IGNORECASE,
)
_ATTRIBUTE = re.compile(
    r"(?<![\w:-])(class|id|role|href|src|alt|itemprop)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+))", re.IGNORECASE
)
_ANY_TAG = re.compile(r"<[^<>]*>")

Edit = tuple[int, int, str]
"""`[start, end)` of the page, and what stands there instead."""


@dataclass(slots=True)
class Element:
    name: str
    start: int
    inner: int
    """Where its content begins."""
    attributes: dict[str, str]
    parent: Element | None
    inner_end: int = -1
    end: int = -1
    names: frozenset[str] = field(default=frozenset())
    """Its classes and its id, in lower case."""

    def unwrapped(self) -> list[Edit]:
        """What leaves its content and takes its tags."""
        return [(self.start, self.inner, ""), (self.inner_end, self.end, "")]

    @property
    def whole(self) -> Edit:
        return (self.start, self.end, "")


@dataclass(slots=True)
class Page:
    text: str
    elements: list[Element] = field(default_factory=list)
    """Of the kinds that are tracked, in the order of their beginnings."""
    edits: list[Edit] = field(default_factory=list)
    """Comments, scripts, styles and the like, which are no text."""
    pictures: list[Element] = field(default_factory=list)

    def render(self, start: int, end: int, edits: Iterable[Edit]) -> str:
        """`[start, end)` of the page with `edits`; of edits within each other, only the outer one counts."""
        parts, last = [], start
        for begin, stop, instead in sorted(edits, key=lambda edit: (edit[0], -edit[1])):
            if begin >= last and stop <= end:
                parts += [self.text[last:begin], instead]
                last = stop
        return "".join([*parts, self.text[last:end]])

    def weight(self, start: int, end: int, edits: Iterable[Edit] = ()) -> int:
        """Characters of text there, blanks not counted."""
        return weight(self.render(start, end, [*self.edits, *edits]))


def weight(part: str) -> int:
    """Characters of text in a piece of HTML, blanks not counted."""
    return sum(map(len, _ANY_TAG.sub(" ", part).split()))


def plain(part: str) -> str:
    """The text of a piece of HTML, on one line."""
    return " ".join(html.unescape(_ANY_TAG.sub(" ", part)).split())


def scan(text: str) -> Page:
    page = Page(text)
    stack: list[Element] = []
    lower = text.lower()
    place = 0
    while found := _TAG.search(text, place):
        place = found.end()
        if found["mark"] or found["raw"]:
            place = _past(lower, "-->" if found["mark"] else f"</{found['raw'].lower()}", place)
            page.edits.append((found.start(), place, " "))
            continue
        name = found["name"].lower()
        if found["close"]:
            _close(stack, name, found.start(), found.end())
            continue
        attributes = _attributes(found["rest"])
        element = Element(name, found.start(), found.end(), attributes, stack[-1] if stack else None)
        if name == "img":
            element.inner_end = element.end = found.end()
            page.pictures.append(element)
            continue
        if name == "a" and stack and stack[-1].name == "a":  # no link within a link: that one was not closed
            stack[-1].inner_end = stack[-1].end = found.start()
            stack.pop()
        if "class" in attributes or "id" in attributes:
            element.names = frozenset(f"{attributes.get('class', '')} {attributes.get('id', '')}".lower().split())
        stack.append(element)
        page.elements.append(element)
    for element in stack:
        element.inner_end = element.end = len(text)
    return page


def _past(lower: str, closing: str, place: int) -> int:
    """After the next `closing` tag or mark; the end where there is none."""
    found = lower.find(closing, place)
    end = lower.find(">", found) if found >= 0 else -1
    return end + 1 if end >= 0 else len(lower)


def _close(stack: list[Element], name: str, start: int, end: int) -> None:
    """Ends the innermost open element of that name, and those in it that nobody closed; a stray tag ends nothing."""
    for place in range(len(stack) - 1, max(len(stack) - 64, 0) - 1, -1):
        if stack[place].name == name:
            for element in stack[place + 1 :]:
                element.inner_end = element.end = start
            stack[place].inner_end, stack[place].end = start, end
            del stack[place:]
            return


def _attributes(rest: str) -> dict[str, str]:
    if "=" not in rest:
        return {}
    if "&" in rest:
        rest = html.unescape(rest)
    return {found[1].lower(): (found[2] or found[3] or found[4] or "").strip() for found in _ATTRIBUTE.finditer(rest)}

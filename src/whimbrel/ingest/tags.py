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
    r"<(?:(!--)(?:[\s\S]*?-->|[\s\S]*)|"
    r"(script|style|template|svg|noscript|iframe)\b[^<>]*+>(?:[\s\S]*?</\2(?:[^>]*>|[\s\S]*)|[\s\S]*)|"
    rf"(/?)({_TRACKED}|img)(?=[\s/>])((?:[^<>\"']|\"[^\"]*\"|'[^']*')*+)>)"
)
"""A comment; an element whose content is no text; the tag of an element: is it a closing one, its name, the rest. For
a page in lower case: not to look at the case takes two thirds of the time."""
_VALUE = r"\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+))"
_ATTRIBUTES = {
    name: re.compile(rf"(?<![\w:-]){name}{_VALUE}", re.IGNORECASE) for name in ("role", "href", "src", "alt")
}
_NAMES = re.compile(rf"(?<![\w:-])(?:class|id){_VALUE}", re.IGNORECASE)
_NONE: frozenset[str] = frozenset()
_ANY_TAG = re.compile(r"<[^<>]*>")

Edit = tuple[int, int, str]
"""`[start, end)` of the page, and what stands there instead."""


@dataclass(slots=True)
class Element:
    name: str
    start: int
    inner: int
    """Where its content begins."""
    rest: str
    """Its tag after the name."""
    parent: Element | None
    inner_end: int = -1
    end: int = -1
    _names: frozenset[str] | None = None

    def attribute(self, name: str) -> str:
        """ "" where it has none. Read when it is asked for: of most elements, nothing is."""
        found = _ATTRIBUTES[name].search(self.rest)
        value = (found[1] or found[2] or found[3] or "").strip() if found else ""
        return html.unescape(value) if "&" in value else value

    @property
    def names(self) -> frozenset[str]:
        """Its classes and its id, in lower case."""
        if self._names is None:
            values = [one or two or three for one, two, three in _NAMES.findall(self.rest)] if "=" in self.rest else ()
            joined = " ".join(values).lower()
            self._names = frozenset((html.unescape(joined) if "&" in joined else joined).split()) if joined else _NONE
        return self._names

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


def at_least(part: str, least: float) -> bool:
    """Whether a piece of HTML has so much text; where it has, its beginning says so most often."""
    beginning = part[: 8 * int(least) + 400]
    return weight(beginning) >= least or (len(beginning) < len(part) and weight(part) >= least)


def plain(part: str) -> str:
    """The text of a piece of HTML, on one line."""
    return " ".join(html.unescape(_ANY_TAG.sub(" ", part)).split())


def scan(text: str) -> Page:
    page = Page(text)
    stack: list[Element] = []
    for found in _TAG.finditer(text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")):
        comment, raw, closing, name, _ = found.groups()
        start, end = found.span()
        if comment or raw:
            page.edits.append((start, end, " "))
            continue
        if closing:
            _close(stack, name, start, end)
            continue
        element = Element(name, start, end, text[found.start(5) : end - 1], stack[-1] if stack else None)
        if name == "img":
            element.inner_end = element.end = end
            page.pictures.append(element)
            continue
        if name == "a" and stack and stack[-1].name == "a":  # no link within a link: that one was not closed
            stack[-1].inner_end = stack[-1].end = start
            stack.pop()
        stack.append(element)
        page.elements.append(element)
    for element in stack:
        element.inner_end = element.end = len(text)
    return page


def _close(stack: list[Element], name: str, start: int, end: int) -> None:
    """Ends the innermost open element of that name, and those in it that nobody closed; a stray tag ends nothing."""
    for place in range(len(stack) - 1, max(len(stack) - 64, 0) - 1, -1):
        if stack[place].name == name:
            for element in stack[place + 1 :]:
                element.inner_end = element.end = start
            stack[place].inner_end, stack[place].end = start, end
            del stack[place:]
            return

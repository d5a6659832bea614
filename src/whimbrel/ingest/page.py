"""What of a web page is its content: the main part without navigation, as HTML that is ready to become Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from itertools import islice

from whimbrel.ingest.tags import Edit, Element, Page, at_least, plain, scan, weight

_LEAST_SHARE = 0.2
"""Of the page's text without navigation: a part that holds less is not the main one, whatever it is called."""
_ENOUGH = 400
"""Characters of text in what a page marks as its main part, to be taken for that without looking at the rest."""
_MAIN = re.compile(r"<main\b", re.IGNORECASE)
_AROUND = frozenset({"nav", "footer", "button", "select", "dialog", "menu"})
_ROLES_AROUND = frozenset(
    ["navigation", "banner", "contentinfo", "search", "menu", "menubar", "dialog", "alertdialog", "toolbar", "tablist"]
)
_MAIN_NAMES = frozenset(
    ["content", "main", "main-content", "maincontent", "page-content", "article-body", "article-content"]
) | {"post-content", "entry-content", "markdown-body", "mw-content-text", "bodycontent", "rst-content", "doc-content"}
_AROUND_NAME = re.compile(
    r"(?:[\w-]*[_-])?(?:nav|navbar|navigation|topnav|sidenav|sidebar|sidemenu|menu|breadcrumbs?|pagination|pager|footer|"
    r"skip-?link|skip|cookies?|toc|improve|edit-?(?:page|link|this-page)|noprint|sphinxsidebar|navheader|navfooter)"
    r"(?:[_-][\w-]*)?|share|social|related|searchbox"
)
_LINK_NAMES = frozenset(["headerlink", "header-link", "anchor", "anchorjs-link", "permalink", "skip-link", "skiplink"])
_LINK_TEXTS = frozenset(["", "¶", "#", "§", "\U0001f517", "\uf0c1", "permalink", "skip to content"])
_CELL = re.compile(r"<(/?)(?:tbody|thead|tfoot|tr|td|center)\b[^<>]*+>", re.IGNORECASE)


def main_part(text: str) -> str:
    """The HTML of a page's main part: without navigation, permalinks, and pictures that nothing describes. Links within
    the site are their text, tables that only lay out the page are its paragraphs.

    All of the page where no part stands out; with the navigation too where there is nothing else.
    """
    page = scan(_declared(text))
    start, end = _body(page)
    plainly = _plainly(page)
    around = list(_around(page, start, end, None))
    whole = page.render(start, end, plainly + around)
    if not at_least(whole, 1):
        return page.render(start, end, plainly)
    if main := _main(page, around):
        found = page.render(main.inner, main.inner_end, plainly + list(_around(page, main.inner, main.inner_end, main)))
        if at_least(found, _LEAST_SHARE * len(whole)) or weight(found) >= _LEAST_SHARE * weight(whole):
            return found
    return whole


def _declared(text: str) -> str:
    """The one part that is marked as main, if it says enough: what is around it need not be looked at then."""
    starts = [found.start() for found in islice(_MAIN.finditer(text), 2)]
    end = text.rfind("</main>")
    if len(starts) != 1 or end < starts[0]:
        return text
    part = text[starts[0] : end + len("</main>")]
    return part if at_least(part, _ENOUGH) else text


def all_of_it(text: str) -> str:
    """As `main_part`, with all that is there: of a message, whose header and footer are its own."""
    page = scan(text)
    return page.render(*_body(page), _plainly(page))


def _body(page: Page) -> tuple[int, int]:
    body = next((one for one in page.elements if one.name == "body"), None)
    if body is not None:
        return body.inner, body.inner_end
    head = _HEAD.search(page.text, 0, 200_000)
    return head.end() if head else 0, len(page.text)


_HEAD = re.compile(r"</head\s*>", re.IGNORECASE)


def _plainly(page: Page) -> list[Edit]:
    return [*page.edits, *_links(page), *_pictures(page), *_tables(page), *_doubled(page)]


def _main(page: Page, around: Sequence[Edit]) -> Element | None:
    """The part that the page declares as its main one, else the one that is named so. Within it, the article, if there
    is one that holds most of it."""
    declared = _outer(
        one for one in page.elements if one.name == "main" or ("main" in one.rest and one.attribute("role") == "main")
    )
    main = declared[0] if len(declared) == 1 else None
    start, end = (main.start, main.end) if main else (0, len(page.text))
    articles = _outer(one for one in page.elements if one.name == "article" and start <= one.start < end)
    if len(articles) == 1:
        article = articles[0]
        rest = page.weight(start, end, [*around, article.whole])
        if at_least(page.render(article.start, article.end, [*page.edits, *around]), max(rest, 1)):
            return article
    if main:
        return main
    named = _outer(one for one in page.elements if one.name != "a" and not _MAIN_NAMES.isdisjoint(one.names))
    return max(named, key=lambda one: page.weight(one.start, one.end, around), default=None)


def _outer(found: Iterator[Element]) -> list[Element]:
    """Those that lie in no other of them."""
    kept: list[Element] = []
    for one in found:
        if not kept or one.start >= kept[-1].end:
            kept.append(one)
    return kept


def _around(page: Page, start: int, end: int, main: Element | None) -> Iterator[Edit]:
    """What is in `[start, end)` and is not content."""
    most = 0.5 * (end - start)
    last = start
    for one in page.elements:
        if one.start < last or one.end > end or one is main or one.name in ("body", "main", "article", "a"):
            continue
        sure = one.name in _AROUND or ("role" in one.rest and one.attribute("role").lower() in _ROLES_AROUND)
        if sure or (one.end - one.start < most and _looks_around(page, one, main)):
            yield one.whole
            last = one.end


def _looks_around(page: Page, one: Element, main: Element | None) -> bool:
    if one.name in ("aside", "header") and main is None:
        return not any(parent.name == "article" for parent in _parents(one)) and not _is_title(page, one)
    return any(_AROUND_NAME.fullmatch(name) for name in one.names)


def _is_title(page: Page, one: Element) -> bool:
    inside = page.text[one.inner : one.inner_end].lower()
    return "<h1" in inside and "<nav" not in inside and "<ul" not in inside


def _parents(one: Element) -> Iterator[Element]:
    while one.parent is not None:
        one = one.parent
        yield one


def _links(page: Page) -> Iterator[Edit]:
    """Links to other sites stay; those of this one lead nowhere from a Markdown text; permalinks are no text."""
    for one in page.elements:
        if one.name != "a":
            continue
        href = one.attribute("href")
        if href.startswith("#") or not href or not _LINK_NAMES.isdisjoint(one.names):
            text = plain(page.text[one.inner : one.inner_end]) if one.inner_end - one.inner < 200 else "long"
            if text.lower() in _LINK_TEXTS:
                yield one.whole
                continue
        if not href.startswith(("http://", "https://", "mailto:")):
            yield from one.unwrapped()


def _pictures(page: Page) -> Iterator[Edit]:
    for one in page.pictures:
        alt = one.attribute("alt")
        if not alt:
            yield one.whole
        elif not one.attribute("src").startswith(("http://", "https://")):
            yield (one.start, one.end, html.escape(f"[image: {alt}]"))


def _tables(page: Page) -> Iterator[Edit]:
    """Tables that lay out a page: those with tables in them, or of one long cell."""
    for one, inner in _nested(one for one in page.elements if one.name == "table"):
        if inner or _is_long_cell(page.text[one.inner : one.inner_end]):
            yield (one.start, one.inner, "<div>")
            yield (one.inner_end, one.end, "</div>")
            last = one.inner
            for other in [*inner, None]:
                stop = other.start if other else one.inner_end
                for cell in _CELL.finditer(page.text, last, stop):
                    yield (cell.start(), cell.end(), f"<{cell[1]}div>")
                last = other.end if other else stop


def _is_long_cell(source: str) -> bool:
    return source.lower().count("<td") <= 2 and at_least(source, 601)


def _nested(found: Iterator[Element]) -> list[tuple[Element, list[Element]]]:
    """Each with those that lie directly in it; they come in the order in which they begin."""
    every: list[tuple[Element, list[Element]]] = []
    within: list[tuple[Element, list[Element]]] = []
    for one in found:
        while within and one.start >= within[-1][0].end:
            within.pop()
        pair: tuple[Element, list[Element]] = (one, [])
        if within:
            within[-1][1].append(one)
        every.append(pair)
        within.append(pair)
    return every


def _doubled(page: Page) -> Iterator[Edit]:
    """`<pre><pre>`, of which a fence in a fence would become."""
    for one in page.elements:
        if one.name == "pre" and one.parent is not None and one.parent.name == "pre":
            yield from one.parent.unwrapped()

"""HTML: what of a page is its content."""

from __future__ import annotations

import os
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whimbrel.ingest.extract import extract
from whimbrel.ingest.page import all_of_it, main_part
from whimbrel.ingest.tags import plain

DATA = Path(os.environ.get("WHIMBREL_TEST_DATA", "/nowhere"))
WORDS = (
    "The words that this page is about are told here, at some length, so that they outweigh what is around them. " * 3
)


def text_of(page: str) -> str:
    return plain(main_part(page))


@pytest.mark.parametrize(
    "page",
    [
        "<body><nav>Home Docs</nav><main><p>{words}</p></main><footer>Imprint</footer></body>",
        "<body><div class='sidebar'><a href='/x'>Home</a></div><div role=main><p>{words}</p></div></body>",
        "<body><header><nav>Home</nav></header><article><h1>T</h1><p>{words}</p></article><div id=footer>Imprint</div>",
        "<body><div id=menu>Home</div><div id=content><p class=x>{words}</p></div>Imprint</body>",
        "<body><main><div class='md-sidebar'><nav>Home</nav></div><article><p>{words}</p></article></main></body>",
        "<body><ul role=navigation><li>Home</ul><p>{words}</p><div role=contentinfo>Imprint</div></body>",
        "<!doctype html><p>{words}</p><script>Home()</script><style>Imprint {{}}</style><!-- Home -->",
    ],
)
def test_navigation_is_left_out(page: str) -> None:
    found = text_of(page.format(words=WORDS))
    assert WORDS.strip() in found
    assert "Home" not in found
    assert "Imprint" not in found


def test_a_page_of_nothing_but_navigation_is_kept() -> None:
    assert text_of("<body><nav><ul><li>Contents<li>Index</ul></nav></body>") == "Contents Index"


def test_a_main_part_that_holds_hardly_anything_is_not_taken_for_it() -> None:
    assert WORDS.strip() in text_of(f"<body><main>Loading</main><div><p>{WORDS}</p></div></body>")


def test_names_are_no_reason_to_drop_what_most_of_the_page_is() -> None:
    assert WORDS.strip() in text_of(f"<body><div class='page has-sidebar menu'><p>{WORDS}</p></div></body>")


def test_the_heading_of_a_page_without_marked_parts_is_kept() -> None:
    assert "Title" in text_of(f"<body><header><h1>Title</h1></header><p>{WORDS}</p></body>")


def test_links_within_the_site_are_their_text_and_permalinks_are_none() -> None:
    links = '<p><a href="../x.html">one</a> <a href="https://example.com/">two</a></p>'
    page = links + '<h2>T<a class=headerlink href="#t">¶</a></h2>'
    assert main_part(page) == '<p>one <a href="https://example.com/">two</a></p><h2>T</h2>'


def test_pictures_are_their_descriptions() -> None:
    page = '<p>a<img src="data:image/png;base64,AAAA" alt="A cat">b<img src="dot.gif" alt="">c</p>'
    assert main_part(page) == "<p>a[image: A cat]bc</p>"


def test_tables_that_lay_out_a_page_are_no_tables() -> None:
    cell = f"<p>{WORDS}</p>" * 3
    outer = f"<table><tr><td><table><tr><td>x</td></tr></table></td><td>{cell}</td></tr></table>"
    assert main_part(outer).count("<td") == 1
    assert "<td" in main_part("<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>")


def test_a_message_keeps_its_header_and_footer() -> None:
    assert plain(all_of_it("<header>Dear all</header><p>text</p><footer>Yours</footer>")) == "Dear all text Yours"


PARTS = ["<div", "<nav>", "</div>", "<a href=x>", "</a", "<main>", "</main>", "'", '"', ">", "<!--", "-->", "<script>"]
PARTS += ["<pre>", "<table><td>", "x", " ", "&amp;", "<p class='nav'>"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PARTS)))
def test_whatever_a_page_is_something_comes_out(parts: list[str]) -> None:
    page = "".join(parts)
    assert isinstance(main_part(page), str)
    assert isinstance(all_of_it(page), str)


@pytest.mark.parametrize(
    "part", ["<div>", "<div class='", "<!--", "<script>", "</div>", "</script", "<a href=#>", "<table>", "<pre>"]
)
def test_a_hostile_page_comes_to_an_end(part: str) -> None:
    assert isinstance(main_part(part * 20_000), str)


def test_html_becomes_markdown_with_its_structure() -> None:
    page = f"""<html><head><title>Shop &amp; more</title></head><body><nav>Home</nav><main><h1>Prices</h1><p>{WORDS}</p>
    <ul><li>one<li>two</ul><pre><code class="language-python">x = 1</code></pre>
    <table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table></main></body></html>"""
    extracted = extract(page.encode(), name="x.html")
    assert extracted.title == "Prices"
    for part in ("# Prices", "- one\n- two", "```python\nx = 1\n```", "| a | b |\n| --- | --- |\n| 1 | 2 |"):
        assert part in extracted.text
    assert "Home" not in extracted.text


# --- real sites ------------------------------------------------------------------------------------------------------

WORD = re.compile(r"\w+")
PICTURE = re.compile(r"!\[[^\]]*\]\([^()\s]*(?: \"[^\"]*\")?\)|\[image: [^\]]*\]")


class Gold(HTMLParser):
    """The words within the element that a site keeps its text in."""

    VOID = frozenset(["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"])

    def __init__(self, tag: str, role: str) -> None:
        super().__init__()
        self._wanted, self._role = tag, role
        self._open: list[tuple[str, bool, bool]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        inside = tag == self._wanted or (bool(self._role) and given.get("role") == self._role)
        classes = (given.get("class") or "").split()
        hidden = tag in ("script", "style") or bool(
            {"headerlink", "improve", "header-link", "anchor", "section-nav"} & set(classes)
        )
        if tag not in self.VOID:
            self._open.append((tag, inside, hidden))

    def handle_endtag(self, tag: str) -> None:
        for place in range(len(self._open) - 1, -1, -1):
            if self._open[place][0] == tag:
                del self._open[place:]
                return

    def handle_data(self, data: str) -> None:
        if any(inside for _, inside, _ in self._open) and not any(hidden for _, _, hidden in self._open):
            self.words += WORD.findall(data.lower())


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "sites").is_dir(), reason="WHIMBREL_TEST_DATA is not set")
@pytest.mark.parametrize(
    ("site", "tag", "role"),
    [
        ("django-rest-framework", "article", ""),
        ("jekyll", "article", ""),
        ("rust-book", "main", ""),
        ("nltk", "main", "main"),
    ],
)
def test_the_main_content_of_documentation_sites(site: str, tag: str, role: str) -> None:
    """By words, against the element that the site keeps its text in: no more than a fortieth too many or too few."""
    right = wrong = missed = 0
    for path in sorted((DATA / "sites" / site).rglob("*.html"))[::24]:
        page = path.read_text(encoding="utf-8", errors="replace")
        gold = Gold(tag, role)
        gold.feed(page)
        if len(gold.words) < 40 or len(page) > 400_000:
            continue
        made = PICTURE.sub("", extract(page.encode(), name=path.name).text)
        markdown = re.sub(r"\]\([^()\s]*\)", "]", made)
        found, wanted = Counter(WORD.findall(markdown.lower())), Counter(gold.words)
        right += (found & wanted).total()
        wrong += (found - wanted).total()
        missed += (wanted - found).total()
    assert right > 1_000
    assert right / (right + wrong) >= 0.975
    assert right / (right + missed) >= 0.975


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "ir" / "cacm" / "html").is_dir(), reason="WHIMBREL_TEST_DATA is not set")
def test_pages_hold_the_words_of_their_documents() -> None:
    import json

    lines = (DATA / "ir" / "cacm" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    for one in map(json.loads, lines[::80]):
        path = DATA / "ir" / "cacm" / "html" / f"CACM-{int(one['_id']):04}.html"
        if not path.is_file():
            continue
        wanted = Counter(WORD.findall(f"{one['title']} {one['text']}".lower()))
        found = Counter(WORD.findall(extract(path, name=path.name).text.lower()))
        assert (wanted & found).total() >= 0.97 * wanted.total(), path.name

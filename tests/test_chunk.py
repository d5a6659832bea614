"""What a user relies on: no text is lost, no chunk is too long, chunks end where the text does."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import whimbrel.models.embedders
from whimbrel.domain import ChunkSpan, Space, embedded_text
from whimbrel.errors import ConfigError
from whimbrel.ingest.blocks import Kind, blocks
from whimbrel.ingest.chunk import Chunking, check_readable, chunk
from whimbrel.ingest.tokens import load_token_spans

TOKENIZER = Path(whimbrel.models.embedders.__path__[0]) / "assets" / "minilm" / "tokenizer.json"
token_spans = load_token_spans(TOKENIZER)


def cut(text: str, tokens: int = 200, overlap: int = 20, **more: object) -> list[ChunkSpan]:
    chunks = chunk(text, Chunking(tokens, overlap), token_spans, **more)  # type: ignore[arg-type]
    check(text, chunks, tokens)
    return chunks


def check(text: str, chunks: list[ChunkSpan], tokens: int) -> None:
    """The laws of chunking, with the tokenizer's own count of exactly what the embedder reads."""
    start, end = -1, 0
    for span in chunks:
        assert start < span.start < span.end <= len(text)
        assert span.end > end
        assert not text[end : span.start].strip(), "text between two chunks was lost"
        body = text[span.start : span.end]
        assert body == body.strip()
        count = len(token_spans(embedded_text(span.context, body))[0]) + 2
        assert count <= tokens
        assert span.tokens == count
        assert len(token_spans(span.context)[0]) <= tokens // 4
        start, end = span.start, span.end
    assert not text[end:].strip(), "text after the last chunk was lost"


def bodies(text: str, chunks: list[ChunkSpan]) -> list[str]:
    return [text[span.start : span.end] for span in chunks]


LINES = """\
# Guide
## Install it
### Linux
para one. And two! Three? Yes
- item
  - nested item
1. first
```python
```
    code()
| a | b |
|---|---|
| 1 | 2 |
===
---

> quote
漢字の文章です。次の文。
a.b.c::d/e-f_g
e.g. this
""".splitlines()
LINES.extend(["x" * 70, "e\u0301\u0302" * 9, "\U0001f469\u200d\U0001f467" * 5, "word " * 40, "\t", "\u200b"])
MARKDOWN = st.lists(st.sampled_from(LINES), max_size=60).map("\n".join)


@settings(max_examples=150, deadline=None)
@given(
    MARKDOWN,
    st.integers(16, 120),
    st.integers(0, 60),
    st.sampled_from(["", "Title", "A title of more words than fit " * 9]),
)
def test_laws_on_markdown(text: str, tokens: int, overlap: int, title: str) -> None:
    cut(text, tokens, min(overlap, tokens // 2), title=title)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=400), st.integers(16, 40))
def test_laws_on_any_text(text: str, tokens: int) -> None:
    cut(text, tokens, 4)


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="ab1.\u0301漢, \n", max_size=800), st.integers(16, 24))
def test_laws_where_words_are_too_long(text: str, tokens: int) -> None:
    cut(text, tokens, 8)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 1_000_000,
        "x y" * 100_000,
        "word " * 60_000,
        "# h\n" * 10_000,
        "# h\n\nbody\n\n" * 5_000,
        "😀" * 50_000,
        "\x01\x02 " * 50_000,
        "\u200b" * 50_000,
        "漢字の文章です。" * 10_000,
        "漢" * 50_000,
        "e\u0301" * 50_000,
        "| a | b |\n|---|---|\n" + "| 1 | two |\n" * 10_000,
        "```\n" + "x = f(1)\n\n" * 5_000,
        "- item\n" * 10_000,
        "line\r\nline\r\n\r\n" * 5_000,
        "[" * 100_000,
        "`" * 100_000,
        "#" * 100_000,
        "<" * 50_000 + "![](" * 20_000,
        " " * 200_000 + "x",
    ],
    ids=lambda text: repr(text[:12]),
)
@pytest.mark.timeout(120)
def test_strange_texts_keep_the_laws(text: str) -> None:
    chunks = chunk(text, Chunking(), token_spans)
    check(text, chunks, 200)


def test_time_is_linear() -> None:
    text = ("The quick brown fox jumps over the lazy dog. " * 8 + "\n\n") * 300

    def seconds(times: int) -> float:
        begin = time.process_time()
        chunk(text * times, Chunking(), token_spans)
        return time.process_time() - begin

    seconds(1)
    assert seconds(16) < 16 * 4 * max(seconds(2) / 2, 0.02)


def test_empty_texts_have_no_chunks() -> None:
    assert cut("") == []
    assert cut(" \n\t\n ") == []


def test_a_short_text_is_one_chunk() -> None:
    assert cut("  Hello there.\n") == [ChunkSpan(2, 14, 5)]


GUIDE = """# Guide

Welcome to it.

## Install

### Linux

Run `apt install whimbrel`. It takes a minute, and then it is there for every user of the machine, which is good.

### Mac

Run `brew install whimbrel`. It takes two minutes, and then it is there for you alone, which may be what you want.
"""


def test_headings_begin_chunks_and_give_them_context() -> None:
    chunks = cut(GUIDE, 48, 8)
    texts = bodies(GUIDE, chunks)
    linux = next(place for place, text in enumerate(texts) if "apt install" in text)
    mac = next(place for place, text in enumerate(texts) if "brew install" in text)
    assert "### Linux" in texts[linux]
    assert texts[mac].startswith("### Mac")
    assert chunks[mac].context == "Guide > Install"


def test_a_heading_goes_with_what_follows_it() -> None:
    text = "Some words before it. " * 8 + "\n\n# Heading\n\n## Sub\n\n" + "Text below the heading. " * 20
    for body in bodies(text, cut(text, 60, 10)):
        assert not body.splitlines()[-1].startswith("#")


def test_later_chunks_of_a_section_carry_its_whole_path() -> None:
    text = "# A\n\n## B\n\n" + "One sentence of some words stands here. " * 40
    chunks = cut(text, 64, 0, title="Book")
    assert chunks[0].context == "Book"
    assert {span.context for span in chunks[1:]} == {"Book > A > B"}


def test_a_title_that_repeats_the_first_heading_is_said_once() -> None:
    text = "# Whimbrel\n\n## Use\n\n" + "One sentence of some words stands here. " * 40
    assert cut(text, 64, 0, title="whimbrel")[-1].context.lower() == "whimbrel > use"


def test_code_and_tables_that_fit_are_not_split() -> None:
    code = "```python\n" + "".join(f"def f{i}(): return {i}\n" for i in range(8)) + "```"
    table = "| name | price |\n| --- | --- |\n" + "".join(f"| thing {i} | {i} |\n" for i in range(8))
    text = "\n\n".join(["Text before, some words. " * 12, code, "Text between. " * 25, table, "And after. " * 30])
    texts = bodies(text, cut(text, 120, 10))
    assert sum(code in body for body in texts) == 1
    assert sum(table.strip() in body for body in texts) == 1


def test_a_long_table_is_split_at_rows_and_keeps_its_header() -> None:
    rows = "".join(f"| thing number {i} | {i} dollars |\n" for i in range(100))
    text = "# Prices\n\n| name | price |\n| --- | --- |\n" + rows
    chunks = cut(text, 100, 10)
    assert len(chunks) > 5
    for span, body in zip(chunks[1:], bodies(text, chunks)[1:], strict=True):
        assert body.startswith("| thing")
        assert body.endswith("dollars |")
        assert span.context == "Prices\n| name | price |"


def test_long_code_is_split_at_lines() -> None:
    lines = [f"value_{i} = compute({i}, other={i})" for i in range(100)]
    text = "```\n" + "\n".join(lines) + "\n```\n"
    for body in bodies(text, cut(text, 80, 0)):
        assert all(line in lines or line == "```" for line in body.splitlines())


def test_a_comment_in_code_is_no_heading() -> None:
    text = "# Real\n\n```sh\n# not a heading\nls\n```\n\n" + "More text to read here. " * 30
    assert {span.context for span in cut(text, 60, 0)} <= {"", "Real"}


def test_prose_is_split_at_sentences() -> None:
    text = "The first sentence, e.g. this one by Dr. Smith, has version 1.2 in it. " * 30
    for body in bodies(text, cut(text, 70, 0)):
        assert body.startswith("The first")
        assert body.endswith("in it.")


def test_no_tiny_tail() -> None:
    text = "One sentence of eight words stands here now. " * 24
    chunks = cut(text, 200, 20)
    assert len(chunks) == 2
    assert min(span.tokens for span in chunks) > 70


def test_overlap_only_between_neighbours_of_one_section() -> None:
    section = "\n\n" + "A sentence of six words here. " * 40 + "\n\n"
    text = "# One" + section + "# Two" + section
    chunks = cut(text, 80, 20)
    two = text.index("# Two")
    repeats = [(a, b) for a, b in pairwise(chunks) if b.start < a.end]
    assert repeats
    for before, after in repeats:
        assert (before.start < two) == (after.start < two)
        assert len(token_spans(text[after.start : before.end])[0]) <= 20
    for first, third in zip(chunks, chunks[2:], strict=False):
        assert third.start >= first.end


def test_pages() -> None:
    first, second = "First page. " * 60, "Second page. " * 60
    text = first + "\n\n" + second
    chunks = cut(text, 100, 0, pages=[(0, 7), (len(first), 8)])
    assert chunks[0].page == 7
    assert chunks[-1].page == 8
    assert cut(text)[0].page is None


def test_the_same_text_gives_the_same_chunks() -> None:
    assert cut(GUIDE * 20) == cut(GUIDE * 20)


def test_a_tokenizer_that_reads_parts_otherwise_still_keeps_the_limit() -> None:
    """As byte-level tokenizers do: a text alone has more tokens than its words have within a longer one."""

    def inflated(text: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        starts, ends = token_spans(text)
        more = max(8 - len(text) // 1_000, 0)
        return np.concatenate([starts[:1].repeat(more), starts]), np.concatenate([ends[:1].repeat(more), ends])

    text = "One sentence of eight words stands here now. " * 4_000
    for span in chunk(text, Chunking(100, 10), inflated):
        assert len(inflated(embedded_text(span.context, text[span.start : span.end]))[0]) + 2 <= 100


def test_spec_round_trip() -> None:
    assert Chunking().spec == "tokens=186,overlap=18"
    assert Chunking.parse(Chunking(64, 8).spec) == Chunking(64, 8)
    assert Chunking.parse("tokens=300") == Chunking(300)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("token=3", "unknown key 'token'"),
        ("tokens=x", "NUMBER"),
        ("tokens=3", "range"),
        ("tokens=40,overlap=30", "range"),
    ],
)
def test_a_bad_spec_is_refused(spec: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Chunking.parse(spec)


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        Chunking.parse("overlpa=3")
    assert "'overlap'" in caught.value.hint


# --- headings that nothing marks -------------------------------------------------------------------------------------

LONG = "What stands under it goes on and on in one line, as text does that was never wrapped by hand or by a program. "


@pytest.mark.parametrize("marks", [("=", "=="), ("=", "= ="), ("#", "##")])
def test_headings_of_articles_are_context(marks: tuple[str, str]) -> None:
    one, two = marks
    text = f"{one} Bird {one}\n\n{LONG * 4}\n\n{two} Food {two}\n\n{LONG * 8}\n\n{two} Range {two}\n\n{LONG * 8}\n"
    contexts = [span.context for span in cut(text, tokens=64, overlap=0)]
    assert contexts[-1] == "Bird > Range"
    assert "Bird > Food" in contexts


def test_a_short_line_above_a_long_one_is_its_title() -> None:
    kinds = [block.kind for block in blocks(f"Analysis of the results\n{LONG}\n\nAnother line\nof verse\n")]
    assert kinds == [Kind.HEADING, Kind.TEXT, Kind.TEXT]
    for line in ("It ends here.", "lower case first", "As follows:", "| a |"):
        assert Kind.HEADING not in [block.kind for block in blocks(f"{line}\n{LONG}\n")]


def test_a_chunking_that_the_model_cannot_read_is_refused() -> None:
    space = Space("model", "r1", 3, max_tokens=256)
    check_readable(Chunking(tokens=256), space)
    with pytest.raises(ConfigError, match="reads 256 tokens"):
        check_readable(Chunking(tokens=257), space)

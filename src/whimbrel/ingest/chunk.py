"""Cutting a document's text into chunks: spans of at most so many tokens, along its structure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches

from whimbrel.domain import ChunkSpan, Space
from whimbrel.errors import ConfigError
from whimbrel.ingest.blocks import Block, Kind, Strength, blocks
from whimbrel.ingest.contexts import Contexts, plain_heading
from whimbrel.ingest.packing import CHARS_PER_TOKEN, SPECIAL_TOKENS, CountsDiffer, Packer, Piece, Section
from whimbrel.ingest.pieces import Cut, cuts, halves, lines, words
from whimbrel.ingest.tokens import TokenCounter, TokenSpans


@dataclass(frozen=True, slots=True)
class Chunking:
    """How documents are cut; part of a view's identity."""

    tokens: int = 186
    """The most that the embedder reads for one chunk: its context, its text and two special tokens."""
    overlap: int = 18
    """The most tokens that a chunk repeats from the one before it in the same section."""
    adopted: int = 0
    """1: chunks that were adopted with their vectors stay as the program that made them cut them; the other two
    numbers are for documents that come later."""

    def __post_init__(self) -> None:
        if not 16 <= self.tokens <= 32_768:
            raise ConfigError(f"chunking: tokens={self.tokens} is out of range.", "Choose between 16 and 32768.")
        if not 0 <= self.overlap <= self.tokens // 2:
            raise ConfigError(
                f"chunking: overlap={self.overlap} is out of range.",
                f"Choose between 0 and {self.tokens // 2}, half of tokens.",
            )
        if self.adopted not in (0, 1):
            raise ConfigError(f"chunking: adopted={self.adopted} is neither 0 nor 1.")

    @property
    def spec(self) -> str:
        """`tokens=186,overlap=18`: what `parse` reads."""
        said = [field.name for field in fields(self) if field.name != "adopted" or self.adopted]
        return ",".join(f"{name}={getattr(self, name)}" for name in said)

    @classmethod
    def parse(cls, spec: str) -> Chunking:
        """Reads a `spec`; keys that it leaves out keep their defaults. Raises `ConfigError`."""
        known = [field.name for field in fields(cls)]
        values: dict[str, int] = {}
        for part in filter(None, (part.strip() for part in spec.split(","))):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if key not in known:
                near = get_close_matches(key, known, 1, 0.0)[0]
                raise ConfigError(
                    f"chunking: unknown key {key!r}.", f"Did you mean {near!r}? Known: {', '.join(known)}."
                )
            if not equals or not value.isdecimal():
                raise ConfigError(f"chunking: {part!r} is not {key}=NUMBER.", f"For example: {cls().spec}")
            values[key] = int(value)
        return cls(**values)


def check_readable(chunking: Chunking, space: Space) -> None:
    """Raises `ConfigError` where chunks could be longer than the embedder reads. (`tokens` counts all that it reads: a
    chunk's context, its text and the special tokens.)"""
    if chunking.tokens > space.max_tokens:
        raise ConfigError(
            f"chunking: tokens={chunking.tokens}, but {space.model} reads {space.max_tokens} tokens at most, "
            "context and text together. Nothing was written.",
            f"Choose tokens={space.max_tokens} or less.",
        )


def chunk(
    text: str,
    chunking: Chunking,
    token_spans: TokenSpans,
    *,
    pages: Sequence[tuple[int, int]] = (),
    title: str = "",
) -> list[ChunkSpan]:
    """The chunks of a Markdown text: ascending spans that hold every character of it but whitespace.

    Each is at most `chunking.tokens` long as the embedder reads it: `embedded_text(context, text[start:end])` and two
    special tokens. `context` is the path of headings above the chunk, under `title`, in at most a quarter of that; the
    later chunks of a long table have its header row there too, where it fits. A chunk ends at the best boundary in
    reach: section, block, list item, row or line of code, sentence, line, word; inside a word only where one word alone
    is longer than a chunk. Only chunks of one section overlap.

    Time is linear in the text, and memory beyond it follows the chunks, not the tokens.
    """
    try:
        return _chunks(text, chunking, token_spans, pages, title, count_each=False)
    except CountsDiffer:  # this tokenizer reads a span alone otherwise than within the whole
        return _chunks(text, chunking, token_spans, pages, title, count_each=True)


_WINDOW = 32_768
"""Characters of a section that are read before its first chunks are cut."""


def _chunks(
    text: str,
    chunking: Chunking,
    token_spans: TokenSpans,
    pages: Sequence[tuple[int, int]],
    title: str,
    *,
    count_each: bool,
) -> list[ChunkSpan]:
    counter = TokenCounter(text, token_spans)
    contexts = Contexts(counter.count, chunking.tokens // 4)
    packer = Packer(text, chunking.tokens, chunking.overlap, counter, contexts, count_each=count_each)
    reader = _Reader(text, chunking.tokens, counter, contexts, packer, title)
    reader.read()
    return _with_pages(packer.chunks, pages)


class _Reader:
    """Reads a document's blocks, and hands their pieces to a packer, section by section."""

    def __init__(
        self, text: str, limit: int, counter: TokenCounter, contexts: Contexts, packer: Packer, title: str
    ) -> None:
        self._text = text
        self._limit = limit
        self._counter = counter
        self._contexts = contexts
        self._packer = packer
        self._title = plain_heading(title)
        self._headings: list[tuple[int, str]] = []
        root = contexts.path([self._title])
        self._section = Section(0, root, root)
        self._waiting: list[Block] = []

    def read(self) -> None:
        chars = 0
        for block in blocks(self._text):
            if block.kind is Kind.HEADING:
                self._enter(block)
                chars = 0
            self._waiting.append(block)
            chars += block.end - block.start
            if chars > _WINDOW:
                self._hand_on()
                self._packer.cut_ahead()
                chars = 0
        self._hand_on()
        self._packer.close()

    def _enter(self, heading: Block) -> None:
        """Closes the section before `heading`. One of a few words (most often a heading alone) stays open, and goes
        with the section after it, unless that one stands above it."""
        self._hand_on()
        if (
            self._packer.waiting >= self._limit // 4
            or self._packer.tokens_of(self._section) >= self._limit // 10
            or heading.level < self._section.level
        ):
            self._packer.close()
        while self._headings and self._headings[-1][0] >= heading.level:
            self._headings.pop()
        above = [self._title, *(name for _, name in self._headings)]
        name = plain_heading(self._text[heading.start : min(heading.end, heading.start + 400)])
        self._headings.append((heading.level, name))
        self._section = Section(heading.level, self._contexts.path(above), self._contexts.path([*above, name]))

    def _hand_on(self) -> None:
        """Makes pieces of the blocks that wait; all are of one section."""
        blocks_cuts = [
            (block, cut)
            for block in self._waiting
            for cut in cuts(self._text, block)
            if not self._text[cut.start : cut.end].isspace()
        ]
        self._waiting.clear()
        if not blocks_cuts:
            return
        found = [cut for _, cut in blocks_cuts]
        most = self._limit - SPECIAL_TOKENS - self._contexts.tokens(self._section.path)
        glued = self._packer.last_kind is Kind.HEADING
        for (block, cut), tokens in zip(blocks_cuts, self._tokens_of(found), strict=True):
            before = min(cut.before, Strength.GLUE) if glued and cut.before is not Strength.SECTION else cut.before
            glued = block.kind is Kind.HEADING or (cut.end == block.end and self._announces(cut))
            if cut.before is Strength.INSIDE or not self._fits(cut, tokens, most):
                self._refine(cut._replace(before=before), block, most)
            else:
                self._add(cut, before, block, tokens)

    def _refine(self, cut: Cut, block: Block, most: int) -> None:
        """A piece longer than a chunk: at its lines, then at its words, then anywhere."""
        found = list(lines(self._text, *cut, block.kind))
        for line, tokens in zip(found, self._tokens_of(found), strict=True):
            if self._fits(line, tokens, most) and line.before is not Strength.INSIDE:
                self._add(line, line.before, block, tokens)
                continue
            parts = list(words(self._text, *line)) or [line]
            for part, count in zip(parts, self._tokens_of(parts), strict=True):
                if self._fits(part, count, most) and self._stands_alone(part):
                    self._add(part, part.before, block, count)
                else:
                    self._add_halves(part, block, most)

    def _add_halves(self, cut: Cut, block: Block, most: int) -> None:
        tokens = self._counter.count(self._text[cut.start : cut.end])
        if self._fits(cut, tokens, most) or cut.end - cut.start < 2:
            self._add(cut, cut.before, block, tokens)
            return
        first, second = halves(self._text, cut.start, cut.end)
        self._add_halves(Cut(*first, cut.before), block, most)
        self._add_halves(Cut(*second, Strength.INSIDE), block, most)

    def _add(self, cut: Cut, before: Strength, block: Block, tokens: int) -> None:
        header = ""
        if block.head is not None and cut.start > block.head[0]:
            header = self._text[block.head[0] : min(block.head[1], block.head[0] + 1_000)].strip()
        self._packer.add(Piece(cut.start, cut.end, before, block.kind, self._section, header, tokens))

    def _tokens_of(self, found: Sequence[Cut]) -> list[int]:
        counts = self._counter.before([place for cut in found for place in (cut.start, cut.end)])
        return [after - before for before, after in zip(counts[::2], counts[1::2], strict=True)]

    def _fits(self, cut: Cut, tokens: int, most: int) -> bool:
        return tokens <= most and cut.end - cut.start <= most * CHARS_PER_TOKEN

    def _stands_alone(self, cut: Cut) -> bool:
        text = self._text
        return (cut.start == 0 or text[cut.start - 1].isspace()) and (cut.end == len(text) or text[cut.end].isspace())

    def _announces(self, cut: Cut) -> bool:
        """ "As follows:", which belongs to what follows."""
        return cut.end - cut.start < 200 and self._text[cut.end - 1] in ":："


def _with_pages(chunks: list[ChunkSpan], pages: Sequence[tuple[int, int]]) -> list[ChunkSpan]:
    if not pages:
        return chunks
    starts = [offset for offset, _ in pages]
    return [replace(span, page=pages[max(bisect_right(starts, span.start) - 1, 0)][1]) for span in chunks]

"""Pieces of a document put together into chunks."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import NamedTuple

from whimbrel.domain import ChunkSpan, embedded_text
from whimbrel.ingest.blocks import Kind, Strength
from whimbrel.ingest.contexts import Contexts
from whimbrel.ingest.pieces import halves
from whimbrel.ingest.tokens import TokenCounter

SPECIAL_TOKENS = 2
"""What a model adds to each text: one before it, one after it."""
CHARS_PER_TOKEN = 24
"""Bounds the length of what a tokenizer reads as little or nothing: runs of blanks, emoji, a word of megabytes. Prose
has 4 to 5 characters a token, padded tables up to 15."""
_CHECK_EVERY = 32
_LEAST_FILL = 0.45
_WORTH = {
    Strength.INSIDE: -2.0,
    Strength.GLUE: -1.0,
    Strength.WORD: 0.0,
    Strength.LINE: 0.1,
    Strength.SENTENCE: 0.2,
    Strength.ROW: 0.25,
    Strength.ITEM: 0.4,
    Strength.GROUP: 0.5,
    Strength.BLOCK: 0.6,
    Strength.SECTION: 1.0,
}
"""What a boundary is worth, in fill: that of a block at 60 % of a chunk is taken before that of a sentence at 99 %."""


class CountsDiffer(Exception):
    """A chunk has more tokens by itself than were counted for its span within the document."""


class Section(NamedTuple):
    """What stands under one heading."""

    level: int
    above: str
    """The context of a chunk that begins with the heading."""
    path: str
    """The context of a chunk that begins below it."""


class Piece(NamedTuple):
    """What no chunk boundary parts."""

    start: int
    end: int
    before: Strength
    kind: Kind
    section: Section
    header: str
    """The header row of the table that this piece continues, or nothing."""
    tokens: int


class Packer:
    """Takes pieces in order, and cuts them into chunks of one or several neighbouring sections."""

    def __init__(
        self, text: str, limit: int, overlap: int, counter: TokenCounter, contexts: Contexts, *, count_each: bool
    ) -> None:
        self._text = text
        self._limit = limit
        self._overlap = overlap
        self._counter = counter
        self._contexts = contexts
        self._count_each = count_each
        self._pieces: list[Piece] = []
        self._total = [0]
        """Tokens before each piece, and after the last."""
        self._next = 0
        """The first piece that no chunk holds yet; those before it are kept for the overlap."""
        self._cut_next = False
        self.chunks: list[ChunkSpan] = []

    def add(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self._total.append(self._total[-1] + piece.tokens)

    @property
    def waiting(self) -> int:
        """Tokens that no chunk holds yet."""
        return self._total[-1] - self._total[self._next]

    def tokens_of(self, section: Section) -> int:
        """Tokens that wait of `section`, which is the last."""
        place = len(self._pieces)
        while place > self._next and self._pieces[place - 1].section is section:
            place -= 1
        return self._total[-1] - self._total[place]

    @property
    def last_kind(self) -> Kind | None:
        return self._pieces[-1].kind if len(self._pieces) > self._next else None

    def close(self) -> None:
        """Cuts all that waits."""
        while self._next < len(self._pieces):
            self._cut(final=True)
        self._drop(len(self._pieces))

    def cut_ahead(self) -> None:
        """Cuts what can be cut whatever follows: all but the last three chunks' worth."""
        while self._next < len(self._pieces) and (
            self.waiting > 3 * self._limit
            or self._pieces[-1].end - self._pieces[self._next].start > 3 * self._limit * CHARS_PER_TOKEN
        ):
            self._cut(final=False)
        self._drop(self._overlap_from(self._next) if self._cut_next else self._next)

    # --- one chunk ---------------------------------------------------------------------------------------------------

    def _cut(self, *, final: bool) -> None:
        begin = self._overlap_from(self._next) if self._cut_next else self._next
        context, room = self._context_of(begin)
        end = self._end_of(begin, room, final=final)
        while end <= self._next and begin < self._next:  # the overlap leaves no room for anything new
            begin += 1
            context, room = self._context_of(begin)
            end = self._end_of(begin, room, final=final)
        end = max(end, self._next + 1)
        while (tokens := self._counted(begin, end, context)) + SPECIAL_TOKENS > self._limit:
            if end > self._next + 1:
                end -= 1
            elif begin < self._next:
                begin += 1
                context, _ = self._context_of(begin)
            elif not self._halve(begin):
                break
        start, stop = self._stripped(self._pieces[begin].start, self._pieces[end - 1].end)
        if start < stop:
            self.chunks.append(ChunkSpan(start, stop, tokens + SPECIAL_TOKENS, context))
        self._next = end
        self._cut_next = True

    def _context_of(self, begin: int) -> tuple[str, int]:
        """The context of a chunk that begins at this piece, and the tokens that it leaves for text."""
        piece = self._pieces[begin]
        context = piece.section.above if piece.kind is Kind.HEADING else piece.section.path
        if piece.header:
            context = self._contexts.with_header(context, piece.header)
        return context, self._limit - SPECIAL_TOKENS - self._contexts.tokens(context)

    def _end_of(self, begin: int, room: int, *, final: bool) -> int:
        """The piece before which a chunk from `begin` ends best."""
        pieces, total, size = self._pieces, self._total, len(self._pieces)
        first, origin = pieces[begin].start, total[begin]
        most_chars = room * CHARS_PER_TOKEN
        top = bisect_right(total, origin + room) - 1
        if pieces[top - 1].end - first > most_chars:
            top = bisect_right(pieces, first + most_chars, begin, top, key=_end)
        if top >= size and final:
            return size
        top = min(top, size - 1)
        rest = total[size] - origin if final else 2 * room
        last = rest < 2 * room - self._overlap and pieces[-1].end - first < 2 * most_chars
        """Two chunks will do: they share what is left, so that no tail remains."""
        best, best_score = top, -10.0
        for place in range(top, self._next, -1):
            used = total[place] - origin
            fill = max(used / room, (pieces[place - 1].end - first) / most_chars)
            if fill < _LEAST_FILL and best_score > -1.0:
                break
            if last:
                if rest - used > room - self._overlap and best_score > -10.0:
                    break
                fill = 1.0 - abs(fill - rest / room / 2)
            score = fill + _WORTH[pieces[place].before]
            if score > best_score:
                best, best_score = place, score
        return best

    def _overlap_from(self, place: int) -> int:
        """The first of the pieces before `place` that the next chunk repeats. Only what was cut in the middle of a
        paragraph, a list item or a code block has an overlap: other boundaries part what can be read alone."""
        pieces, begin = self._pieces, place
        if place >= len(pieces) or pieces[place].before > Strength.ROW or pieces[place].kind is Kind.TABLE:
            return place
        section = pieces[place].section
        while (
            begin > 0
            and self._total[place] - self._total[begin - 1] <= self._overlap
            and pieces[place - 1].end - pieces[begin - 1].start <= self._overlap * CHARS_PER_TOKEN
            and pieces[begin - 1].section is section
            and pieces[begin - 1].kind is not Kind.HEADING
            and pieces[begin - 1].start > self.chunks[-1].start
            and pieces[begin].before is not Strength.INSIDE
        ):
            begin -= 1
        return begin

    # --- counting ----------------------------------------------------------------------------------------------------

    def _counted(self, begin: int, end: int, context: str) -> int:
        """Tokens of context and text. Sums of counts where every boundary is at whitespace, which no tokenizer's words
        cross; else, and now and then to be sure of that, the tokenizer's own count of exactly this text."""
        summed = self._total[end] - self._total[begin] + self._contexts.tokens(context)
        start, stop = self._pieces[begin].start, self._pieces[end - 1].end
        risky = self._at_risk(begin, end, start, stop)
        check = len(self.chunks) % _CHECK_EVERY == 1
        if not (risky or check or self._count_each):
            return summed
        start, stop = self._stripped(start, stop)
        exact = self._counter.count(embedded_text(context, self._text[start:stop]))
        if exact > summed and not risky and not self._count_each:
            raise CountsDiffer
        return exact

    def _at_risk(self, begin: int, end: int, start: int, stop: int) -> bool:
        text = self._text
        return (
            (start > 0 and not text[start - 1].isspace() and not text[start].isspace())
            or (stop < len(text) and not text[stop].isspace() and not text[stop - 1].isspace())
            or any(piece.before is Strength.INSIDE for piece in self._pieces[begin:end])
        )

    def _halve(self, place: int) -> bool:
        """Parts a piece that is longer than it was counted; False for one character, which cannot be."""
        piece = self._pieces[place]
        if piece.end - piece.start < 2:
            return False
        parts = halves(self._text, piece.start, piece.end)
        tokens = [self._counter.count(self._text[start:end]) for start, end in parts]
        self._pieces[place : place + 1] = [
            piece._replace(start=parts[0][0], end=parts[0][1], tokens=tokens[0]),
            piece._replace(start=parts[1][0], end=parts[1][1], tokens=tokens[1], before=Strength.INSIDE),
        ]
        self._recount()
        return True

    def _stripped(self, start: int, end: int) -> tuple[int, int]:
        body = self._text[start:end]
        return start + len(body) - len(body.lstrip()), start + len(body.rstrip())

    def _drop(self, count: int) -> None:
        """Forgets the first pieces."""
        del self._pieces[:count]
        self._next -= count
        self._cut_next = self._cut_next and self._next < len(self._pieces)
        self._recount()

    def _recount(self) -> None:
        self._total = list(accumulate((piece.tokens for piece in self._pieces), initial=0))


def _end(piece: Piece) -> int:
    return piece.end

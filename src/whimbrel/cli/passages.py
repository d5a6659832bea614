"""`whimbrel open`: a passage that the last answer cited, in its document."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import typer

from whimbrel.cli import out
from whimbrel.cli.last import Last, Place, recall
from whimbrel.cli.opening import opened
from whimbrel.cli.options import AsJson
from whimbrel.errors import CitationNotFound


def open_(
    marker: Annotated[int, typer.Argument(metavar="N", min=1, help="The number of the citation: 2 for [2].")],
    context: Annotated[int, typer.Option(min=0, help="Characters to show before and after it.")] = 400,
    path: Annotated[bool, typer.Option("--path", help="Print where the document is, and nothing else.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a passage that the last answer cited, in its document."""
    last = recall()
    place = _place(last, marker)
    passage = _read(last, place, context)
    if path:
        out.line(passage.path or passage.uri)
    elif as_json:
        out.data(passage.as_dict(marker))
    else:
        _show(passage, marker)


@dataclass(frozen=True, slots=True)
class _Passage:
    uri: str
    title: str
    heading: str
    place: Place
    before: str
    quote: str
    after: str

    @property
    def path(self) -> str:
        """Of a document that is a file; empty for others."""
        parts = urlsplit(self.uri)
        return unquote(parts.path) if parts.scheme == "file" else ""

    def as_dict(self, marker: int) -> dict[str, Any]:
        return {
            "marker": marker,
            "document_id": self.place.document_id,
            "uri": self.uri,
            "path": self.path or None,
            "title": self.title,
            "heading": self.heading,
            "page": self.place.page,
            "start": self.place.start,
            "end": self.place.end,
            "before": self.before,
            "quote": self.quote,
            "after": self.after,
        }


def _place(last: Last, marker: int) -> Place:
    found = last.places.get(marker)
    if found is None:
        there = ", ".join(f"[{number}]" for number in sorted(last.places)) or "none"
        raise CitationNotFound(f"The last answer has no citation [{marker}].", f"It has: {there}.")
    return found


def _read(last: Last, place: Place, context: int) -> _Passage:
    with opened() as whimbrel:
        conversation = whimbrel.conversation(last.conversation_id)[0] if last.conversation_id else None
        document = whimbrel.document(place.document_id, conversation.collection if conversation else last.collection)
    if document["state"] == "gone":
        raise CitationNotFound(f"{document['uri']} was deleted since it was cited.", "Ask again.")
    text = str(document["text"])
    if place.end > len(text):
        raise CitationNotFound(
            f"{document['uri']} has changed since it was cited: the passage is no longer there.", "Ask again."
        )
    first, last_ = max(0, place.start - context), min(len(text), place.end + context)
    return _Passage(
        uri=document["uri"],
        title=document["title"],
        heading=_heading(text, place.start),
        place=place,
        before=_from_word(text[first : place.start], whole=first == 0),
        quote=text[place.start : place.end],
        after=_to_word(text[place.end : last_], whole=last_ == len(text)),
    )


def _heading(text: str, at: int) -> str:
    """The path of headings above a place: `Guide > Install`."""
    from whimbrel.ingest.blocks import Kind, blocks
    from whimbrel.ingest.contexts import plain_heading

    above: list[tuple[int, str]] = []
    for block in blocks(text):
        if block.start > at:
            break
        if block.kind is Kind.HEADING:
            above = [one for one in above if one[0] < block.level]
            above.append((block.level, plain_heading(text[block.start : block.end])))
    return " > ".join(name for _, name in above if name)


def _from_word(text: str, *, whole: bool) -> str:
    """Not from the middle of a word."""
    if whole or not text:
        return text
    return f"… {text.partition(' ')[2]}" if " " in text else text


def _to_word(text: str, *, whole: bool) -> str:
    if whole or not text:
        return text
    return f"{text.rpartition(' ')[0]} …" if " " in text else text


def _show(passage: _Passage, marker: int) -> None:
    if passage.title:
        out.styled(out.bold(passage.title))
    if passage.heading and passage.heading != passage.title:
        out.line(passage.heading)
    page = f" (page {passage.place.page})" if passage.place.page else ""
    out.line(f"[{marker}] {passage.uri}:{passage.place.start}-{passage.place.end}{page}")
    out.line()
    if sys.stdout.isatty():
        before, after = out.shown(passage.before), out.shown(passage.after)
        out.styled(f"{before}{typer.style(out.shown(passage.quote), reverse=True)}{after}")
    else:  # where nothing can be highlighted
        out.line(f"{passage.before}>>>{passage.quote}<<<{passage.after}")

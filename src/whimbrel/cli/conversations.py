"""`whimbrel conversations`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

import typer

from whimbrel.cli import out
from whimbrel.cli.opening import opened
from whimbrel.cli.options import AsJson
from whimbrel.cli.searching import shapes

app = typer.Typer(
    name="conversations", help="Look at conversations, rate their answers, delete them.", no_args_is_help=True
)

Id = Annotated[str, typer.Argument(metavar="CONVERSATION", help="The conversation's id.")]


@app.command("list")
def list_(
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", metavar="NAME", help="Only those about this collection.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List conversations, the last used first."""
    with opened() as whimbrel:
        found = whimbrel.conversations(collection, limit=limit)
    if as_json:
        out.data({"conversations": [shapes().conversation(one) for one in found]})
        return
    out.table(
        ["conversation", "collection", "turns", "used", "first question"],
        [[one.id, one.collection, one.turns, _at(one.updated_at), out.snippet(one.title, 60)] for one in found],
    )


@app.command()
def show(conversation: Id, as_json: AsJson = False) -> None:
    """Show a conversation's questions and answers."""
    with opened() as whimbrel:
        found, turns = whimbrel.conversation(conversation)
    if as_json:
        out.data({**shapes().conversation(found), "turns": [shapes().turn(turn) for turn in turns]})
        return
    for turn in turns:
        out.styled(out.bold(turn.asked))
        if turn.question != turn.asked:
            out.line(f"({turn.question})")
        out.line(turn.answer)
        opinion = {1: "  good", -1: "  bad"}.get(turn.rating or 0, "")
        out.note(f"turn {turn.id}, {turn.model}, {_at(turn.created_at)}{opinion}")
        out.line()
    if found.erased:
        out.note(f"{found.erased:,} more were erased with documents that they were made from.")


@app.command()
def rate(
    turn: Annotated[str, typer.Argument(metavar="TURN", help="The answer's id; `show` names it.")],
    rating: Annotated[Literal["good", "bad"], typer.Argument(help="What you think of the answer.")],
    comment: Annotated[str, typer.Option(help="Why.")] = "",
) -> None:
    """Say what you think of an answer, instead of what was said before."""
    with opened() as whimbrel:
        whimbrel.add_feedback(turn, 1 if rating == "good" else -1, comment)
    out.note("Noted.")


@app.command()
def delete(conversation: Id) -> None:
    """Delete a conversation with its answers and what was said of them."""
    with opened() as whimbrel:
        whimbrel.delete_conversation(conversation)
    out.note("Deleted.")


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

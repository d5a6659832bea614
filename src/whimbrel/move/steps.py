"""In which states a move may be compared, switched and rolled back: looked at when it is asked for, and by the job."""

from __future__ import annotations

from whimbrel.catalog.moves import Move
from whimbrel.domain import MoveState
from whimbrel.errors import Conflict

VERIFIED = (MoveState.VERIFYING, MoveState.READY, MoveState.PREPARED, MoveState.FAILED)
"""Their target is whole; what differs makes them fail."""
SEARCHED = (MoveState.SWITCHED, MoveState.ROLLED_BACK)
"""Both sides are fed, and one of them is searched: they stay as they are, whatever differs."""
SWITCHABLE = (MoveState.READY, MoveState.PREPARED, MoveState.ROLLED_BACK)


def check_verify(move: Move) -> None:
    """Raises `Conflict`."""
    if move.state in (*VERIFIED, *SEARCHED):
        return
    if move.state.ended:
        raise Conflict(
            f"Move {move.id} is {move.state}: it is over, and is not verified any more. Nothing was changed.",
            f"`whimbrel view verify -c {move.collection}` compares what the collection has now with the catalog.",
        )
    raise Conflict(
        f"Move {move.id} is {move.state}: there is nothing to verify yet.", "It verifies by itself when it can."
    )


def check_switch(move: Move, *, back: bool = False) -> None:
    """Raises `Conflict`. `back`: to roll back."""
    if move.state in ((MoveState.SWITCHED,) if back else SWITCHABLE):
        return
    if back:
        hint = "Its old view is not fed any more: move the collection to where it came from."
        raise Conflict(
            f"Move {move.id} is {move.state}: there is no switch to take back. Nothing was changed.",
            hint if move.state is MoveState.FINALISED else "`whimbrel move status` shows where it stands.",
        )
    raise Conflict(
        f"Move {move.id} is {move.state}: only one that is ready can be switched. Nothing was switched.",
        move.hint or "`whimbrel move status` shows how far it is.",
    )

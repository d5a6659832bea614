"""What a move's state allows: over HTTP and from Python alike, and without a job where it is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from running import DEADLINE_S, Toy
from serving import refused
from whimbrel.app import Whimbrel
from whimbrel.catalog import moves
from whimbrel.domain import Job, MoveState
from whimbrel.errors import Conflict
from whimbrel.models.embedders import resolve
from whimbrel.server.app import create_app

S = MoveState
ALLOWED = {
    "pause": {S.COPYING, S.CATCHING_UP},
    "resume": {S.COPYING, S.CATCHING_UP, S.VERIFYING, S.FAILED},
    "verify": {S.VERIFYING, S.READY, S.PREPARED, S.FAILED, S.SWITCHED, S.ROLLED_BACK},
    "accept": {S.FAILED},
    "switch": {S.READY, S.PREPARED, S.ROLLED_BACK},
    "rollback": {S.SWITCHED},
    "finalise": {S.SWITCHED},
    "abort": set(S) - {S.SWITCHED, S.FINALISED, S.ABORTED},
}
BY_THE_OWNER = ("resume", "verify", "switch", "rollback")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a move that has been compared, and no owner to go on with it."""
    folder = tmp_path_factory.mktemp("steps") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: Toy())
        with Whimbrel(home=folder, embedder="toy") as home:
            home.add([{"id": "x", "text": "A whimbrel."}])
            home.wait_for_head("default")
            _, job = home.start_move("default", to="lancedb:elsewhere")
            home.finish(job, timeout_s=DEADLINE_S)
    return folder


@pytest.fixture
async def both(made: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Whimbrel, httpx.AsyncClient]]:
    monkeypatch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: Toy())
    with Whimbrel(home=made, embedder="toy") as home:
        app = create_app(home)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1:8000") as http:
            yield home, http
        await app.state.served.close()


def under_way(home: Whimbrel) -> list[Job]:
    return [job for job in home.jobs(active=True) if job.kind == "move"]


def begin_at(home: Whimbrel, state: MoveState) -> moves.Move:
    """The move in that state, and nobody at it."""
    for job in under_way(home):
        home.cancel(job.id)
    move = home.move("default")
    with home.catalog.write() as connection:
        return moves.change(connection, move.id, state=state, paused=False)


def from_python(home: Whimbrel, step: str, move: moves.Move) -> tuple[str, str] | None:
    """Why it is refused; None where it is not."""
    try:
        getattr(home, f"{step}_move")(move)
    except Conflict as conflict:
        return conflict.message, conflict.hint
    return None


@pytest.mark.parametrize("state", [state for state in MoveState if state is not S.PLANNED])
async def test_each_step_in_each_state(both: tuple[Whimbrel, httpx.AsyncClient], state: MoveState) -> None:
    home, http = both
    for step, states in ALLOWED.items():
        move = begin_at(home, state)
        verdict = from_python(home, step, move)
        assert (verdict is None) == (state in states), (step, verdict)

        before = begin_at(home, state)
        answer = await http.post(f"/v1/moves/{move.id}/{step}")
        if verdict is not None:
            problem = refused(answer, 409, "Conflict")
            assert (problem["message"], problem["hint"]) == verdict
            assert f"is {state}" in verdict[0]
            assert home.move("default") == before, "nothing was changed"
            assert under_way(home) == [], "nothing is done later"
            continue
        assert answer.status_code == 202, answer.json()
        named = [job.id for job in under_way(home)]
        assert named == ([answer.json()["job_id"]] if step in BY_THE_OWNER else [])
        assert (answer.json()["job_id"] is not None) == (step in BY_THE_OWNER)


async def test_a_step_that_is_under_way_is_not_begun_twice(both: tuple[Whimbrel, httpx.AsyncClient]) -> None:
    home, http = both
    move = begin_at(home, S.READY)
    first = (await http.post(f"/v1/moves/{move.id}/switch")).json()["job_id"]
    with home.catalog.write() as connection:
        moves.change(connection, move.id, state=S.SWITCHED)
    again = await http.post(f"/v1/moves/{move.id}/switch")
    assert (again.status_code, again.json()["job_id"]) == (202, first)


@pytest.mark.parametrize("state", [S.FINALISED, S.ABORTED])
async def test_a_move_that_is_over_is_not_said_to_be_verified_later(
    both: tuple[Whimbrel, httpx.AsyncClient], state: MoveState
) -> None:
    home, _ = both
    with pytest.raises(Conflict, match="it is over, and is not verified any more") as refusal:
        home.verify_move(begin_at(home, state))
    assert "whimbrel view verify -c default" in refusal.value.hint

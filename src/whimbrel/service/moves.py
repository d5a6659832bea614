"""Moves: asked for here, done by the owner."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from whimbrel.catalog import adoptions, collections, jobs, moves, sizes, vectors
from whimbrel.catalog.collections import ViewRow
from whimbrel.catalog.moves import Move, Reject, Request
from whimbrel.config import mask_url
from whimbrel.config.values import canonical_store, without_credentials
from whimbrel.domain import Job, MoveState, Space, ViewState
from whimbrel.errors import BadInput, ConfigError, Conflict, MissingExtra, SpaceMismatch
from whimbrel.guards.limits import parse_prices
from whimbrel.guards.prices import Prices
from whimbrel.ingest.chunk import Chunking, check_readable
from whimbrel.models.embedders.base import Embedder
from whimbrel.move.leftovers import Leftovers
from whimbrel.move.plan import Plan, Planner, Tell, cheap
from whimbrel.move.report import Reporter, report
from whimbrel.move.shown import as_dict
from whimbrel.move.steps import check_switch, check_verify
from whimbrel.move.wish import Wish
from whimbrel.owner.forgetting import forget_later
from whimbrel.owner.lending import store_of
from whimbrel.owner.succession import drop_later
from whimbrel.search.quality import judged_here
from whimbrel.service.content import Content
from whimbrel.stores.base import Reach, Store, StoreInfo
from whimbrel.stores.resolve import open_store, parse_uri, same_place

_PAUSABLE = (MoveState.COPYING, MoveState.CATCHING_UP)


class Moves(Content):
    """What takes collections to other views."""

    @abstractmethod
    def embedder(self, spec: str | None = None) -> Embedder:
        """The embedder of a `provider:model`, or of the settings; opened once."""

    @abstractmethod
    def embedder_for(self, space_id: int) -> Embedder:
        """The embedder of a space of the catalog, by its key. Raises `SpaceMismatch` where it is not here."""

    # --- asking for one ----------------------------------------------------------------------------------------------

    def start_move(
        self,
        collection: str,
        *,
        to: str | None = None,
        embedder: str | None = None,
        chunking: str | None = None,
        rate: float = 0.0,
        auto_switch: bool = False,
        judged: str | Path | None = None,
        min_ndcg: float = 0.0,
    ) -> tuple[Move, Job]:
        """Begin to build another view of a collection beside the live one; the owner does it.

        `to`: the target store's URI; without it, the same store. `embedder`: `provider:model`; `chunking`: as
        `tokens=256,overlap=32`. At least one differs from what there is. `rate`: rows per second, 0 for no limit.
        `judged`: a folder of judged queries in BEIR's layout, which both sides are searched for before the switch; with
        `min_ndcg`, the move fails where hybrid search through the target has a lower nDCG@10.

        Raises `BadInput` where nothing would change, `Conflict` for a second move of the collection, `ConfigError`,
        `SpaceMismatch` where the target cannot hold the vectors, `StoreUnavailable`, `StoreRefused`.
        """
        if rate < 0:
            raise BadInput(f"The rate is {rate}; rows per second are 0 (no limit) or more.")
        wish = self.wish(collection, to=to, embedder=embedder, chunking=chunking, rate=rate, auto_switch=auto_switch)
        request = self._with_judgements(wish.request, wish.collection.id, judged, min_ndcg)
        self._check_chunking(wish)
        target = self.check_target(wish)
        with self.catalog.read() as connection:
            found = sizes.sizes(connection, wish.collection.id, wish.store.view.chunking_id)
        plan = cheap(found, wish, self._source_info(wish), target)
        with self.catalog.write() as connection:
            row = collections.find(connection, collection)
            space_id = vectors.space_id(connection, wish.space, wish.request.embedder)
            chunking_id = collections.chunking_id(connection, wish.request.chunking)
            move = moves.create(connection, row, request, space_id=space_id, chunking_id=chunking_id, plan=plan)
            job = self._enqueue_move(connection, move, "build")
        self._wake()
        return move, job

    def plan_move(
        self,
        collection: str,
        *,
        to: str | None = None,
        embedder: str | None = None,
        chunking: str | None = None,
        on_progress: Tell | None = None,
    ) -> Plan:
        """What such a move would take, and lose. Changes nothing; a sample is written to a scratch table, which is
        dropped: in a folder of its own where the target is a folder, so that this works whoever has it open.

        Raises as `start_move` does; what only the target cannot hold is in the plan's losses.
        """
        wish = self.wish(collection, to=to, embedder=embedder, chunking=chunking)
        planner = Planner(
            self.catalog,
            wish,
            self._open_to_write,
            lambda: self._model(wish),
            Prices(parse_prices(self.settings.guards.prices)),
            self.home,
            on_progress or (lambda what: None),
        )
        return asyncio.run(planner.plan())

    def wish(
        self,
        collection: str,
        *,
        to: str | None = None,
        embedder: str | None = None,
        chunking: str | None = None,
        rate: float = 0.0,
        auto_switch: bool = False,
    ) -> Wish:
        """What a move would go from and to. Changes nothing. Raises as `start_move` does, without asking the target."""
        if to is None and embedder is None and chunking is None:
            raise BadInput("Nothing is to change.", "Name a target store, an embedder or a chunking (or several).")
        with self.catalog.read() as connection:
            found = collections.find(connection, collection)
            store, lexicon = collections.live_views(connection, found)
            if store is None or store.view.space_id is None:
                raise Conflict(
                    f"The collection {collection!r} has no live view yet: the owner builds it.",
                    "Nothing was begun. Try again when `whimbrel status` shows it live; `whimbrel owner` or `whimbrel "
                    "serve` must run.",
                )
            source_space, source_spec = vectors.read_space(connection, store.view.space_id)
            source_chunking = collections.chunking_spec(connection, store.view.chunking_id)
            adopted = adoptions.get(connection, store.id) if adoptions.is_frozen(store) else None
        uri = self._target_uri(to) if to is not None else self._same_store(store)
        spec = embedder or source_spec
        space = source_space if embedder is None else self.embedder(embedder).space
        parsed = Chunking.parse(chunking or source_chunking)
        if chunking is not None:
            check_readable(parsed, space)
        cut = parsed.spec
        if cut != source_chunking and lexicon is None and not found.head:
            raise Conflict(
                f"The collection {collection!r} has no documents yet, and so no lexicon: only its store and its "
                "embedder can be changed. Nothing was begun.",
                f"Take a document in first; or delete it and make it anew: `whimbrel ingest PATH -c {collection} "
                f"--chunking {cut}`.",
            )
        request = Request(uri, spec, cut, rate, auto_switch)
        if same_place(uri, store.view.uri) and space.key == source_space.key and cut == source_chunking:
            raise BadInput(
                f"The collection {collection!r} is there already: {mask_url(uri)!r}, {source_spec!r}, {cut!r}. "
                "Nothing was begun.",
                "`whimbrel view rebuild` makes its view anew in the same place.",
            )
        kind = self._kind(str(adopted.source["place"]), source_space) if adopted is not None else None
        return Wish(found, store, request, space, source_space, source_spec, source_chunking, kind)

    def _kind(self, place: str, space: Space) -> StoreInfo | None:
        """What a store of ours would say of itself there."""
        try:
            return self._open(place, "whimbrel-probe", space, read_only=True).describe()
        except (MissingExtra, ConfigError, BadInput):
            return None

    def _same_store(self, store: ViewRow) -> str:
        """Where a move goes that names no store: a database that was adopted is not ours to write to."""
        return without_credentials(self.settings.store) if adoptions.is_frozen(store) else store.view.uri

    def _model(self, wish: Wish) -> Embedder:
        """What embeds for the target: of the same space, whatever serves that."""
        if wish.other_space or wish.store.view.space_id is None:
            return self.embedder(wish.request.embedder)
        return self.embedder_for(wish.store.view.space_id)

    def _check_chunking(self, wish: Wish) -> None:
        """Whether a new model reads the chunks that there are; a plan says which it does not."""
        try:
            check_readable(Chunking.parse(wish.request.chunking), wish.space)
        except ConfigError as error:
            raise ConfigError(
                f"{error.message} Nothing was begun.", "Name a `--chunking` that the new model reads, in the same move."
            ) from error

    def _source_info(self, wish: Wish) -> StoreInfo | None:
        """None where its client is not installed here any more, or not configured: it can be left all the same."""
        view = wish.store.view
        try:
            return self._open(view.uri, view.name, wish.source_space, read_only=True).describe()
        except (MissingExtra, ConfigError):
            return None

    def check_target(self, wish: Wish) -> StoreInfo:
        """Whether the target can be reached, and can hold vectors of that many dimensions. Returns what it says of
        itself."""
        store = self._open(wish.request.uri, "whimbrel-probe", wish.space, read_only=True)
        info = store.describe()
        if info.max_dimensions is not None and wish.space.dimensions > info.max_dimensions:
            raise SpaceMismatch(
                f"{info.name} holds vectors of up to {info.max_dimensions:,} dimensions; {wish.request.embedder!r} "
                f"makes {wish.space.dimensions:,}. Nothing was begun.",
                "Choose another store, or a model of fewer dimensions.",
            )

        async def reach() -> None:
            try:
                await store.exists()
            finally:
                await store.close()

        if not info.single_process:  # which the owner may have open
            asyncio.run(reach())
        return info

    async def drop_leftovers(self) -> None:
        """What plans that were killed have written beside their targets."""
        await self._leftovers.drop()

    @cached_property
    def _leftovers(self) -> Leftovers:
        return Leftovers(self.home.plans, self._open_to_write)

    def _open_to_write(self, uri: str, table: str, space: Space) -> Store:
        return self._open(uri, table, space, read_only=False)

    def _open(self, uri: str, table: str, space: Space, *, read_only: bool) -> Store:
        if uri.startswith(adoptions.SCHEME):
            with self.catalog.read() as connection:
                row = next(one for one in collections.views(connection) if one.view.name == table)
            return store_of(row, self.catalog, self.settings, self.home, read_only=True)
        return open_store(
            uri,
            table,
            space,
            base=self.home.path,
            read_only=read_only,
            reach=Reach(*self.settings.stores.reach),
            configured=self.settings.configured_stores(),
        )

    def _target_uri(self, to: str) -> str:
        parse_uri(to)
        uri = without_credentials(to)
        known = any(same_place(one, to) for one in self.settings.configured_stores())
        if uri != canonical_store(to).replace(":@", "@", 1) and not known:  # an empty password is none
            raise ConfigError(
                f"The URI of the target holds a credential, which the catalog does not keep: {mask_url(to)!r}.",
                "Put the whole URI into `stores.others` (WHIMBREL_STORES_OTHERS) of every process, then name it here "
                "without the credential.",
            )
        return uri

    # --- looking -----------------------------------------------------------------------------------------------------

    def move(self, collection: str) -> Move:
        """The last move of a collection. Raises `MoveNotFound`."""
        with self.catalog.read() as connection:
            return moves.latest(connection, collections.find(connection, collection))

    def move_by_id(self, move_id: str) -> Move:
        with self.catalog.read() as connection:
            return moves.get(connection, move_id)

    def moves(self, *, under_way: bool = False, limit: int = 100) -> list[Move]:
        """Newest first."""
        with self.catalog.read() as connection:
            return moves.listing(connection, under_way=under_way, limit=limit)

    def move_dict(self, move: Move) -> dict[str, Any]:
        with self.catalog.read() as connection:
            return as_dict(connection, move)

    def move_rejects(self, move: Move) -> list[Reject]:
        """The rows that the target refuses, or its model."""
        with self.catalog.read() as connection:
            return moves.lost(connection, move)

    @cached_property
    def reporter(self) -> Reporter:
        return Reporter(self.catalog, self.home.moves)

    def move_report(self, move: Move) -> dict[str, Any]:
        """What its report says, as JSON, as of now."""
        with self.catalog.read() as connection:
            return report(connection, move, moves.lost(connection, move))

    def write_move_report(self, move: Move) -> Path:
        """Its report as of now, in HOME/moves/ID. Returns the page's path. Raises `DiskFull`, `HomeError`."""
        return self.reporter.write(move.id)

    # --- steering ----------------------------------------------------------------------------------------------------

    def pause_move(self, move: Move) -> Move:
        """Write nothing more to the target until `resume_move`. The log is kept for it meanwhile."""
        with self.catalog.write() as connection:
            current = moves.lock(connection, move.id)
            if current.state not in _PAUSABLE:
                raise Conflict(
                    f"Move {move.id} is {current.state}: only one that copies can be paused. Nothing was changed.",
                    "`whimbrel move abort` ends a move before its switch.",
                )
            changed = moves.change(connection, move.id, paused=True)
        self._wake()
        return changed

    def resume_move(self, move: Move, *, rate: float | None = None) -> tuple[Move, Job]:
        """Go on with a move that was paused or has failed: rows found to differ are written again, and compared."""
        with self.catalog.write() as connection:
            current = moves.lock(connection, move.id)
            failed = current.state is MoveState.FAILED
            if not failed and current.state not in (*_PAUSABLE, MoveState.VERIFYING):
                said = f"Move {move.id} is {current.state}: there is nothing to go on with. Nothing was changed."
                raise Conflict(said)
            values: dict[str, Any] = {"paused": False, "error": "", "hint": ""}
            if failed:
                standing = all(
                    collections.view(connection, key).view.state is ViewState.STANDBY for key in current.targets
                )
                values["state"] = MoveState.VERIFYING if standing else MoveState.COPYING
            if rate is not None:
                values["request"] = {**moves.as_json(current.request), "rate": rate}
            changed = moves.change(connection, move.id, **values)
            job = self._enqueue_move(connection, changed, "build", mend=failed)
        self._wake()
        return changed, job

    def verify_move(self, move: Move, *, judged: str | Path | None = None, min_ndcg: float = 0.0) -> Job:
        """Compare every row of the target with the catalog, and search both sides, again. `judged` and `min_ndcg`: as
        for `start_move`, from now on. Raises `Conflict` where there is nothing to compare."""
        if judged is not None:
            request = self._with_judgements(move.request, move.collection_id, judged, min_ndcg)
            with self.catalog.write() as connection:
                current = moves.lock(connection, move.id)
                check_verify(current)
                asked = replace(current.request, judged=request.judged, min_ndcg=request.min_ndcg)
                moves.change(connection, move.id, request=moves.as_json(asked))
        return self._do(move, "verify", check_verify)

    def _with_judgements(
        self, request: Request, collection_id: int, judged: str | Path | None, min_ndcg: float
    ) -> Request:
        """Raises `PathNotFound` and `BadInput` for what cannot be judged by."""
        folder = judged_folder(judged, min_ndcg)
        if folder is None:
            return request
        judged_here(self.catalog, collection_id, folder)
        return replace(request, judged=str(folder), min_ndcg=min_ndcg)

    def accept_move(self, move: Move) -> Move:
        """Make a move ready although it differs, or rows cannot go: what its checks name is accepted."""
        with self.catalog.write() as connection:
            current = moves.lock(connection, move.id)
            if current.state is not MoveState.FAILED or not current.checks.get("views"):
                raise Conflict(
                    f"Move {move.id} is {current.state}: there is nothing to accept. Nothing was changed.",
                    "Only differences that verifying has named can be accepted.",
                )
            if any("damage" in view for view in current.checks["views"]):
                raise Conflict(f"Move {move.id}: the target cannot be read. That cannot be accepted.", current.hint)
            if any(view["missing"] or view["extra"] or view["doubled"] for view in current.checks["views"]):
                raise Conflict(
                    f"Move {move.id}: the target does not hold the rows that the catalog has. That cannot be accepted: "
                    "such a view is built anew. Nothing was changed.",
                    "`whimbrel move resume` writes what differs again and compares again.",
                )
            changed = moves.change(connection, move.id, state=MoveState.READY, accepted=True, error="", hint="")
        self._wake()
        self.reporter.try_to_write(move.id)
        return changed

    def switch_move(self, move: Move) -> Job:
        """Let searches read the target, when every process has it open. One row changes. Raises `Conflict` where it is
        not ready."""
        return self._do(move, "switch", check_switch)

    def rollback_move(self, move: Move) -> Job:
        """The same switch backwards; the target is fed still. Raises `Conflict` where it was not switched."""
        return self._do(move, "rollback", partial(check_switch, back=True))

    def finalise_move(self, move: Move) -> Move:
        """Give up the way back: the old view is no longer fed. Its data stays until `view drop`."""
        with self.catalog.write() as connection:
            current = moves.lock(connection, move.id)
            if current.state is not MoveState.SWITCHED:
                hint = (
                    "It was rolled back: `whimbrel move abort` drops its target, `move switch` switches again."
                    if current.state is MoveState.ROLLED_BACK
                    else "`whimbrel move status` shows where it stands."
                )
                raise Conflict(f"Move {move.id} is {current.state}: only one that was switched can be finalised.", hint)
            for key in current.sources:
                collections.set_view(connection, key, state=ViewState.RETIRED)
            changed = moves.change(connection, move.id, state=MoveState.FINALISED)
            if current.target_lexicon is not None:
                forget_later(connection, current.collection_id)
        self._wake()
        self.reporter.try_to_write(move.id)
        return changed

    def abort_move(self, move: Move) -> Move:
        """End a move before its switch (or after it was rolled back). What it made is dropped; nothing else is."""
        with self.catalog.write() as connection:
            current = moves.lock(connection, move.id)
            if current.state.ended:
                raise Conflict(f"Move {move.id} is {current.state} already. Nothing was changed.")
            if current.state is MoveState.SWITCHED:
                raise Conflict(
                    f"Move {move.id} is switched: searches read its target. Nothing was changed.",
                    "`whimbrel move rollback` first; then abort.",
                )
            for key in current.targets:
                row = collections.view(connection, key)
                if row.view.state is not ViewState.RETIRED:
                    collections.set_view(connection, key, state=ViewState.RETIRED)
                    drop_later(connection, row)
            changed = moves.change(connection, move.id, state=MoveState.ABORTED, paused=False)
            if current.target_lexicon is not None:
                forget_later(connection, current.collection_id)
        self._wake()
        self.reporter.try_to_write(move.id)
        return changed

    def _do(self, move: Move, what: str, check: Callable[[Move], None]) -> Job:
        """Looks whether its state allows that; the job looks again, since the state may change until then."""
        with self.catalog.write() as connection:
            current = moves.lock(connection, move.id)
            if self._at_it(connection, _wanted(current, what, {})) is None:
                check(current)
            job = self._enqueue_move(connection, current, what)
        self._wake()
        return job

    def _enqueue_move(self, connection: Connection, move: Move, what: str, **args: Any) -> Job:
        """The job that does it: the one that is at it already, or a new one."""
        wanted = _wanted(move, what, args)
        job = self._at_it(connection, wanted)
        if job is None:
            job, _ = jobs.enqueue(
                connection, "move", collection_id=move.collection_id, collection=move.collection, args=wanted
            )
        return job

    def _at_it(self, connection: Connection, wanted: Mapping[str, Any]) -> Job | None:
        active = jobs.listing(connection, active=True, limit=1_000)
        return next((job for job in active if job.kind == "move" and dict(job.args) == wanted), None)


def _wanted(move: Move, what: str, args: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of such a job."""
    return {"move": move.id, "do": what, **{key: one for key, one in args.items() if one}}


def judged_folder(judged: str | Path | None, min_ndcg: float) -> Path | None:
    """Of the judged queries that were asked for. Raises `BadInput`."""
    if not 0 <= min_ndcg <= 1:
        raise BadInput(f"nDCG@10 lies between 0 and 1; {min_ndcg:g} cannot be asked for. Nothing was begun.")
    if judged is None and min_ndcg:
        raise BadInput("A least nDCG@10 needs judged queries. Nothing was begun.", "Give their folder too: `--eval`.")
    return Path(judged).expanduser().absolute() if judged is not None else None

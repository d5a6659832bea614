"""An applier: a loop with a cursor that keeps one view up to its collection's log.

Read changes, keep the last per chunk, upsert and delete, store the position. At least once, and idempotent. A view that
cannot be trusted (missing, damaged, of another epoch, ahead of the log) is not mended in place: another is built beside
it, which takes its place.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlalchemy import Connection

from whimbrel.catalog import collections, log, moves, rows, vectors
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.catalog.engine import Catalog
from whimbrel.domain import Position, ViewKind, ViewState
from whimbrel.errors import RowRefused, ViewDamaged
from whimbrel.owner.copying import Snapshot
from whimbrel.owner.embedding import EmbeddingStage
from whimbrel.owner.pace import TRAFFIC
from whimbrel.owner.targets import Target

logger = logging.getLogger("whimbrel.owner")

WINDOW = 4_000
"""Changes that are applied in one go, at least; a batch ends where a commit ends."""
MEETINGS = 5
"""How often a view that is to stand still tries to do so where the writers are."""
COUNT_S = 900.0
"""Between two counts of the rows of a view whose database may have begun anew."""
PIECE = 2_000
"""Rows of the log that are held in memory together."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How a view stands."""

    position: int
    head: int
    building: bool
    remaining: int
    """Chunk keys still to be copied by a building view."""

    @property
    def lag(self) -> int:
        return self.head - self.position


class Follower:
    """One view being fed. `step` does one batch; `settled` tells whether it has caught up."""

    def __init__(
        self,
        catalog: Catalog,
        collection: Collection,
        row: ViewRow,
        target: Target,
        stage: EmbeddingStage | None,
        *,
        fence: int,
        on_position: Callable[[], None],
    ) -> None:
        self.catalog = catalog
        self.collection_id = collection.id
        self.row = row
        self.target = target
        self.stage = stage
        self.position = row.view.position
        self.building = row.view.state is ViewState.BUILDING
        self.after = row.build_after
        self.upto = row.build_upto
        self.error = row.view.error
        self.turn = asyncio.Lock()
        """Held while the view's data is written, compacted, or compared."""
        self.rows_per_s = 0.0
        """What copying is held to; 0 for as fast as it goes."""
        self._fence = fence
        self._on_position = on_position
        self.written = 0
        """Rows written since it was opened."""
        self._copied = 0
        self._due = 0.0
        self._rejected: set[str] | None = None
        """Ids that the database refuses to hold; None before they were read."""
        self._snapshot = Snapshot(catalog, row, stage)
        self._fresh = False
        self._trust_new_after = 0
        self._held: Position | None = None
        """What the data said last of where it stands."""
        self._uncounted = False
        self._deleted = False
        """Rows were deleted, not in one commit with the position, and none counted since."""
        self._counted_at = time.monotonic()

    async def open(self) -> None:
        """Check that the data is there and belongs to this log. Raises `ViewDamaged`, saying why, if it does not."""
        there = await self.target.exists()
        if not there and not self.building:
            raise ViewDamaged(f"View {self.row.id} has no data: its folder or table is gone.", _REBUILT)
        if not there:
            # Before the data is made: what was copied and followed is gone, maybe with the machine that held it, and
            # must not be taken for copied by the next owner either.
            self.row = await asyncio.to_thread(self._begin_anew)
            self.after, self.upto, self.position = 0, self.row.build_upto, self.row.view.position
            await self.target.create()
            self._fresh = True
        if self.building and self.after < self.upto:
            await self.target.begin_bulk()
            return
        held = await self.target.position()
        if held is None and self.building:
            return  # nothing to copy; its first position comes with the first step
        why = await asyncio.to_thread(self._distrust, held)
        if why:
            raise ViewDamaged(f"View {self.row.id} cannot be caught up: {why}.", _REBUILT)
        assert held is not None
        self.position = held.position
        self._held = held
        if (held.position, held.epoch, "") != (self.row.view.position, self.row.view.epoch, self.error):
            # The data tells where the view stands: an owner may have been killed before it wrote that down, and the
            # data may be an older copy. What stood in the way before has passed.
            await asyncio.to_thread(self._save, position=held.position, epoch=held.epoch, error="")
            self.error = ""
        head = await asyncio.to_thread(self._head)
        # Until here a batch may have been applied in part by an owner that was killed: ids may be there already.
        self._trust_new_after = 0 if self._fresh else head.head
        self._uncounted = not self.building or self.position == head.head

    async def step(self) -> bool:
        """Do the next batch; False when the view stands at the head (or waits for vectors)."""
        async with self.turn:
            if self.building and self.after < self.upto:
                await self._copy_some()
                return True
            if self.building:
                await self._end_building()
            if await self._apply_some():
                return True
            if self._uncounted:  # its database may have come back with more rows, or fewer, than it had
                self._uncounted = not await self.check_count()
            return False

    async def pace(self) -> None:
        """Wait as long as `rows_per_s` says after what was copied last."""
        copied, self._copied = self._copied, 0
        if self.rows_per_s > 0 and copied:
            at = time.monotonic()
            self._due = max(self._due, at) + copied / self.rows_per_s
            await asyncio.sleep(self._due - at)

    async def write_again(self, ids: Sequence[str]) -> None:
        """Make the rows of these ids what they are in the catalog; those that it has not are removed."""
        async with self.turn:
            keys = await asyncio.to_thread(self._keys_of, ids)
            found = await self._rows(keys)
            gone = sorted(set(ids) - set(found.ids))
            await self._write(found, gone, None, new=False)

    def _keys_of(self, ids: Sequence[str]) -> list[int]:
        with self.catalog.read() as connection:
            return rows.keys_of(connection, self.collection_id, self.row.view.chunking_id, ids)

    @asynccontextmanager
    async def standing_still(self) -> AsyncIterator[tuple[Connection, set[str]] | None]:
        """Hold the view where it is, as near to the head of its log as it comes. Gives a snapshot of the catalog, and
        the ids of the chunks that have changed between the two: none, unless others go on writing. None where the view
        has far to go."""
        async with self.turn:
            for attempt in range(MEETINGS):
                goal = (await asyncio.to_thread(self._head)).head  # not the head that there is then: it may run away
                while not self.building and self.position < goal and await self._apply_some():
                    pass
                with self.catalog.read() as connection:
                    head = await asyncio.to_thread(log.head, connection, self.collection_id)
                    if self.building or head.head > self.position + WINDOW:
                        break
                    if head.head == self.position or attempt == MEETINGS - 1:
                        yield connection, await asyncio.to_thread(self._changed, connection, head.head)
                        return
            yield None

    def _changed(self, connection: Connection, upto: int) -> set[str]:
        upserts, deletes, _ = rows.read_log(
            connection, self.collection_id, self.row.view.chunking_id, self.position, upto
        )
        return {entry.public_id.hex() for entry in upserts} | set(deletes)

    async def maintain(self, *, full: bool = False) -> None:
        async with self.turn:
            if not self.building:  # what there is to do then is done once, at the end
                await self.target.maintain(full=full)

    async def settle(self, *, count: bool) -> None:
        """Nothing has come for a while. `count`: see that a database has kept no row that it was told to delete; some
        do. Raises `ViewDamaged`."""
        async with self.turn:
            await self.target.settle()
            if count and self._deleted:
                self._deleted = not await self.check_count()

    async def count_again(self) -> None:
        """Now and then, of a view that stands where its log ends. A database that was killed and started anew may hold
        other rows than before, and whoever writes nothing to it does not notice that it was away. Raises `ViewDamaged`;
        what the database raises where it is away now, so that it is opened, and counted, when it is back."""
        if self.target.atomic or not self.target.elsewhere or time.monotonic() < self._counted_at + COUNT_S:
            return
        async with self.turn:
            await self.check_count()

    async def close(self) -> None:
        async with self.turn:
            self._snapshot.close()
            await self.target.close()

    def _distrust(self, held: Position | None) -> str:
        with self.catalog.read() as connection:
            return log.distrust(connection, self.collection_id, held)

    def _head(self) -> log.Head:
        with self.catalog.read() as connection:
            return log.head(connection, self.collection_id)

    # --- from a snapshot ---------------------------------------------------------------------------------------------

    async def _copy_some(self) -> None:
        batch = await self._snapshot.take(self.after, self.upto, self.rows_per_s)
        began = time.monotonic()
        try:
            await self._write(batch.rows, (), None, new=self._fresh or self._snapshot.certain)
        except BaseException:
            self._snapshot.failed()
            self._fresh = False
            raise
        self._snapshot.wrote(batch, time.monotonic() - began)
        self.after = batch.reached
        self._copied += len(batch.rows)
        await asyncio.to_thread(self._save, build_after=self.after, error="")
        await TRAFFIC.give_way(time.monotonic() - began)

    async def _end_building(self) -> None:
        """The snapshot is copied: from here the view follows the tail of the log."""
        if self.upto:
            await self.target.end_bulk()  # before there is a position, after which nobody would call it again
        self._held = await self.target.position()
        if self._held is None:
            self._held = await asyncio.to_thread(self._snapshot_position)
            await self.target.apply(None, (), self._held, new=False)
        self.building = False
        # Rows of the snapshot that changed meanwhile come again as updates; new ones may have been in it already.
        head = await asyncio.to_thread(self._head)
        self._trust_new_after = 0 if self.upto == 0 and self._fresh else head.head

    def _snapshot_position(self) -> Position:
        with self.catalog.read() as connection:
            end = log.head(connection, self.collection_id)
            at = self.row.view.position
            stamp = log.stamp_at(connection, self.collection_id, at) or (end.stamp if at == end.head else "")
            return Position(end.epoch, at, stamp)

    # --- from the log ------------------------------------------------------------------------------------------------

    async def _apply_some(self) -> bool:
        found = await asyncio.to_thread(self._read_log)
        if found is None:
            return False
        held, keys, deletes, new = found
        if await self.target.position() != self._held:
            raise ViewDamaged(f"View {self.row.id} is not where it was left: its data has been exchanged.", _REBUILT)
        new = new and self.position >= self._trust_new_after
        try:
            for start in range(0, max(len(keys), 1), PIECE):
                piece = keys[start : start + PIECE]
                last = start + PIECE >= len(keys)
                loaded = await self._rows(piece)
                await self._write(loaded, deletes if start == 0 else (), held if last else None, new=new)
        except BaseException:
            self._trust_new_after = held.position  # part of this batch may be in the view now
            raise
        self.position, self._held = held.position, held
        await asyncio.to_thread(self._save, position=held.position, epoch=held.epoch, error="")
        self.error = ""
        self._on_position()
        return True

    def _read_log(self) -> tuple[Position, list[int], list[str], bool] | None:
        with self.catalog.read() as connection:
            end = log.commit_end(connection, self.collection_id, self.position, WINDOW)
            if end is None:
                return None
            if self.stage is not None and end[0] > self.stage.upto:
                end = log.commit_end(connection, self.collection_id, self.position, self.stage.upto - self.position)
                if end is None or end[0] > self.stage.upto:
                    return None
            upserts, deletes, new = rows.read_log(
                connection, self.collection_id, self.row.view.chunking_id, self.position, end[0]
            )
            epoch = log.head(connection, self.collection_id).epoch
        return Position(epoch, *end), [entry.chunk_id for entry in upserts], deletes, new

    async def _rows(self, keys: list[int]) -> rows.ChunkRows:
        """The chunks as they are now, each with its vector."""
        found, waiting = await asyncio.to_thread(self._load, keys)
        if waiting and self.stage is not None:
            # Behind the stage a chunk has no vector where it was changed since; and where the view's data is older than
            # the catalog says, and an erasure has swept away what was not in use meanwhile. It would be left out.
            await self.stage.fill(keys)
            found, _ = await asyncio.to_thread(self._load, keys)
        return found

    def _load(self, keys: list[int]) -> tuple[rows.ChunkRows, int]:
        with self.catalog.read() as connection:
            found, waiting, _ = rows.load_chunks(connection, keys, self.row.view.space_id)
        return found, waiting

    async def _write(
        self, found: rows.ChunkRows, deletes: Sequence[str], position: Position | None, *, new: bool
    ) -> None:
        """Write rows and deletions. A row that the database refuses is noted, and blocks nothing."""
        if self._rejected is None:
            self._rejected = await asyncio.to_thread(self._known_rejects)
        mended = self._rejected.intersection([*found.ids, *deletes]) if self._rejected else set()
        while True:
            try:
                await self.target.apply(found, deletes, position, new=new)
                self._deleted |= bool(deletes) and not self.target.atomic
                break
            except RowRefused as refused:
                if refused.row not in found.ids:
                    raise
                logger.warning("view %s: its database refuses the row %s", self.row.id, refused.row)
                mended.discard(refused.row)
                await asyncio.to_thread(self._reject, refused)
                self._rejected.add(refused.row)
                found = found.without(refused.row)
                new = False  # rows before it have been written
        self.written += len(found)
        if mended:
            await asyncio.to_thread(self._forget_rejects, mended)
            self._rejected -= mended

    def _known_rejects(self) -> set[str]:
        with self.catalog.read() as connection:
            return {one.chunk_id for one in moves.rejects(connection, self.row)}

    def _reject(self, refused: RowRefused) -> None:
        with self.catalog.write(fence=self._fence) as connection:
            moves.reject(connection, self.row.id, refused.row, refused.message)

    def _forget_rejects(self, ids: set[str]) -> None:
        with self.catalog.write(fence=self._fence) as connection:
            moves.forget_rejects(connection, self.row.id, sorted(ids))

    def _begin_anew(self) -> ViewRow:
        with self.catalog.write(fence=self._fence) as connection:
            return collections.begin_anew(connection, self.collection_id, self.row.id)

    def _save(self, **values: object) -> None:
        with self.catalog.write(fence=self._fence) as connection:
            collections.set_view(connection, self.row.id, **values)

    # --- checks ------------------------------------------------------------------------------------------------------

    async def check_count(self) -> bool:
        """Compare the number of rows with the catalog's; False where the two do not stand at one position. Raises
        `ViewDamaged` where they differ."""
        held = await self.target.count()
        self._counted_at = time.monotonic()
        expected, head = await asyncio.to_thread(self._expected)
        if head == self.position and held != expected:
            raise ViewDamaged(
                f"View {self.row.id} holds {held} rows where the catalog has {expected} at the same position.", _REBUILT
            )
        return head == self.position

    def _expected(self) -> tuple[int, int]:
        with self.catalog.read() as connection:
            head = log.head(connection, self.collection_id).head
            view = self.row.view
            expected = rows.count_chunks(connection, self.collection_id, view.chunking_id)
            if view.kind is ViewKind.STORE and view.space_id is not None:
                expected -= vectors.refusals(connection, view.space_id, self.collection_id, view.chunking_id)
            expected -= len(moves.rejects(connection, self.row))
            return expected, head

    async def progress(self) -> Progress:
        head = await asyncio.to_thread(self._head)
        copying = self.building and self.after < self.upto
        return Progress(self.position, head.head, copying, self.upto - self.after if copying else 0)


_REBUILT = "The catalog holds everything: the owner builds the view again by itself; `whimbrel status` shows how far."

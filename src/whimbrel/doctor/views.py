"""Checks of the views: is each there, whole, of this history, and does it follow?"""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from whimbrel.adopt.sameness import Watch
from whimbrel.catalog import collections, log, rows, vectors
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.doctor.findings import Finding, Level
from whimbrel.doctor.mending import Mender
from whimbrel.doctor.record import Opened
from whimbrel.domain import Position, ViewKind, ViewState
from whimbrel.errors import ViewDamaged, WhimbrelError
from whimbrel.lexicon.integrity import damaged_files
from whimbrel.lexicon.language import language_of
from whimbrel.lexicon.tantivy import TantivyLexicon
from whimbrel.models.embedders.resolve import resolve_embedder
from whimbrel.models.embedders.unknown import UNKNOWN
from whimbrel.owner.lending import borrowed, store_of
from whimbrel.stores.base import Reach

MOVING_S = 1.5
"""How long a view that lags is watched for whether it moves."""
_OURS = re.compile(r"c\d+-v\d+-[0-9a-f]{6}")
_NOTHING_LOST = "Nothing is lost: the catalog holds everything."


@dataclass(frozen=True, slots=True)
class _Held:
    """What a view's data says of itself."""

    position: Position | None
    count: int
    still: bool
    """Nobody moved it while it was counted."""


def live(opened: Opened, mender: Mender) -> Iterator[Finding]:
    """Each collection has a view of each kind that searches can read."""
    with opened.catalog.read() as connection:
        for collection in collections.every(connection):
            store, lexicon = collections.live_views(connection, collection)
            for kind, row in (("store", store), ("lexicon", lexicon)):
                if row is None and collection.head > 0:
                    yield Finding(
                        "live",
                        Level.WARNING,
                        f"Collection {collection.name!r} has no live {kind} view.",
                        f"It is being built, or waits for an owner. {_NOTHING_LOST}",
                        "`whimbrel serve` or `whimbrel owner` builds it.",
                        mend=mender.catching_up(collection.name),
                    )


def sound(opened: Opened, mender: Mender) -> Iterator[Finding]:
    """Is the data of each view there, readable, of this log, and as many rows as the catalog has?"""
    for collection, row in _followed(opened):
        if row.view.state is ViewState.BUILDING:
            continue
        name = f"View {row.id} ({row.view.kind} of {collection.name!r})"
        try:
            wrong = asyncio.run(_wrong(opened, collection, row))
        except ViewDamaged as error:
            wrong = error.message
        except WhimbrelError as error:
            said = f"{name} cannot be examined: {error.message}"
            yield Finding("sound", Level.PROBLEM, said, _NOTHING_LOST, error.hint)
            continue
        wrong = wrong or (f"a search found it damaged: {row.suspect}" if row.suspect else "")
        if wrong:
            yield Finding(
                "sound",
                Level.PROBLEM,
                f"{name} is damaged: {wrong.rstrip('.')}.",
                _NOTHING_LOST,
                "The next owner builds it anew; `whimbrel doctor --fix` does it now.",
                mend=mender.rebuilding(collection.name, row.id, wrong),
            )
        elif row.view.error:
            yield Finding("sound", Level.WARNING, f"{name} says: {row.view.error}", _NOTHING_LOST)


async def _wrong(opened: Opened, collection: Collection, row: ViewRow) -> str:
    """Why the view's data cannot be trusted; empty if it can."""
    held = await (_store if row.view.kind is ViewKind.STORE else _lexicon)(opened, collection, row)
    if held is None:
        return "its data is missing"
    with opened.catalog.read() as connection:
        doubt = log.distrust(connection, collection.id, held.position)
        if doubt:
            return doubt
        view = row.view
        expected = rows.count_chunks(connection, collection.id, view.chunking_id)
        if view.kind is ViewKind.STORE and view.space_id is not None:
            expected -= vectors.refusals(connection, view.space_id, collection.id, view.chunking_id)
        head = log.head(connection, collection.id).head
    # Beside a writing owner the two counts mean the same only where the view stood at the head before and after.
    at_rest = held.still and held.position is not None and held.position.position == head
    if at_rest and held.count != expected:
        return f"it holds {held.count} rows where the catalog has {expected}"
    return ""


async def _store(opened: Opened, _collection: Collection, row: ViewRow) -> _Held | None:
    store = store_of(row, opened.catalog, opened.settings, opened.home, read_only=True)
    store = borrowed(store, row.id, opened.home, opened.catalog)
    try:
        if not await store.exists():
            return None
        before = await store.position()
        count = 0  # by reading every row: the database's own count comes from its manifest, and misses damaged files
        async for records in store.scan():
            count += len(records)
        return _Held(before, count, still=before == await store.position())
    finally:
        await store.close()


async def _lexicon(opened: Opened, collection: Collection, row: ViewRow) -> _Held | None:
    path = opened.home.lexicons / row.view.name
    if not TantivyLexicon.exists(path):
        return None
    lexicon = TantivyLexicon.open(path, language=language_of(row.view.uri, collection.language))
    try:
        before = lexicon.position()
        count = lexicon.count()
        still = before == lexicon.position()
        if names := damaged_files(path):
            raise ViewDamaged(f"files of it have changed: {', '.join(names)}")
        return _Held(before, count, still=still)
    finally:
        lexicon.close()


def following(opened: Opened, mender: Mender) -> Iterator[Finding]:
    """A view that lags should move, if somebody owns the home."""
    behind = {row.id: (collection, row) for collection, row in _followed(opened) if _lag(collection, row)}
    if not behind:
        return
    with opened.catalog.read() as connection:
        alive = opened.owner(connection)
    if alive is not None:
        time.sleep(MOVING_S)
    after = {row.id: row for _, row in _followed(opened)}
    for key, (collection, row) in behind.items():
        name = f"View {key} ({row.view.kind} of {collection.name!r})"
        said = f"{name} is {_lag(collection, row):,} changes behind"
        if alive is None:
            yield Finding(
                "following",
                Level.WARNING,
                f"{said}, and nobody owns the home.",
                _NOTHING_LOST,
                "`whimbrel serve` or `whimbrel owner` brings it up to date.",
                mend=mender.catching_up(collection.name),
            )
        elif key in after and _stand(after[key]) == _stand(row):
            why = row.view.error or "Its next batch may be a long one: embedding takes its time."
            yield Finding("following", Level.WARNING, f"{said}, and did not move in {MOVING_S} s.", why, "Look again.")
        else:
            yield Finding("following", Level.NOTE, f"{said}, and is catching up.")


def models(opened: Opened, _mender: Mender) -> Iterator[Finding]:
    """Is the model of each space that is searched the one that made its vectors?"""
    with opened.catalog.read() as connection:
        used = {row.view.space_id for _, row in _followed(opened) if row.view.space_id is not None}
        spaces = [vectors.read_space(connection, key) for key in sorted(used)]
    for space, spec in spaces:
        if spec == UNKNOWN:  # adopted without it: searches say so
            continue
        embedder = resolve_embedder(spec, threads=1)
        same = embedder.space.key == space.key
        asyncio.run(embedder.close())
        if not same:
            yield Finding(
                "models",
                Level.PROBLEM,
                f"{spec!r} is not the model any more that made the vectors ({space.model}, {space.revision[:12]}).",
                "Two vectors of different models cannot be compared, so search by meaning is refused.",
                "Install the model that made them; search by words goes on.",
            )


def adopted(opened: Opened, _mender: Mender) -> Iterator[Finding]:
    """Is each database that was adopted still there, and still what it was?"""
    watch = Watch(
        opened.catalog,
        opened.home.path,
        opened.home.adopted,
        Reach(*opened.settings.stores.reach),
        opened.settings.configured_stores(),
    )
    for adoption, drift in asyncio.run(watch.drifts()):
        if drift:
            yield Finding(
                "adopted",
                Level.WARNING,
                f"View {adoption.view_id} ({adoption.source['uri']}): {drift['said']}.",
                "Rows that are new there are not found; what is gone is found by words alone.",
                "Adopt it again; or move the collection to a store of its own: `whimbrel move start`.",
            )


def orphans(opened: Opened, _mender: Mender) -> Iterator[Finding]:
    """Data of views that no row names."""
    # The folders first: a view's row is made before its data, and goes after it.
    found = [*_data(opened.home.lexicons, ""), *_data(opened.home.views, ".lance")]
    with opened.catalog.read() as connection:
        known = {row.view.name for row in collections.views(connection)}
        filled = bool(collections.every(connection))
    for path in found:
        if path.name.removesuffix(".lance") in known:
            continue
        yield Finding(
            "orphans",
            Level.WARNING,
            f"{path} belongs to no view.",
            "A restore, another catalog's file, or a killed process has left it. Nothing reads it."
            if filled
            else "The catalog is empty: perhaps it is not the one that these views follow.",
            "Remove it." if filled else "Check WHIMBREL_CATALOG and DATABASE_URL before removing anything.",
            mend=_removing(path, opened) if filled else None,
        )


def _data(folder: Path, suffix: str) -> list[Path]:
    """What Whimbrel made there, by its name; anything else is not ours to judge."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and path.name.endswith(suffix) and _OURS.fullmatch(path.name.removesuffix(suffix))
    )


def _removing(path: Path, opened: Opened) -> Callable[[], None]:
    return lambda: shutil.rmtree(path) if path.parent in (opened.home.views, opened.home.lexicons) else None


def _followed(opened: Opened) -> list[tuple[Collection, ViewRow]]:
    with opened.catalog.read() as connection:
        return [
            (collection, row)
            for collection in collections.every(connection)
            for row in collections.fed(collections.views(connection, collection.id))
        ]


def _lag(collection: Collection, row: ViewRow) -> int:
    return collection.head - row.view.position


def _stand(row: ViewRow) -> tuple[int, int]:
    return row.view.position, row.build_after


CHECKS: tuple[Callable[[Opened, Mender], Iterator[Finding]], ...] = (live, sound, following, models, adopted, orphans)

"""Looking into databases of other programs, and adopting them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from whimbrel.adopt import fields as naming
from whimbrel.adopt import fitting, grouping
from whimbrel.adopt.fields import Fields, Wished
from whimbrel.adopt.fitting import Fit
from whimbrel.adopt.inspecting import look_into
from whimbrel.adopt.opening import REACH, Place, opened, place_of, scratch_of
from whimbrel.catalog import adoptions, collections, compatible, jobs, moves, vectors
from whimbrel.catalog.adoptions import Adoption
from whimbrel.catalog.compatible import CompatibleState
from whimbrel.domain import Job, Space, hash_id
from whimbrel.errors import BadInput, CollectionNotFound, Conflict
from whimbrel.home import host_name
from whimbrel.ingest.chunk import Chunking
from whimbrel.lexicon.language import AUTO, checked
from whimbrel.models.embedders.base import Embedder
from whimbrel.models.embedders.unknown import UNKNOWN
from whimbrel.service.compatible import CompatibleSpaces
from whimbrel.service.jobs import Progress
from whimbrel.stores.foreign.base import Chosen, Database, Rows, Source, Table, VectorKind
from whimbrel.stores.metrics import Metric

FIRST, SPREAD = 200, 200
"""Rows of the sample: the first, and others from all over what is listed first."""
_UNIT = 1e-3


@dataclass(frozen=True, slots=True)
class Begun:
    """An adoption that the owner is about to do."""

    job: Job
    adoption: Adoption
    embedder: str
    """What serves its vectors now; `none`: no model does, and it is searched by words."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was found before anything was written."""

    place: Place
    table: Table
    fields: Fields
    fit: Fit | None
    embedder: str
    model: Embedder | None
    normalised: bool
    indexed: bool
    served: str
    scratch: str
    rows: int
    """0: not counted."""


class Adopting(CompatibleSpaces):
    """What takes other programs' databases in."""

    def inspect(self, uri: str) -> dict[str, Any]:
        """What is in a database: `{"store", "collections": [{"name", "count", "dimensions", "metric", "vectors",
        "fields"}]}`. It is not written to. `uri`: of the database, or of one collection.

        Raises `ConfigError`, `NotFound`, `AlreadyOwned` where a program has the folder open, `StoreUnavailable`.
        """
        return look_into(uri, self.home, Path.cwd())

    def adopt(
        self,
        uri: str,
        collection: str,
        *,
        embedder: str | None = None,
        text_field: str = "",
        id_field: str = "",
        title_field: str = "",
        uri_field: str = "",
        document_field: str = "",
        vector_field: str = "",
        metric: str | None = None,
        language: str = AUTO,
        wait: str = "all",
        on_progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Take a collection of another program's database in, with its vectors. Returns what became of its rows, what
        its fields were taken for, and how its vectors compare with the embedder's. See `start_adopt`; `wait` is that of
        `ingest`."""
        begun = self.start_adopt(
            uri,
            collection,
            embedder=embedder,
            text_field=text_field,
            id_field=id_field,
            title_field=title_field,
            uri_field=uri_field,
            document_field=document_field,
            vector_field=vector_field,
            metric=metric,
            language=language,
        )
        done = self.finish(begun.job, wait=wait, on_progress=on_progress)
        return {**described(begun), **done, "collection": collection}

    def start_adopt(
        self,
        uri: str,
        collection: str,
        *,
        embedder: str | None = None,
        text_field: str = "",
        id_field: str = "",
        title_field: str = "",
        uri_field: str = "",
        document_field: str = "",
        vector_field: str = "",
        metric: str | None = None,
        language: str = AUTO,
    ) -> Begun:
        """Make the collection, which searches the database where it is from now on, and enqueue the job that takes its
        rows into the catalog. A collection that was adopted from there before takes what is new there.

        `uri`: DATABASE_URI/COLLECTION. `embedder`: the `provider:model` that made the vectors, the configured one
        unless given: it embeds a sample again, and is refused where it does not fit. `none`: the model is not here;
        the collection is searched by words. Taking what is new changes no model. The fields are keys of the rows'
        metadata, guessed unless given: of the text, the title, the source's URI, and the id of the document that rows
        belong to. `id_field`, `vector_field`, `metric`: of a database with columns, where it does not say them itself.

        Raises `ConfigError`; `NotFound`; `BadInput` for a collection without rows or text; `SpaceMismatch` for an
        embedder that does not fit; `AlreadyOwned` where a program has the folder open; `Conflict` for a collection of
        that name which is another, or is served by another embedder; what the database raises. Nothing was made then.
        """
        chosen = Chosen(id_field, "", vector_field, Metric(metric) if metric else None)
        wished = Wished(text_field, title_field, uri_field, document_field)
        spec = (embedder or self.settings.embedder).strip()
        collections.check_name(collection)
        place = place_of(uri, Path.cwd(), self.settings.configured_stores())
        before = self._before(collection, place)
        if before is not None:
            return self._again(before, collection, embedder)
        seen = asyncio.run(self._look(place, chosen, wished, spec))
        source = _source(seen, chosen)
        with self.catalog.write() as connection:
            found = collections.create(connection, collection, checked(language))
            space = self._space(seen, found.name, place.uri)
            space_id = vectors.space_id(connection, space, spec)
            if seen.fit is not None and not seen.fit.same and compatible.serving(connection, space_id) is None:
                assert seen.model is not None
                declared = compatible.declare(
                    connection, space_id, collection, spec, seen.model.space, seen.fit.as_dict()
                )
                compatible.change(connection, declared, CompatibleState.FINALISED)
            adoption = adoptions.begin(
                connection,
                found,
                uri=place.uri,
                space_id=space_id,
                chunking_id=collections.chunking_id(connection, self._cut(space)),
                source=source,
                fields=seen.fields.as_dict(),
                checks=seen.fit.as_dict() if seen.fit is not None else {},
            )
            job = _enqueue(connection, adoption, collection)
        self._wake()
        return Begun(job, adoption, spec)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _before(self, collection: str, place: Place) -> Adoption | None:
        """What was adopted from there under that name. Raises `Conflict` where the name is taken by another."""
        with self.catalog.read() as connection:
            try:
                found = collections.find(connection, collection)
            except CollectionNotFound:
                return None
            before = adoptions.find(connection, found.id)
            going = [
                one for one in moves.listing(connection, under_way=True, limit=None) if one.collection == collection
            ]
        if before is None or before.source["uri"] != place.uri or found.store_view_id != before.view_id:
            raise Conflict(
                f"There is a collection {collection!r} already, which is not that database as it was adopted. Nothing "
                "was changed.",
                "Adopt it under another name: `-c NAME`.",
            )
        if going:
            raise Conflict(
                f"The collection {collection!r} is being moved: move {going[0].id} is {going[0].state}. Nothing was "
                "changed.",
                "End that one first: `whimbrel move finalise`, or `move abort`.",
            )
        return before

    def _again(self, before: Adoption, collection: str, asked: str | None) -> Begun:
        first = str(before.source["embedder"])
        with self.catalog.write() as connection:
            space = collections.view(connection, before.view_id).view.space_id
            declared = compatible.serving(connection, space) if space is not None else None
            now = declared.embedder if declared is not None else first
            if asked is not None and asked.strip() not in (first, now):
                raise _another_model(collection, first, now, asked.strip())
            active = jobs.listing(connection, active=True, limit=1_000)
            going = next((one for one in active if one.kind == "adopt" and one.args["view"] == before.view_id), None)
            job = going or _enqueue(connection, before, collection)
        self._wake()
        return Begun(job, before, now)

    async def _look(self, place: Place, chosen: Chosen, wished: Wished, spec: str) -> _Seen:
        scratch = await asyncio.to_thread(scratch_of, place.address, place.bare, Path.cwd(), self.home.adopted)
        shown = f"The collection {place.address.collection!r}"
        async with opened(place.address, chosen, base=Path.cwd(), scratch=scratch, reach=REACH) as (database, source):
            if wished.text:  # a column, or a key of the metadata
                source, wished = await _with_text_column(database, place, chosen, wished, source)
            table = await source.describe()
            _check_vectors(table, shown)
            model = None
            if spec != UNKNOWN:
                model = await asyncio.to_thread(self.embedder, spec)
                fitting.check_dimensions(table.dimensions, model, spec, shown)
            sample, rows = await _sample(source)
            if not len(sample):
                raise BadInput(
                    f"{shown} has no row with a vector of {table.dimensions:,} dimensions. Nothing was adopted.",
                    "There is nothing to adopt yet.",
                )
            found = naming.guess(sample, wished, shown, table.names.id)
            fit = await _fit(model, spec, sample, table, found, shown) if model is not None else None
            lengths = np.linalg.norm(sample.vectors, axis=1)
            copied = database.copied
            return _Seen(
                place,
                table,
                found,
                fit,
                spec,
                model,
                normalised=bool(np.all(np.abs(lengths - 1.0) <= _UNIT)),
                indexed=source.indexed,
                served=f"{place.address.scheme}:{copied}" if copied is not None else "",
                scratch=scratch.name,
                rows=rows,
            )

    def _space(self, seen: _Seen, collection: str, uri: str) -> Space:
        """The space of its vectors: the embedder's own where it makes the same, else one of their own."""
        dimensions = seen.table.dimensions
        if seen.model is None:
            limit = self.embedder().space.max_tokens
            return Space("unknown", hash_id(uri)[:16], dimensions, "", seen.normalised, numeric="", max_tokens=limit)
        if seen.fit is not None and seen.fit.same:
            return seen.model.space
        return replace(seen.model.space, revision=f"adopted {hash_id(uri)[:16]}", numeric="adopted")

    def _cut(self, space: Space) -> str:
        tokens = min(self.settings.chunking.tokens, space.max_tokens)
        return Chunking(tokens, min(self.settings.chunking.overlap, tokens // 2), adopted=1).spec


def _another_model(collection: str, first: str, now: str, asked: str) -> Conflict:
    since = f", and {now!r} serves it now" if now != first else ""
    said = f"The collection {collection!r} was adopted with `--embedder {first}`{since}."
    hint = (
        f"`whimbrel move start {collection} --embedder {asked} --compatible` measures whether that model fits the "
        "vectors that there are; without --compatible it embeds the texts anew."
    )
    return Conflict(
        f"{said} Adopting it again takes in what is new, and changes no model. Nothing was changed.",
        "Leave `--embedder` out." if asked == UNKNOWN else hint,
    )


def described(begun: Begun) -> dict[str, Any]:
    """What is told of an adoption, as JSON."""
    adoption = begun.adoption
    source = adoption.source
    said = {key: source[key] for key in ("uri", "dimensions", "metric", "notes")}
    return {
        **said,
        "embedder": begun.embedder,
        "served_from": source["served"] or source["place"],
        "fields": dict(adoption.fields),
        "fit": dict(adoption.checks),
    }


def _enqueue(connection: Any, adoption: Adoption, collection: str) -> Job:
    job, _ = jobs.enqueue(
        connection,
        "adopt",
        collection_id=adoption.collection_id,
        collection=collection,
        args={"view": adoption.view_id, "collection_id": adoption.collection_id},
        host=host_name(),
    )
    return job


def _source(seen: _Seen, chosen: Chosen) -> dict[str, Any]:
    table, place = seen.table, seen.place
    text = "" if seen.fields.text != naming.OWN else (table.names.text if table.declared and table.has_text else "")
    notes = [*table.notes, *(f"the vectors {name!r} are left out" for name in sorted(table.vectors))]
    if seen.served:
        notes.append(
            "its files were copied, and the copy is searched: what its program writes from now on is not seen; run "
            "`whimbrel adopt` again for it"
        )
    elif place.single_process and seen.indexed:
        notes.append("its folder is open here now: the program that made it cannot open it meanwhile")
    return {
        "uri": place.uri,
        "scheme": place.address.scheme,
        "place": place.bare,
        "served": seen.served,
        "scratch": seen.scratch,
        "collection": place.address.collection,
        "chosen": {
            "id": chosen.id,
            "text": text,
            "vector": chosen.vector,
            "metric": chosen.metric.value if chosen.metric else None,
        },
        "metric": table.metric.value if table.metric else None,
        "dimensions": table.dimensions,
        "ids": table.ids.value,
        "identity": table.identity,
        "normalised": seen.normalised,
        "single_process": place.single_process,
        "indexed": seen.indexed,
        "embedder": seen.embedder,
        "rows": seen.rows,
        "notes": notes,
    }


async def _with_text_column(
    database: Database, place: Place, chosen: Chosen, wished: Wished, source: Source
) -> tuple[Source, Wished]:
    """A text field that is a column of its own: the database is told so."""
    table = await source.describe()
    if not table.declared or wished.text == table.names.text:
        return source, replace(wished, text="") if wished.text == table.names.text else wished
    if wished.text not in table.fields:
        return source, wished
    await source.close()
    named = database.source(place.address.collection, replace(chosen, text=wished.text))
    return named, replace(wished, text="")


def _check_vectors(table: Table, shown: str) -> None:
    """Raises `BadInput` where rows have several vectors that could be searched and none is named, or have none."""
    dense = [name for name, one in table.vectors.items() if one.kind is VectorKind.DENSE]
    if table.dimensions and dense:
        names = ", ".join(repr(name) for name in sorted([table.main, *dense]))
        raise BadInput(
            f"{shown} has several vectors: {names}. Nothing was adopted.",
            "Name the one that is searched: `--vector-field NAME`.",
        )
    if not table.dimensions and table.vectors:
        kinds = ", ".join(f"{name!r} ({one.kind.value})" for name, one in sorted(table.vectors.items()))
        raise BadInput(
            f"{shown} has no vector of one part, which a question could be compared with, only {kinds}. Nothing was "
            "adopted.",
            "`whimbrel copy` takes it with all of them to Qdrant, LanceDB or Parquet.",
        )
    if not table.dimensions:
        raise BadInput(f"{shown} has no row with a vector. Nothing was adopted.", "There is nothing to adopt yet.")


async def _sample(source: Source) -> tuple[Rows, int]:
    """Rows from the beginning, and from all over what is listed first; and how many rows there are, where that is all
    that there is."""
    ids: list[Any] = []
    more = False
    async for some in source.ids():
        if ids:
            more = True
            break
        ids = list(some)
    step = max(1, (len(ids) - FIRST) // SPREAD)
    places = [*range(min(FIRST, len(ids))), *range(FIRST, len(ids), step)][: FIRST + SPREAD]
    unique = list({ids[place]: place for place in places}.values())
    if not unique:
        return Rows.none(0), 0
    rows = (await source.fetch([ids[place] for place in unique], unique)).rows
    order = {ids[place]: number for number, place in enumerate(unique)}
    sorted_rows = sorted(range(len(rows)), key=lambda row: order.get(rows.ids[row], 0))
    return rows.taken(sorted_rows), 0 if more else len(ids)


async def _fit(model: Embedder, spec: str, sample: Rows, table: Table, fields: Fields, shown: str) -> Fit:
    """From all over the sample."""
    rows = grouping.read_rows(sample, table.ids, fields, "", grouping.Looked())
    step = max(1, len(rows) // (2 * fitting.SAMPLE))
    some: Sequence[grouping.Row] = rows[::step]
    given = np.array([row.vector for row in some], np.float32).reshape(len(some), -1)
    texts, titles = [row.text for row in some], [row.title for row in some]
    held = [row.metadata for row in some]
    others = {name: [str(one.get(name) or "") for one in held] for name in naming.long_fields(held)[:8]}
    return await fitting.check(model, spec, texts, titles, given, shown, others)

"""A whole copy: one collection or all of them, each with its own state, target and report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from whimbrel.errors import (
    AlreadyOwned,
    BadInput,
    Conflict,
    DiskFull,
    HomeError,
    NotFound,
    StoreUnavailable,
    UserError,
    ViewDamaged,
    ViewError,
    WhimbrelError,
)
from whimbrel.move.copy.copier import Copier, Options, Step, mark_of, patiently, sample, with_sample
from whimbrel.move.copy.report import CopyFailure, CopyReport, Told
from whimbrel.move.copy.state import State
from whimbrel.stores.base import Reach
from whimbrel.stores.foreign.base import Database, Sink, Source, Table
from whimbrel.stores.foreign.resolve import ALL, Address, open_database
from whimbrel.stores.metrics import Metric

REACH = Reach(timeout_s=120.0)
_RESUME = "What was copied is safe: the same command with --resume goes on."
_OF_ALL = (StoreUnavailable, HomeError, AlreadyOwned)
"""What the next collection would meet too."""
_DAMAGED = (
    "The source was not touched. If the target is damaged, drop it: the same command then makes it again. If the "
    "source is, restore it."
)


async def copy_all(
    source: Address,
    target: Address,
    options: Options,
    *,
    base: Path,
    states: Path,
    on_step: Step = lambda what, done, total: None,
    on_report: Callable[[Told], None] = lambda report: None,
) -> list[Told]:
    """Every collection that `source` names, in the order of the names, each reported when it is done.

    `base`: of relative paths. `states`: the folder in which each copy has a folder of its own. Raises what the
    databases raise; `Conflict` for a target that is there and is not this copy's, that is the source, or where a copy
    was begun and `resume` was not asked for; `NotFound`; `BadInput`. Where all collections are meant, what keeps one
    of them from going is in its report, and the others go.
    """
    _check_names(source, target)
    if source.bare(base) == target.bare(base) and source.collection == target.collection:
        raise Conflict("The target is the source. Nothing was changed.", "Name another database or collection.")
    folder = states / _hash(source.bare(base), source.collection, target.bare(base), target.collection)
    scratch = folder / "snapshot"
    here = open_database(source, base=base, scratch=scratch, reach=REACH)
    there = open_database(target, base=base, scratch=None, reach=REACH)
    told: dict[str, Told] = {}
    try:
        every = source.collection == ALL
        names = await patiently(here.collections, _few(options)) if every else [source.collection]
        if not names:
            raise NotFound(
                f"There is no collection with vectors in {here.shown}. Nothing was copied.",
                "There is nothing to copy; if there should be, check the address.",
            )
        ways = {
            name: (
                replace(source, collection=name),
                replace(target, collection=name if target.collection == ALL else target.collection),
            )
            for name in names
        }

        def tell(name: str, found: CopyReport | WhimbrelError) -> None:
            at, to = ways[name]
            told[name] = CopyFailure(at.shown, to.shown, found) if isinstance(found, WhimbrelError) else found
            on_report(told[name])

        if every and here.describes_quickly:
            for name, way in ways.items():
                wrong = await _wrong(here, there, way, options)
                if wrong is not None:
                    tell(name, _of_one(wrong))
        over: WhimbrelError | None = None
        for name, way in ways.items():
            if name in told:
                continue
            if over is not None:
                tell(name, type(over)(f"Not tried, for what befell the one before: {over.message}", over.hint))
                continue
            try:
                place = folder / _hash(name) if every else folder
                tell(name, await _copy_one((here, way[0]), (there, way[1]), options, place, base, on_step))
            except WhimbrelError as error:
                if not every:
                    raise
                over = error if isinstance(error, _OF_ALL) else None
                tell(name, _of_one(error))
    except UserError:  # there is nothing to go on with
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    finally:
        await here.close()
        await there.close()
    reports = [told[name] for name in names]
    if not any(isinstance(one, CopyFailure) and not isinstance(one.error, UserError) for one in reports):
        shutil.rmtree(scratch, ignore_errors=True)
    return reports


async def _wrong(here: Database, there: Database, way: tuple[Address, Address], options: Options) -> UserError | None:
    """Why a collection cannot go, as far as that can be told before the others are copied."""
    reader, sink = here.source(way[0].collection, options.chosen), there.sink(way[1].collection)
    try:
        _check(await reader.describe(), sink)
        await sink.mark()
    except UserError as error:
        return error
    except WhimbrelError:  # told when it is its turn
        return None
    finally:
        await reader.close()
        await sink.close()
    return None


def _of_one(error: WhimbrelError) -> WhimbrelError:
    """As it is said of one collection where others were copied."""
    for said in ("copied", "changed"):
        error.message = error.message.replace(f"Nothing was {said}", f"Nothing of it was {said}")
    return error


async def _copy_one(
    source: tuple[Database, Address],
    target: tuple[Database, Address],
    options: Options,
    folder: Path,
    base: Path,
    on_step: Step,
) -> CopyReport:
    reader = source[0].source(source[1].collection, options.chosen)
    sink = target[0].sink(target[1].collection)
    try:
        table = await patiently(reader.describe, _few(options))
        state = State(folder)
        state.kind = table.ids
        try:
            table = await patiently(
                lambda: _begin(reader, sink, table, (source[1], target[1]), state, options, base), _few(options)
            )
            copier = Copier(reader, sink, table, state, options, on_step)
            return await copier.run(source[1].shown, target[1].shown)
        except WhimbrelError as error:
            state.write_rejects()
            if isinstance(error, ViewDamaged):
                error.hint = _DAMAGED
            elif isinstance(error, ViewError | DiskFull) and _is_begun(state):
                error.hint = f"{error.hint} {_RESUME}".strip()
            raise
        finally:
            state.close()
    finally:
        await reader.close()
        await sink.close()


async def _begin(
    reader: Source,
    sink: Sink,
    table: Table,
    names: tuple[Address, Address],
    state: State,
    options: Options,
    base: Path,
) -> Table:
    """The table as the sink takes it, which is made, or found to be this copy's own."""
    _check(table, sink)
    copy = _hash(names[0].bare(base), names[0].collection, names[1].bare(base), names[1].collection, table.identity)
    if state.get("copy") not in ("", copy):
        raise Conflict(
            f"{names[0].shown} is another collection, or has other columns, than when this copy was begun. Nothing was "
            "changed.",
            f"Drop the target and the folder {state.folder}, then copy anew; or name another target.",
        )
    begun = _is_begun(state)
    found = await sink.mark()
    if found is not None and found.copy != copy:
        raise Conflict(
            f"{names[1].shown} was made by another copy. Nothing was changed.", "Name another target, or drop that one."
        )
    if begun and found is not None and not options.resume:
        raise Conflict(
            f"A copy to {names[1].shown} was begun and did not end. Nothing was changed.",
            "Go on with it: the same command with --resume.",
        )
    if found is not None:
        table = _of_one_metric(found.metric, table, names[1], options)
    mark = mark_of(copy, table)
    if found is None:
        if not table.declared:
            table = with_sample(table, await sample(reader, several=bool(table.vectors)))
        state.forget_written()
        state.put(copy=copy, phase="")
        await sink.create(table, mark)
    else:
        if not state.get("copy"):  # its state was lost: what is there is this copy's, but not known
            state.distrust()
            state.put(copy=copy)
        await sink.open(table, mark)
    return table


def _of_one_metric(made: Metric | None, table: Table, target: Address, options: Options) -> Table:
    """The table with the metric that the copy was `made` with. Raises `Conflict` where another one is meant now."""
    if table.metric == made:
        return table
    if table.metric is not None and (made is not None or options.chosen.metric is not None):
        again = f"with `--metric {made}`" if made else "without `--metric`"
        go_on = f"Go on as before: {again}. " if options.chosen.metric is not None else ""
        raise Conflict(
            f"The copy {target.shown} was made with {f'the metric {made}' if made else 'no metric'}, not with "
            f"{table.metric}. Nothing was changed.",
            f"{go_on}For {table.metric}, name another target, or drop that one and copy anew.",
        )
    if table.metric is not None:
        said = f"the source says its metric now, {table.metric}; this copy was made when it said none, and says none"
        table = replace(table, notes=[*table.notes, said])
    return replace(table, metric=made)


def _check(table: Table, sink: Sink) -> None:
    limits = sink.limits
    if not limits.several:
        table.check_single()
    if not table.dimensions and not table.vectors:
        raise BadInput(
            f"The collection {table.name!r} has no row with a vector, so that its dimensions are not known. Nothing "
            "was copied.",
            "There is nothing to copy yet.",
        )
    if limits.max_dimensions is not None and table.dimensions > limits.max_dimensions:
        raise BadInput(
            f"The target holds vectors of up to {limits.max_dimensions:,} dimensions; {table.name!r} has "
            f"{table.dimensions:,}. Nothing was copied.",
            "Name another kind of target.",
        )
    if limits.needs_metric and table.metric is None:
        raise BadInput(
            f"A collection of the target has a metric, and {table.name!r} says none. Nothing was copied.",
            "Name the one that its vectors were made for: `--metric cosine`, `dot` or `l2`.",
        )


def _few(options: Options) -> Sequence[float]:
    """Waits before anything has been copied: a busy server is given some time, one that is not there is said soon."""
    return options.retries_s[:2]


def _is_begun(state: State) -> bool:
    return state.get("phase") not in ("", "copied")


def _check_names(source: Address, target: Address) -> None:
    if source.collection == ALL and target.collection != ALL:
        raise BadInput("All collections cannot go into one. Nothing was copied.", "Let the target end in `/*` too.")


def _hash(*parts: str) -> str:
    return blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()

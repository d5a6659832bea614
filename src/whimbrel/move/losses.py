"""What a target cannot hold, or does otherwise than the source: the loss report of a plan."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from whimbrel.catalog import adoptions
from whimbrel.catalog.longer import Longer
from whimbrel.domain import Space
from whimbrel.filters.grammar import OPERATORS
from whimbrel.ingest.chunk import Chunking
from whimbrel.move.trial import TOLERANCE
from whimbrel.move.wish import Wish
from whimbrel.stores.base import StoreInfo

BIT_FOR_BIT, TWO_WRITERS = "vectors kept bit for bit", "two processes that write at once"
"""Of what stores say that they cannot do."""
NAMED = 10
"""Documents that are named."""


@dataclass(frozen=True, slots=True)
class Loss:
    what: str
    """A word for programs: `dimensions`, `metric`, `vectors`, `filters`, `processes`, `batches`, `cannot`, `rows`,
    `texts`, `model`."""
    said: str
    stops: bool = False
    """The move would not begin, or not become ready, as things are."""


def of_store(wish: Wish, source: StoreInfo, target: StoreInfo) -> list[Loss]:
    """From what both stores say of themselves; nothing is asked of their databases."""
    found = [
        *_dimensions(wish, target),
        *_metric(source, target),
        *_vectors(wish.space, source, target),
        *_filters(source, target),
        *_processes(source, target),
        *_batches(target),
    ]
    kind = wish.source_kind if adoptions.is_frozen(wish.store) else source
    return found + _cannot(kind, target, said={one.what for one in found})


def _cannot(source: StoreInfo | None, target: StoreInfo, said: Collection[str]) -> list[Loss]:
    """What could be had of the source, as far as that is known, and cannot of the target; but for what is `said`."""
    had_not = {_what(one) for one in source.cannot} if source is not None else set()
    if source is not None and source.single_process:
        had_not.add(TWO_WRITERS)
    if "vectors" in said:
        had_not.add(BIT_FOR_BIT)
    return [
        Loss("cannot", f"Not possible with {target.name}: {_explained(one)}.")
        for one in target.cannot
        if _what(one) not in had_not
    ]


def _what(said: str) -> str:
    return said.partition(": ")[0]


def _explained(said: str) -> str:
    what, _, why = said.partition(": ")
    return f"{what} ({why})" if why else what


def _dimensions(wish: Wish, target: StoreInfo) -> list[Loss]:
    most = target.max_dimensions
    if most is None or wish.space.dimensions <= most:
        return []
    said = f"{target.name} holds vectors of up to {most:,} dimensions; {wish.request.embedder!r} makes "
    return [Loss("dimensions", f"{said}{wish.space.dimensions:,}.", stops=True)]


def _metric(source: StoreInfo, target: StoreInfo) -> list[Loss]:
    if source.metric is target.metric:
        return []
    return [Loss("metric", f"Searches measure {target.metric} instead of {source.metric}; scores stay 0..1.")]


def _vectors(space: Space, source: StoreInfo, target: StoreInfo) -> list[Loss]:
    if target.exact_vectors:
        return []
    said = f"Vectors are kept within {TOLERANCE:g} of each component, not bit for bit; they are verified so."
    found = [Loss("vectors", said)] if source.exact_vectors else []
    if not space.normalised:
        length = "brought to length 1: a later move reads them from the catalog, which keeps them as they are."
        found.append(Loss("vectors", f"{target.name}'s vectors are {length}"))
    return found


def _filters(source: StoreInfo, target: StoreInfo) -> list[Loss]:
    """Operators that the source answers itself and the target does not."""
    lost = sorted(OPERATORS & source.filter_operators - target.filter_operators)
    if not lost:
        return []
    said = f"Filters with {', '.join(lost)} are answered through ids from the catalog, up to {target.max_ids:,} of them"
    return [Loss("filters", f"{said}; one that keeps more chunks is refused.")]


def _processes(source: StoreInfo, target: StoreInfo) -> list[Loss]:
    if not target.single_process or source.single_process:
        return []
    said = f"{target.name} is opened by one process: the owner, to which the others of this home send their searches."
    return [Loss("processes", said)]


def _batches(target: StoreInfo) -> list[Loss]:
    rows, size = target.max_batch_rows, target.max_batch_bytes
    limits = [f"{rows:,} rows"] if rows is not None else []
    limits += [f"{size:,} bytes"] if size is not None else []
    if not limits:
        return []
    return [Loss("batches", f"One write takes at most {' and '.join(limits)}: batches are cut to that.")]


def of_rows(refused: Sequence[tuple[str, str]], changed: Sequence[str], sampled: int) -> list[Loss]:
    """From rows that were written to a scratch table and read again. `refused`: (document's URI, reason)."""
    found = []
    if refused:
        said = f"Of {sampled:,} rows that were tried, the largest among them, {len(refused):,} are refused: "
        named = "; ".join(dict.fromkeys(f"{uri}: {reason}" for uri, reason in refused[:3]))
        found.append(Loss("rows", f"{said}{named}", stops=True))
    if changed:
        said = f"Of {sampled:,} rows that were tried, {len(changed):,} came back changed, of: "
        found.append(Loss("rows", f"{said}{', '.join(dict.fromkeys(changed[:3]))}.", stops=True))
    return found


def of_model(wish: Wish, longer: Longer) -> list[Loss]:
    """Chunks that the new model cannot read whole. Where its chunking makes such, a move is refused."""
    tokens, reads = Chunking.parse(wish.request.chunking).tokens, wish.space.max_tokens
    found = []
    if tokens > reads:
        said = f"Chunks may have {tokens:,} tokens, and {wish.request.embedder!r} reads {reads:,}"
        found.append(Loss("model", f"{said}: name a --chunking that it reads, in the same move.", stops=True))
    if longer.longer:
        about = "" if longer.looked_at == longer.chunks else "About "
        named = [uri for uri, _ in longer.examples[:NAMED]]
        named += [f"{longer.documents - len(named):,} more documents"] if longer.documents > len(named) else []
        said = f"{about}{longer.expected:,} chunks are longer than the {reads:,} tokens that {wish.request.embedder!r} "
        found.append(Loss("texts", f"{said}reads, in: {', '.join(named)}."))
    return found

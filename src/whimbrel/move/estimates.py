"""What a new chunking and a new space would cost, from samples: documents that are cut, texts that are embedded."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from whimbrel.catalog import sizes
from whimbrel.catalog.documents import text_hash, view_metadata
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.longer import Longer, longer_than
from whimbrel.catalog.sizes import Sizes, WholeText
from whimbrel.domain import EmbedKind, chunk_id, embedded_text
from whimbrel.errors import ModelError, TextRefused
from whimbrel.guards.prices import Prices
from whimbrel.ingest.chunk import Chunking, chunk
from whimbrel.ingest.tokens import load_token_spans
from whimbrel.models.embedders.base import Embedder
from whimbrel.move.losses import Loss, of_model
from whimbrel.move.wish import Wish
from whimbrel.stores.base import DENSE, Records

DOCUMENTS = 100
CHARS = 2_000_000
"""Of documents that are cut, at most."""
TEXTS = 64
"""Embedded, at most: a hosted model is paid for each."""
BATCH = 8
EMBED_S = 8.0
"""Spent on it, about."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A collection in another chunking."""

    chunks: int
    exact: bool
    """Every document was cut; else as many chunks a character as the sample has."""
    documents: int
    """That were cut."""
    seconds: float
    """To cut all."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """What has still to be embedded. What is a vector of record already costs nothing."""

    texts: int
    """Different ones that lack a vector in the target's space."""
    of_record: int
    """Chunks whose text has one, or has been refused before."""
    tokens: int
    """That the model would read."""
    seconds: float | None
    """None where the model did not answer."""
    sampled: int
    """Texts that were embedded for this."""
    too_long: int
    """Chunks that the model cannot read whole."""
    usd: float | None
    """What a hosted model takes for the tokens, which may be those of another tokenizer; None where its price is not
    known."""


# --- another chunking ------------------------------------------------------------------------------------------------


def cut_sample(catalog: Catalog, wish: Wish, embedder: Embedder, found: Sizes) -> tuple[Cut, Records, list[str]]:
    """And the chunks as rows, their vectors still to come; and what the embedder would read of each."""
    with catalog.read() as connection:
        documents = sizes.sample_documents(connection, wish.collection.id, DOCUMENTS, CHARS)
    began = time.perf_counter()
    spans_of = load_token_spans(embedder.tokenizer)
    chunking = Chunking.parse(wish.request.chunking)
    cuts = [(one, chunk(one.text, chunking, spans_of, pages=one.pages, title=_heading(one))) for one in documents]
    took = time.perf_counter() - began
    chars = sum(len(one.text) for one in documents)
    made = sum(len(spans) for _, spans in cuts)
    exact = len(documents) >= found.documents
    chunks = made if exact else round(made / max(chars, 1) * found.chars)
    ids: list[str] = []
    texts: list[str] = []
    read: list[str] = []
    metadata = []
    for one, spans in cuts:
        seen: Counter[str] = Counter()
        shared = view_metadata(one.public_id, one.uri, one.title, one.metadata)
        for span in spans:
            text = one.text[span.start : span.end]
            ids.append(chunk_id(one.public_id, text, seen[text]))
            seen[text] += 1
            texts.append(text)
            read.append(embedded_text(span.context, text))
            metadata.append(shared)
    none = np.zeros((len(ids), 0), np.float32)
    cut = Cut(chunks, exact, len(documents), took / max(chars, 1) * found.chars)
    return cut, Records(ids, {DENSE: none}, texts, metadata), read


def _heading(one: WholeText) -> str:
    """A title that is only the file's name is no heading."""
    return "" if one.title == PurePath(one.uri).stem else one.title


# --- another space ---------------------------------------------------------------------------------------------------


async def embed_sample(
    catalog: Catalog, wish: Wish, embedder: Embedder, prices: Prices, cut: tuple[Cut, Sequence[str]] | None
) -> tuple[Embedding, list[Loss]]:
    """What embedding would cost, and what stands in its way. `cut`: with what the embedder would read of its sample.
    Vectors of the sample are not kept: a plan writes nothing."""
    lost: list[Loss] = []
    long = 0
    if cut is None:
        found = await asyncio.to_thread(_lacking, catalog, wish)
        texts, count = found.sample, found.texts
        longer = await asyncio.to_thread(_too_long, catalog, wish, embedder)
        lost += of_model(wish, longer)
        long = longer.expected
        of_record = found.chunks - count
    else:
        texts, share = await asyncio.to_thread(_lacking_of, catalog, wish, cut[1])
        count = round(share * cut[0].chunks)
        of_record = cut[0].chunks - count
    tokens = await asyncio.to_thread(lambda: sum(map(embedder.count_tokens, texts)))
    sampled, seconds, why = await _embed(embedder, texts)
    if why:
        lost.append(Loss("model", f"The model cannot be tried now: {why}", stops=True))
    needed = None if seconds is None else seconds * count
    expected = round(tokens / len(texts) * count) if texts else 0
    usd = prices.usd(wish.request.embedder, expected, 0)
    return Embedding(count, of_record, expected, needed, sampled, long, usd), lost


@dataclass(frozen=True, slots=True)
class _Lacking:
    texts: int
    chunks: int
    sample: Sequence[str]


def _lacking(catalog: Catalog, wish: Wish) -> _Lacking:
    where = (wish.collection.id, wish.store.view.chunking_id)
    with catalog.read() as connection:
        space = sizes.known_space(connection, wish.space)
        count, _ = sizes.lacking(connection, *where, space)
        keys = sizes.lacking_keys(connection, *where, space, TEXTS) if count else []
        chunks = sizes.sizes(connection, *where).chunks
        return _Lacking(count, chunks, list(dict.fromkeys(sizes.embeddable(connection, keys))))


def _lacking_of(catalog: Catalog, wish: Wish, texts: Sequence[str]) -> tuple[list[str], float]:
    """(texts of a cut sample to be embedded, the share of its chunks that have a text without a vector)."""
    different = {text_hash(text): text for text in texts}
    with catalog.read() as connection:
        known = sizes.of_record(connection, sizes.known_space(connection, wish.space), list(different))
    step = max(1, len(different) // TEXTS)
    share = (len(different) - known) / max(len(texts), 1)
    return (list(different.values())[::step][:TEXTS] if share else []), share


def _too_long(catalog: Catalog, wish: Wish, embedder: Embedder) -> Longer:
    """Chunks that the model cannot read whole."""

    def tokens(text: str) -> int:
        return embedder.count_tokens(text) if _reads(embedder, text) else embedder.space.max_tokens + 1

    with catalog.read() as connection:
        where = (wish.collection.id, wish.store.view.chunking_id)
        return longer_than(connection, *where, tokens, embedder.space.max_tokens)


def _reads(embedder: Embedder, text: str) -> bool:
    try:
        return embedder.count_tokens(text) <= embedder.space.max_tokens
    except TextRefused:
        return False


async def _embed(embedder: Embedder, texts: Sequence[str]) -> tuple[int, float | None, str]:
    """(texts embedded, seconds for each, why the model does not answer)."""
    if not texts:
        return 0, 0.0, ""
    readable = [text for text in texts if _reads(embedder, text)]
    done, took = 0, 0.0
    try:
        await embedder.embed(["warm"], EmbedKind.DOCUMENT)
        for start in range(0, len(readable), BATCH):
            some = readable[start : start + BATCH]
            began = time.perf_counter()
            await _embed_those(embedder, some)
            took += time.perf_counter() - began
            done += len(some)
            if took > EMBED_S:
                break
    except ModelError as error:
        return done, None, error.message
    return done, (took / done if done else 0.0), ""


async def _embed_those(embedder: Embedder, texts: Sequence[str]) -> None:
    """A text that the model refuses is one that it does not read in the move either."""
    try:
        await embedder.embed(texts, EmbedKind.DOCUMENT)
    except TextRefused as refused:
        rest = [text for at, text in enumerate(texts) if at not in refused.positions]
        if rest and len(rest) < len(texts):
            await _embed_those(embedder, rest)

"""Evaluating: a collection is ingested and searched as any other, and its rankings are held against the judgements."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whimbrel import __version__
from whimbrel.app import Whimbrel
from whimbrel.config import Settings, load_settings
from whimbrel.domain import Hit, Mode, document_id
from whimbrel.errors import BadInput, BadQuery, ViewError
from whimbrel.judging.judged import Judged, JudgedDocument, read_judged
from whimbrel.judging.metrics import DEPTH, METRICS, measures

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is, and how much there is in all."""

COLLECTION = "evaluation"
BATCH = 1_000
UNHURRIED_MS = 600_000.0
AT_ONCE = 4
"""Searches; a process answers two a core at a time."""


@dataclass(frozen=True, slots=True)
class ModeResult:
    """One mode's figures."""

    values: Mapping[str, Mapping[str, float]]
    """Metric -> query id -> value, 0..1."""
    seconds: float
    """All searches together."""

    def mean(self, metric: str) -> float:
        values = self.values[metric].values()
        return sum(values) / len(values)


@dataclass(frozen=True, slots=True)
class Evaluation:
    name: str
    documents: int
    """Of the collection, the empty ones among them."""
    empty: int
    queries: int
    chunks: int
    language: str
    """What its words were analysed as."""
    embedder: str
    reranker: str | None
    modes: Mapping[str, ModeResult]
    ingest_s: float

    @property
    def per_query(self) -> dict[str, dict[str, dict[str, float]]]:
        """Mode -> metric -> query id -> value: what `whimbrel.judging.compare` takes."""
        return {
            mode: {
                metric: {query: round(value, 6) for query, value in of.items()} for metric, of in result.values.items()
            }
            for mode, result in self.modes.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """What `whimbrel eval --json` prints."""
        return {
            "documents": self.documents,
            "queries": self.queries,
            "modes": {
                mode: {metric: round(result.mean(metric), 6) for metric in METRICS}
                for mode, result in self.modes.items()
            },
            "collection": self.name,
            "empty": self.empty,
            "chunks": self.chunks,
            "language": self.language,
            "embedder": self.embedder,
            "reranker": self.reranker,
            "version": __version__,
            "seconds": {
                "ingest": round(self.ingest_s, 2),
                **{mode: round(result.seconds, 2) for mode, result in self.modes.items()},
            },
            "per_query": self.per_query,
        }


def evaluate(
    folder: str | Path,
    *,
    modes: Sequence[Mode | str] = tuple(Mode),
    queries: int | None = None,
    min_grade: int = 1,
    home: str | Path | None = None,
    settings: Settings | None = None,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Evaluate searching a collection in BEIR's layout.

    The embedder, the chunking and the limits are those of `settings` (or of the environment); catalog and views lie in
    a temporary home, which is removed at the end, or in `home`, which is kept: a second time it embeds nothing. A
    document is as good as its best chunk.

    Raises `PathNotFound` and `BadInput` for the files, `BadQuery` for a mode that there is not, `ViewError` where a
    half of the search was out, and what ingesting raises.
    """
    chosen = _modes(modes)
    judged = read_judged(folder, queries=queries, min_grade=min_grade)
    tell = on_progress or (lambda what, done, total: None)
    with _place(home) as place, Whimbrel(settings=_settings(settings or load_settings(), place)) as whimbrel:
        began = time.monotonic()
        _take_in(whimbrel, judged, tell)
        ingested = time.monotonic() - began
        chunks = _chunks(whimbrel)
        results = {mode.value: _mode(whimbrel, judged, mode, min_grade, chunks, tell) for mode in chosen}
        return Evaluation(
            name=judged.name,
            documents=len(judged.documents) + len(judged.empty),
            empty=len(judged.empty),
            queries=len(judged.queries),
            chunks=chunks,
            language=whimbrel.language(COLLECTION),
            embedder=whimbrel.settings.embedder,
            reranker=whimbrel.settings.reranker,
            modes=results,
            ingest_s=ingested,
        )


def _modes(modes: Sequence[Mode | str]) -> list[Mode]:
    known = ", ".join(Mode)
    if not modes:
        raise BadQuery("No mode was given.", f"Modes: {known}.")
    for mode in modes:
        if mode not in list(Mode):
            raise BadQuery(f"There is no mode {str(mode)[:50]!r}.", f"Modes: {known}.")
    return list(dict.fromkeys(Mode(mode) for mode in modes))


@contextmanager
def _place(home: str | Path | None) -> Iterator[Path]:
    if home is not None:
        yield Path(home).expanduser().absolute()
        return
    with tempfile.TemporaryDirectory(prefix="whimbrel-eval-") as made:
        yield Path(made)


def _settings(found: Settings, home: Path) -> Settings:
    """As configured, but for where things lie: nothing is written to the user's own home, catalog or store. And a
    reranker has the time that it takes: how good it is does not depend on how busy the machine is."""
    store = "lancedb:" if found.store.startswith("lancedb:") else found.store
    rerank = found.rerank.model_copy(update={"budget_ms": UNHURRIED_MS})
    catalog = f"sqlite:///{home / 'catalog.db'}"
    return found.model_copy(update={"home": home, "catalog": catalog, "store": store, "rerank": rerank})


# --- ingesting -------------------------------------------------------------------------------------------------------


def _take_in(whimbrel: Whimbrel, judged: Judged, tell: Progress) -> None:
    total = len(judged.documents)
    tell("documents", 0, total)
    for start in range(0, total, BATCH):
        some = judged.documents[start : start + BATCH]
        result = whimbrel.add([_upload(document) for document in some], COLLECTION, wait="job")
        if result["failed"]:
            raise BadInput(
                f"{result['failed']} documents of {judged.name!r} could not be taken in, the first because: "
                f"{result['failures'][0]['reason']}",
                "Figures without them would be wrong, so there are none. Mend or leave out these documents.",
            )
        tell("documents", start + len(some), total)
    whimbrel.wait_for_head(COLLECTION, on_lag=lambda lag: tell("chunks embedded", lag.vectors, max(lag.vectors, 1)))


def _upload(document: JudgedDocument) -> dict[str, Any]:
    """A title becomes what it is in a real document: the heading above the text, which the embedder reads too."""
    title = " ".join(document.title.split())
    if not title:
        return {"id": document.id, "text": document.text}
    return {"id": document.id, "title": title, "text": f"# {title}\n\n{document.text}"}


def _chunks(whimbrel: Whimbrel) -> int:
    return next(int(one["chunks"]) for one in whimbrel.status()["collections"] if one["name"] == COLLECTION)


# --- searching -------------------------------------------------------------------------------------------------------


def _mode(whimbrel: Whimbrel, judged: Judged, mode: Mode, min_grade: int, chunks: int, tell: Progress) -> ModeResult:
    ids = {document_id(external_id=one.id, uri=""): one.id for one in judged.documents}
    depth = math.ceil(DEPTH * chunks / len(judged.documents))
    values: dict[str, dict[str, float]] = {metric: {} for metric in METRICS}
    what, total = f"queries, {mode}", len(judged.queries)
    tell(what, 0, total)
    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        rankings = threads.map(lambda text: _ranking(whimbrel, text, mode, depth), judged.queries.values())
        for done, (query, ranking) in enumerate(zip(judged.queries, rankings, strict=True), 1):
            found = measures([ids[key] for key in ranking], judged.grades[query], min_grade=min_grade)
            for metric in METRICS:
                values[metric][query] = found[metric]
            tell(what, done, total)
    return ModeResult(values, time.monotonic() - began)


def _ranking(whimbrel: Whimbrel, text: str, mode: Mode, depth: int) -> list[str]:
    """The first documents, by their best chunks."""
    most = whimbrel.settings.search.max_top_k
    text = text[: whimbrel.settings.search.max_query_chars]
    while True:
        depth = min(depth, most)
        result = whimbrel.search(text, COLLECTION, top_k=depth, mode=mode)
        if result.degraded:
            raise ViewError(
                f"A search was answered by a part of the views only: {'; '.join(result.degraded)}.",
                "Figures of it would be wrong, so there are none. Try again.",
            )
        ranking = _documents(result.hits)
        if len(ranking) >= DEPTH or len(result.hits) < depth or depth >= most:
            return ranking[:DEPTH]
        depth *= 3


def _documents(hits: Sequence[Hit]) -> list[str]:
    return list(dict.fromkeys(hit.document_id for hit in hits))

"""A BM25 index in a folder, by tantivy.

Synchronous; calls are short and may come from any thread. One process writes, any number read, and each search sees
what any process has committed before it.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tantivy import DocAddress, Index, IndexWriter, Occur, Query, Searcher

from whimbrel.domain import Matches, Position
from whimbrel.errors import Conflict, HomeError, ViewDamaged
from whimbrel.filters import And, Filter, Not
from whimbrel.lexicon import layout
from whimbrel.lexicon.analysis import Analysis
from whimbrel.lexicon.base import LexicalRows
from whimbrel.lexicon.bm25 import best, bm25, no_matches
from whimbrel.lexicon.faults import translated
from whimbrel.lexicon.filters import compile_filter
from whimbrel.lexicon.integrity import damaged_files

HEAP_BYTES = 50_000_000
"""What a writer collects before it writes a segment."""

_PAGE = 50_000
_REWRITE_BATCH = 200_000
"""Rows between two commits. A merge that begins at one of them takes what is left of the old segments along, and gives
the next rewriting its work."""


class TantivyLexicon:
    """One lexical view. Open one for writing with `writable`; its writer takes the folder's lock on the first change.

    Any method raises `ViewDamaged` where the folder's files are missing, cut off, or not what tantivy wrote: the
    catalog holds everything, and the view can be rebuilt.
    """

    def __init__(self, path: Path, index: Index, analysis: Analysis, *, writable: bool, heap_bytes: int) -> None:
        self.path = path
        self._index = index
        self._analysis = analysis
        self._writable = writable
        self._heap_bytes = heap_bytes
        self._writer: IndexWriter | None = None
        self._write_lock = threading.RLock()
        index.register_tokenizer(analysis.name, analysis.analyser)
        index.config_reader("manual")  # by default a thread polls the folder; `reload` per search does not need it

    # --- its life ----------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, *, language: str = "en", heap_bytes: int = HEAP_BYTES) -> TantivyLexicon:
        """Make the folder and an empty index in it, open for writing. Raises `Conflict` if there is one."""
        if cls.exists(path):
            raise Conflict(f"There is a lexicon in {path} already.", "Open it, or drop it first.")
        analysis = Analysis(language)
        with translated(path):
            path.mkdir(parents=True, exist_ok=True)
            index = Index(layout.schema(analysis), path=str(path), reuse=False)
            return cls(path, index, analysis, writable=True, heap_bytes=heap_bytes)

    @classmethod
    def open(
        cls, path: Path, *, language: str = "en", writable: bool = False, heap_bytes: int = HEAP_BYTES
    ) -> TantivyLexicon:
        """Open the index in `path`.

        Raises `ViewDamaged` also if it was made for another language, or by another version of the analysis.
        """
        analysis = Analysis(language)
        with translated(path):
            found = layout.analyser_name(path)
            if found != analysis.name:
                raise ViewDamaged(
                    f"The lexicon in {path} was analysed as {found}, not as {analysis.name}.", "Rebuild the view."
                )
            return cls(path, Index.open(str(path)), analysis, writable=writable, heap_bytes=heap_bytes)

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether there is an index in `path`, damaged or not."""
        return (path / "meta.json").is_file()

    def close(self) -> None:
        """Let running merges end, and give the lock back. A later change takes it again."""
        with self._write_lock:
            writer, self._writer = self._writer, None
            if writer is not None:
                with translated(self.path):
                    writer.wait_merging_threads()

    def drop(self) -> None:
        """Remove the folder."""
        with self._write_lock:
            self._writer = None
            with translated(self.path):
                shutil.rmtree(self.path)

    # --- reading -----------------------------------------------------------------------------------------------------

    def search(self, query: str, k: int, where: Filter | None = None, ids: Sequence[str] | None = None) -> Matches:
        """The k best rows for the words of `query` that pass `where` and, if given, are in `ids`.

        Nothing in the query is an operator. A row is found by any of its terms: k rows whenever k rows have one and
        pass. The score is BM25 as a share of its upper bound, and so 0..1 and comparable between queries:

            sum_f w_f sum_t n_t idf_f(t) tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length))
            -------------------------------------------------------------------------------------
                              sum_f w_f sum_t n_t idf_f(t) (k1 + 1)

        over the fields f (the text with its title, weight 1; the title, weight 0.1) and the query's terms t, each n_t
        times in it; tf is how often t occurs in the row's field; idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5)), with
        df = 0 for a term that no row has; k1 = 1.2, b = 0.75. Robertson and Zaragoza, "The Probabilistic Relevance
        Framework: BM25 and Beyond" (2009), with the idf of Lucene and tantivy, which is never negative.
        """
        terms = self._analysis.query_terms(query)
        if not terms or k < 1 or (ids is not None and not ids):
            return no_matches()
        with translated(self.path):
            searcher = self._searcher()
            wanted = bm25(searcher, self._index.schema, terms)
            if wanted.query is None:
                return no_matches()
            clauses = [(Occur.Must, wanted.query), *self._restrictions(where)]
            if ids is not None:
                clauses.append(_silent(Query.term_set_query(self._index.schema, "id", ids)))
            restricted = Query.boolean_query(clauses) if len(clauses) > 1 else wanted.query
            return best(searcher, restricted, k, wanted.bound)

    def words(self, query: str) -> int:
        """How many words of a query `search` looks for: without stop words, repeats counted."""
        return self._analysis.query_terms(query).total()

    def position(self) -> Position | None:
        """The position of the last commit; None if none was given."""
        with translated(self.path):
            searcher = self._searcher()
            hits = searcher.search(self._is_position(), 1).hits
            return layout.position_of(searcher.doc(hits[0][1])) if hits else None

    def count(self) -> int:
        """Rows, the deleted ones not counted."""
        with translated(self.path):
            searcher = self._searcher()
            return searcher.num_docs - self._positions(searcher)

    def ids(self) -> list[str]:
        """Every id, in any order."""
        return [row_id for row_id, _ in self.scan()]

    def scan(self) -> Iterator[tuple[str, str]]:
        """Every row's id and digest, as of one commit, in any order."""
        with translated(self.path):
            searcher = self._searcher()
            for address in _addresses(searcher):
                document = searcher.doc(address)
                if document["digest"]:
                    yield document["id"][0], document["digest"][0].decode()

    def check(self) -> None:
        """Read every file and compare its checksum; raises `ViewDamaged` with the names of those that differ.

        Opening notices files that are missing or cut off, not a byte that changed.
        """
        with translated(self.path):
            if names := damaged_files(self.path):
                raise ViewDamaged(
                    f"Files of the lexicon in {self.path} have changed: {', '.join(names)}.", "Rebuild the view."
                )

    # --- changing ----------------------------------------------------------------------------------------------------

    def apply(self, upserts: LexicalRows | None, deletes: Sequence[str], position: Position | None) -> None:
        """Delete, then insert or replace, rows; and move to `position`, if given: one commit, all or nothing.

        Of an id that is twice in `upserts` the last row stays. Raises `AlreadyOwned` while another process is writing,
        `DiskFull` where there is no space.
        """
        with self._changing() as writer:
            for row_id in deletes:
                writer.delete_documents_by_term("id", row_id)
            if upserts is not None:
                for row_id, document in layout.documents(upserts):
                    writer.delete_documents_by_term("id", row_id)
                    writer.add_document(document)
            if position is not None:
                _put_position(writer, position)
            writer.commit()

    def maintain(self, *, share: float = 0.2) -> None:
        """Write segments anew of which this share is deleted (0: anything), so that the past leaves the scores.

        tantivy counts deleted documents, rows and former positions, in its statistics until a merge drops them. A fifth
        of them moves the weight of a term, 5 to 12 for most, by 0.2 at the most; a hundredth by 0.01.
        """
        with self._write_lock:
            self._settle()
            stale = {i for i, (rows, dead) in enumerate(self._segments()) if dead and dead >= share * rows}
            if stale:
                self._rewrite(stale)

    def erase(self) -> bool:
        """Remove deleted rows from the files. True when no file holds any.

        Segments that hold deleted rows are written anew, those with most first, until there is none. False where a
        search that is still running keeps a file: call again.
        """
        with self._write_lock:
            self._settle()
            while self._dead_rows():
                segments = self._segments()
                worst = max(range(len(segments)), key=lambda i: (segments[i][1], -segments[i][0]))
                self._rewrite({worst})
                if sum(dead for _, dead in self._segments()) >= sum(dead for _, dead in segments):
                    return False
            with self._changing() as writer:
                writer.garbage_collect_files()
            self.close()
            return not self._leftovers()

    # --- writing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _changing(self) -> Iterator[IndexWriter]:
        """The writer. After any error it is thrown away, with what it had not committed."""
        if not self._writable:
            raise HomeError(f"The lexicon in {self.path} was opened for reading.", "Only the home's owner changes it.")
        with self._write_lock, translated(self.path):
            try:
                if self._writer is None:
                    self._writer = self._open_writer()
                yield self._writer
            except BaseException:
                self._writer = None
                raise

    def _open_writer(self) -> IndexWriter:
        """Take the lock, and clear away what a killed writer left before its commit.

        Without that a commit can fail for ever: the number that it gives to a file of deletions is one that the killed
        writer used, and tantivy writes over no file. Its leftovers also hold texts.
        """
        writer = self._index.writer(self._heap_bytes, 1)
        for half_written in self.path.glob(".tmp*"):
            half_written.unlink(missing_ok=True)
        writer.garbage_collect_files()
        return writer

    def _settle(self) -> None:
        """Let merges end, and read what they left."""
        self.close()
        with translated(self.path):
            self._index.reload()

    def _rewrite(self, segments: Collection[int]) -> None:
        """Add the living rows of these segments anew: without any, a segment is dropped with its files.

        Each commit on the way is whole, so that searches go on, and a crash leaves nothing to mend.
        """
        with self._changing() as writer:
            searcher = self._searcher()
            moved = 0
            for address in _addresses(searcher):
                if address.segment_ord not in segments:
                    continue
                document = searcher.doc(address)
                if document["id"]:
                    writer.delete_documents_by_term("id", document["id"][0])
                    writer.add_document(layout.again(document))
                else:
                    _put_position(writer, layout.position_of(document))
                moved += 1
                if moved % _REWRITE_BATCH == 0:
                    writer.commit()
            writer.commit()
        del searcher  # or its segments count as in use
        self._settle()

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _searcher(self) -> Searcher:
        self._index.reload()
        return self._index.searcher()

    def _restrictions(self, where: Filter | None) -> list[tuple[Occur, Query]]:
        """Clauses that keep rows out and add nothing to a score."""
        match where:
            case None:
                return []
            case And(terms):
                return [clause for term in terms for clause in self._restrictions(term)]
            case Not(term):
                return [(Occur.MustNot, compile_filter(term, self._index))]
        return [_silent(compile_filter(where, self._index))]

    def _is_position(self) -> Query:
        return Query.term_query(self._index.schema, "kind", layout.POSITION, "basic")

    def _positions(self, searcher: Searcher) -> int:
        return int(searcher.search(self._is_position(), 1).count)  # type: ignore[attr-defined]  # its stub omits it

    def _segments(self) -> list[tuple[int, int]]:
        """(documents, deleted ones among them) of each segment, in the order in which a searcher numbers them."""
        with translated(self.path):
            return layout.segments(self.path)

    def _dead_rows(self) -> int:
        """Deleted rows that are still in the files; not counting former positions, which tell nothing."""
        with translated(self.path):
            searcher = self._searcher()
            former = searcher.doc_freq("kind", layout.POSITION) - self._positions(searcher)
            return sum(dead for _, dead in self._segments()) - former

    def _leftovers(self) -> list[Path]:
        """Files of segments that are no more."""
        with translated(self.path):
            living = layout.segment_ids(self.path)
            files = [f for f in self.path.iterdir() if f.is_file() and not f.name.startswith((".", "meta.json"))]
            return [f for f in files if f.name.split(".")[0] not in living]


def _put_position(writer: IndexWriter, position: Position) -> None:
    writer.delete_documents_by_term("kind", layout.POSITION)
    writer.add_document(layout.position_document(position))


def _silent(query: Query) -> tuple[Occur, Query]:
    return Occur.Must, Query.const_score_query(query, 0.0)


def _addresses(searcher: Searcher) -> Iterator[DocAddress]:
    """Every living document, by pages: an address costs Python 150 bytes."""
    for offset in range(0, searcher.num_docs, _PAGE):
        for _, address in searcher.search(Query.all_query(), _PAGE, count=False, offset=offset).hits:
            yield address

"""How documents are read and cut: the pool that extracts them, and the chunkings of a collection."""

from __future__ import annotations

from whimbrel.catalog import collections
from whimbrel.catalog.collections import Collection
from whimbrel.catalog.engine import Catalog
from whimbrel.config import Settings
from whimbrel.ingest.chunk import Chunking, check_readable
from whimbrel.ingest.extract import Limits
from whimbrel.ingest.pipeline import Cutting
from whimbrel.ingest.reader import Options
from whimbrel.ingest.workers import ExtractionPool, Measured
from whimbrel.wiring.embedders import Embedders


class Cuttings:
    def __init__(self, settings: Settings, catalog: Catalog, embedders: Embedders) -> None:
        self._settings = settings
        self._catalog = catalog
        self._embedders = embedders
        self._pool: ExtractionPool | None = None

    @property
    def configured(self) -> Chunking:
        """For collections that have none yet."""
        return Chunking(tokens=self._settings.chunking.tokens, overlap=self._settings.chunking.overlap)

    def checked(self, spec: str) -> str:
        """The specification in full. Raises `ConfigError` for one that is wrong, or that the embedder cannot read."""
        chunking = Chunking.parse(spec)
        check_readable(chunking, self._embedders.of().space)
        return chunking.spec

    def of(self, collection: Collection) -> Cutting:
        """As the collection's chunks were cut before, whatever the configuration says now."""
        with self._catalog.write() as connection:
            keys = collections.collection_chunkings(connection, collection.id)
            keys = keys or [collections.chunking_id(connection, self.configured.spec)]
            specs = [collections.chunking_spec(connection, key) for key in keys]
            current = collections.by_id(connection, collection.id) or collection
            spaces = [collections.counting_space(connection, current, key) for key in keys]
        ingest = self._settings.ingest
        return Cutting(
            ways={key: self._measured(spec, space) for key, spec, space in zip(keys, specs, spaces, strict=True)},
            limits=Limits(ingest.max_file_bytes, ingest.max_unpacked_bytes),
            options=Options(ingest.parsed_passwords(), ingest.ocr_languages),
        )

    def pool(self) -> ExtractionPool:
        """Opened once, until `close_pool`."""
        if self._pool is None:
            ingest = self._settings.ingest
            self._pool = ExtractionPool(
                workers=ingest.workers, timeout_s=ingest.timeout_s, memory_bytes=ingest.memory_bytes
            )
        return self._pool

    async def close_pool(self) -> None:
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await pool.close()

    def _measured(self, spec: str, space: int | None) -> Measured:
        embedder = self._embedders.of() if space is None else self._embedders.of_space(space)
        chunking = Chunking.parse(spec)
        check_readable(chunking, embedder.space)
        return Measured(chunking, embedder.tokenizer)

"""Ingest until words find it, the vectors still to come."""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.corpus import PARAGRAPHS, write_files
from bench.figures import Figure, clock, note
from bench.homes import open_home, tokenizer


def run(folder: Path, *, quick: bool) -> list[Figure]:
    chunks = 5_000 if quick else 20_000
    place = folder / "lexical"
    shutil.rmtree(place, ignore_errors=True)
    for _ in write_files(place / "sources", tokenizer(), 0, chunks // PARAGRAPHS):
        pass
    with open_home(place / "home") as whimbrel:
        with clock() as seconds:
            result = whimbrel.ingest([place / "sources"], wait="lexical")
        note(f"{result['chunks_added']} chunks of {result['added']} files; the process is new: imports are in it")
        rate = result["chunks_added"] / seconds()
        hits = whimbrel.search("water history", mode="lexical").hits
        assert hits
    shutil.rmtree(place)
    return [Figure("ingest to lexically searchable, embedding deferred", rate, "chunks/s", target=">= 1000").show()]

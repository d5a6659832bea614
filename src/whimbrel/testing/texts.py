"""Real texts and their real embeddings, for what random vectors do not show: recall.

The texts are paragraphs of the documentation in Python's own standard library, so that every machine has them. The
embeddings are made once and kept in the folder of temporary files.
"""

from __future__ import annotations

import ast
import asyncio
import os
import re
import sysconfig
import tempfile
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from pathlib import Path

import numpy as np

from whimbrel.domain import EmbedKind, Space
from whimbrel.stores.base import Vectors

COUNT = int(os.environ.get("WHIMBREL_TEST_EMBEDDINGS", "2000"))
"""How many texts are embedded: about 300 a second, once."""
QUERIES = 100
"""The last of them, which are asked for and not in the table."""


@cache
def embedded() -> tuple[list[str], Vectors, Space]:
    """(texts, float32[n, 384] of length 1, their space), by the built-in model."""
    from whimbrel.models.embedders.resolve import resolve_embedder

    texts = _texts(COUNT + QUERIES)
    embedder = resolve_embedder("minilm")
    digest = blake2b("\0".join([embedder.space.key, *texts]).encode(), digest_size=12).hexdigest()
    kept = Path(tempfile.gettempdir()) / f"whimbrel-conformance-{os.getuid()}-{digest}.npy"
    if kept.is_file() and kept.stat().st_uid == os.getuid():
        return texts, np.load(kept, allow_pickle=False), embedder.space
    vectors = asyncio.run(embedder.embed(texts, EmbedKind.DOCUMENT))
    part = kept.with_suffix(f".{os.getpid()}.npy")
    np.save(part, vectors, allow_pickle=False)
    part.replace(kept)
    return texts, vectors, embedder.space


def _texts(count: int) -> list[str]:
    found: dict[str, None] = {}
    for text in _paragraphs(Path(sysconfig.get_path("stdlib"))):
        found.setdefault(text)
        if len(found) == count:
            break
    return list(found)


def _paragraphs(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.py")) + sorted(folder.glob("[a-s]*/*.py")):
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                for part in (ast.get_docstring(node) or "").split("\n\n"):
                    text = re.sub(r"\s+", " ", part).strip()
                    if 40 <= len(text) <= 400:
                        yield text

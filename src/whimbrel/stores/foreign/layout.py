"""Which column is what, in a table that another program made: told by the user, by its types, or by its usual names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from whimbrel.errors import BadInput
from whimbrel.stores.foreign.base import Chosen, IdKind

IDS = ("id", "_id", "ids", "uuid", "doc_id", "document_id", "chunk_id", "item_id", "vector_id", "point_id", "pk")
TEXTS = ("text", "document", "content", "page_content", "chunk", "chunk_text", "body", "passage", "doc", "contents")
VECTORS = ("vector", "embedding", "embeddings", "vec", "emb", "dense", "dense_vector", "text_vector", "vectors")


def id_column(kinds: Mapping[str, IdKind], chosen: Chosen, keys: Sequence[str], where: str) -> str:
    """`kinds`: the columns that can hold ids. `keys`: those that the database declares to be the key."""
    if chosen.id:
        return _given(chosen.id, kinds, "id", where)
    if len(keys) == 1 and keys[0] in kinds:
        return keys[0]
    found = _named(IDS, kinds)
    if found is None:
        raise _untold("id", "a column whose values are unique", kinds, where)
    return found


def vector_column(candidates: Sequence[str], chosen: Chosen, where: str) -> str:
    if chosen.vector:
        return _given(chosen.vector, candidates, "vector", where)
    if not candidates:
        raise BadInput(f"{where} has no column of vectors. Nothing was copied.", "Name another collection.")
    found = candidates[0] if len(candidates) == 1 else _named(VECTORS, candidates)
    if found is None:
        raise _untold("vector", "the one to copy", candidates, where)
    return found


def text_column(candidates: Sequence[str], chosen: Chosen, where: str) -> str | None:
    """None where no column has the name of one with texts: then they are all metadata."""
    return _given(chosen.text, candidates, "text", where) if chosen.text else _named(TEXTS, candidates)


_OPTIONS = {"id": "`--id` or `--id-field`", "vector": "`--vector` or `--vector-field`", "metric": "`--metric`"}


def not_chosen(chosen: Chosen, where: str, *names: str) -> None:
    """Refuses what a user chooses of a database whose rows say it themselves."""
    for name in names:
        if getattr(chosen, name):
            raise BadInput(
                f"Of {where} the {name} cannot be chosen: its rows say it themselves. Nothing was copied.",
                f"Leave {_OPTIONS[name]} out.",
            )


def _given(name: str, candidates: Sequence[str] | Mapping[str, IdKind], what: str, where: str) -> str:
    if name not in candidates:
        raise BadInput(
            f"{where} has no column {name!r} that can be the {what}. Nothing was copied.",
            f"Those that can: {', '.join(candidates) or 'none'}.",
        )
    return name


def _named(names: Sequence[str], candidates: Sequence[str] | Mapping[str, IdKind]) -> str | None:
    lower = {one.lower(): one for one in candidates}
    return next((lower[name] for name in names if name in lower), None)


def _untold(what: str, meaning: str, candidates: Sequence[str] | Mapping[str, IdKind], where: str) -> BadInput:
    return BadInput(
        f"{where}: which column is the {what} cannot be told. Nothing was copied.",
        f"Name {meaning} with `--{what} COLUMN`; those that can be it: {', '.join(candidates) or 'none'}.",
    )

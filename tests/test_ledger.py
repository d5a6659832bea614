"""The ledger of ids: each chunk is found by its id, and nothing else is."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from support import collection, contents, document, write
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.ledger import Ledger

ALIKE = [bytes(8) + low for low in (bytes(8), bytes([*[0] * 7, 1]), b"\xff" * 8)]
"""Ids whose first half is the same."""
public_ids = st.lists(st.one_of(st.binary(min_size=16, max_size=16), st.sampled_from(ALIKE)), unique=True, max_size=40)


def ledger(ids: list[bytes]) -> Ledger:
    return Ledger(b"".join(ids), np.arange(len(ids), dtype=np.int64) * 3)


@settings(max_examples=60, deadline=None)
@given(known=public_ids, others=public_ids)
def test_each_id_is_found_and_no_other(known: list[bytes], others: list[bytes]) -> None:
    made = ledger(known)
    asked = [*known, *others, *reversed(known)]
    entries = made.find([id_.hex() for id_ in asked])
    for id_, entry in zip(asked, entries.tolist(), strict=True):
        if id_ in known:
            assert made.id(entry) == id_.hex()
            assert made.keys[entry] == 3 * known.index(id_)
        else:
            assert entry == -1
    assert [made.id(entry) for entry in range(len(made))] == sorted(id_.hex() for id_ in known)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=40), st.just("AB" * 16), st.just("ab " * 10 + "ab"), st.just("ab" * 16))))
def test_an_id_may_be_any_text(asked: list[str]) -> None:
    """Capitals and blanks are no hex digits here, though Python reads them."""
    found = ledger([bytes.fromhex("ab" * 16)]).find(asked)
    assert found.tolist() == [0 if id_ == "ab" * 16 else -1 for id_ in asked]


def test_it_has_the_chunks_of_one_collection_and_chunking(catalog: Catalog) -> None:
    place, other = collection(catalog), collection(catalog, "other")
    write(catalog, place, document("memory:1", "one\n\ntwo\n\none"))
    write(catalog, other, document("memory:2", "three"))
    with catalog.read() as connection:
        made = Ledger.read(connection, *place)
        assert [made.id(entry) for entry in range(3)] == sorted(contents(catalog, place))
        assert made.keys.dtype == np.int64
        assert len(made) == 3
        assert len(Ledger.read(connection, place[0], place[1] + 1)) == 0

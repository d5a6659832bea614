"""What a search promises: its modes, filters, scores, positions; and that nothing is found that is gone."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from running import DEADLINE_S, head, until, verified
from whimbrel.app import Whimbrel
from whimbrel.catalog import collections, listing, sources
from whimbrel.domain import Hit, Matches, Mode
from whimbrel.errors import BadFilter, BadQuery, CollectionNotFound, WaitTimeout
from whimbrel.filters import matches, parse
from whimbrel.search.fusion import fuse

pytestmark = pytest.mark.timeout(120)

BIRDS = "curlew dunlin gannet fulmar plover merlin osprey siskin".split()  # noqa: SIM905
ABOUT = {
    "curlew": "It has a long bent bill and probes the mud of estuaries.",
    "dunlin": "Small waders that fly over the shore in dense flocks.",
    "gannet": "It dives into the sea from thirty metres to catch fish.",
    "fulmar": "It spits oil at whoever comes too near to its nest.",
    "plover": "It feigns a broken wing to lead a fox from its chicks.",
    "merlin": "The smallest falcon, which hunts larks over the moor.",
    "osprey": "It catches trout with its feet and nests on tall pines.",
    "siskin": "It hangs head down from alder cones to eat the seeds.",
}


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whimbrel]:
    """Eight notes with all kinds of metadata, and one long document."""
    with Whimbrel(home=tmp_path_factory.mktemp("home")) as whimbrel:
        notes = [
            {
                "id": bird,
                "text": f"# The {bird}\n\n{ABOUT[bird]}\n",
                "metadata": METADATA[number],
            }
            for number, bird in enumerate(BIRDS)
        ]
        long = "\n\n".join(
            f"## Part {n}\n\nThe heron of part{n}, told at length: " + "wings and water " * 60 for n in range(12)
        )
        whimbrel.add([*notes, {"id": "long", "text": long}])
        yield whimbrel


METADATA: list[dict[str, Any]] = [
    {"year": 2018, "site": "docs", "tags": ["sea", "mud"], "rare": False},
    {"year": 2021, "site": "docs", "tags": ["sea"], "rare": True, "weight": 0.05},
    {"year": 2024, "site": "blog", "tags": [], "weight": 3.0},
    {"year": 2024.0, "site": "blog", "seen": "2024-05-01"},
    {"site": "Docs", "deep": {"er": {"x": 1}}},
    {"year": "2021", "tags": "sea"},
    {"year": None, "site": ""},
    {},
]


@pytest.mark.parametrize("mode", list(Mode))
def test_each_mode_finds_the_passage(birds: Whimbrel, mode: Mode) -> None:
    found = birds.search("Which bird dives into the sea to catch fish?", mode=mode, top_k=3)
    assert found.hits[0].uri == "text:gannet"
    assert [hit.rank for hit in found.hits] == [1, 2, 3][: len(found.hits)]
    assert (found.degraded, found.position) == ([], head(birds, "default"))
    assert {"total", "hydrate"} <= found.timings_ms.keys()
    assert ("embed" in found.timings_ms, "lexicon" in found.timings_ms) == (
        mode is not Mode.LEXICAL,
        mode is not Mode.DENSE,
    )


def test_a_hit_is_the_documents_text_at_its_offsets(birds: Whimbrel) -> None:
    for mode in Mode:
        for hit in birds.search("heron wings part7", mode=mode, top_k=40).hits:
            text = birds.document(hit.document_id)["text"]
            assert hit.text == text[hit.start : hit.end] != ""


@pytest.mark.parametrize("mode", list(Mode))
def test_scores_fall_within_0_and_1_and_do_not_depend_on_the_other_hits(birds: Whimbrel, mode: Mode) -> None:
    query = "long bent bill and probes the mud"
    all_of_them = birds.search(query, mode=mode, top_k=50).hits
    scores = [hit.score for hit in all_of_them]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    by_id = {hit.chunk_id: hit.score for hit in all_of_them}
    for few in (
        birds.search(query, mode=mode, top_k=2).hits,
        birds.search(query, mode=mode, top_k=50, filter={"site": "docs"}).hits,
        birds.search(query, mode=mode, top_k=50, filter={"_document": all_of_them[-1].document_id}).hits,
    ):
        assert few
        for hit in few:
            assert hit.score == pytest.approx(by_id[hit.chunk_id], abs=2e-6)


def test_a_threshold_leaves_out_what_scores_less(birds: Whimbrel) -> None:
    every = birds.search("falcon", top_k=20).hits
    cut = (every[0].score + every[1].score) / 2
    assert [hit.chunk_id for hit in birds.search("falcon", top_k=20, threshold=cut).hits] == [every[0].chunk_id]
    assert birds.search("falcon", threshold=1.0).hits == []


def test_the_more_words_a_question_has_the_more_a_word_found_weighs() -> None:
    dense, lexical = (Matches(["a", "b"], np.array(scores, dtype=np.float32)) for scores in ([0.5, 0.25], [0.25, 0.5]))
    found = {n: dict(fuse(Mode.HYBRID, dense, lexical, n)) for n in (0, 1, 5, 13, 80, 5_000)}
    assert found[0] == found[1] == found[5] == {"a": 0.375, "b": 0.375}
    gain = (13 / 5) ** 0.75
    assert found[13] == pytest.approx({"a": (0.5 + gain * 0.25) / 2, "b": (0.25 + 1.0) / 2})
    assert found[80] == found[5_000] == {"a": 0.75, "b": 0.625}, "16 ** 0.75 is 8: the lexical half is 1 at the most"
    assert fuse(Mode.LEXICAL, None, lexical, 500) == fuse(Mode.HYBRID, None, lexical, 500) == [("b", 0.5), ("a", 0.25)]
    assert fuse(Mode.HYBRID, dense, None, 500) == fuse(Mode.DENSE, dense, None) == [("a", 0.5), ("b", 0.25)]


def test_meaning_counts_less_where_the_model_has_no_words_for_the_question() -> None:
    dense, lexical = Matches(["a", "b"], np.array([0.9, 0.5])), Matches(["b"], np.array([0.5]))
    read = fuse(Mode.HYBRID, dense, lexical, 3)
    assert read == fuse(Mode.HYBRID, dense, lexical, 3, 1.0)
    assert [one.chunk_id for one in read] == ["b", "a"]
    assert dict(fuse(Mode.HYBRID, dense, lexical, 3, 0.0)) == pytest.approx({"b": 0.1 * 0.5 + 0.9 * 0.5, "a": 0.09})
    scores = [dict(fuse(Mode.HYBRID, dense, lexical, 3, share))["a"] for share in (0.0, 0.25, 0.5, 1.0)]
    assert scores == sorted(scores)


def test_a_question_in_letters_that_the_model_does_not_read_is_answered_by_its_words(tmp_path: Path) -> None:
    """Every Russian passage looks alike to a model of English."""
    birds = {"kulik": "Кулик живёт у болота и вьёт гнездо в траве.", "sova": "Сова охотится ночью на мышей в лесу."}
    with Whimbrel(tmp_path) as whimbrel:
        whimbrel.add([{"id": id_, "text": text} for id_, text in birds.items()], "birds")
        whimbrel.wait_for_head("birds")
        by_words = whimbrel.search("где сова охотится ночью", "birds", mode="lexical").hits[0]
        best, *others = whimbrel.search("где сова охотится ночью", "birds").hits
        assert best.text == birds["sova"]
        assert best.score > 0.8 * by_words.score
        assert all(other.score <= 0.1 for other in others)


def test_the_hybrid_score_is_the_mean_of_the_halves(birds: Whimbrel) -> None:
    halves = [
        {hit.chunk_id: hit.score for hit in birds.search("falcon of the moor", mode=mode, top_k=50).hits}
        for mode in (Mode.DENSE, Mode.LEXICAL)
    ]
    for hit in birds.search("falcon of the moor", top_k=50).hits:
        mean = sum(half.get(hit.chunk_id, 0.0) for half in halves) / 2
        assert hit.score == pytest.approx(mean, abs=2e-6)


def test_ties_are_broken_by_chunk_id(birds: Whimbrel) -> None:
    text = "Exactly the same sentence about avocets stands in each of these."
    birds.add([{"id": f"twin{number}", "text": text} for number in range(130)], "ties")
    every = birds.search("avocets", "ties", mode="dense", top_k=500).hits
    assert len(every) == 130
    for mode in Mode:
        hits = birds.search("avocets", "ties", mode=mode, top_k=10).hits
        assert len({hit.score for hit in hits}) == 1
        assert [hit.chunk_id for hit in hits] == sorted(hit.chunk_id for hit in every)[:10], mode


# --- filters ---------------------------------------------------------------------------------------------------------

FILTERS: list[dict[str, Any]] = [
    {"site": "docs"},
    {"site": {"$ne": "docs"}},
    {"year": {"$gte": 2021}},
    {"year": {"$lt": 2022, "$gt": 2017}},
    {"year": 2024},
    {"year": "2021"},
    {"year": None},
    {"year": {"$exists": False}},
    {"tags": "sea"},
    {"tags": {"$contains": "mud"}},
    {"tags": {"$in": ["mud", "x"]}},
    {"tags": {"$nin": ["sea"]}},
    {"rare": True},
    {"weight": {"$lte": 0.05}},
    {"deep.er.x": 1},
    {"seen": {"$gte": "2024-01-01"}},
    {"$or": [{"site": "blog"}, {"rare": True}]},
    {"$not": {"$and": [{"site": "docs"}, {"tags": "mud"}]}},
    {"_title": "The osprey"},
]


def expected(birds: Whimbrel, where: dict[str, Any]) -> set[str]:
    tree = parse(where)
    own = {bird: {**METADATA[n], "_uri": f"text:{bird}", "_title": f"The {bird}"} for n, bird in enumerate(BIRDS)}
    return {f"text:{bird}" for bird, metadata in own.items() if tree is None or matches(tree, metadata)}


@pytest.mark.parametrize("where", FILTERS, ids=json.dumps)
def test_every_mode_filters_as_the_grammar_says(birds: Whimbrel, where: dict[str, Any]) -> None:
    wanted = expected(birds, where)
    for mode in Mode:
        hits = birds.search("the bird it its nest of", mode=mode, filter=where, top_k=100).hits
        found = {hit.uri for hit in hits} - {"text:long"}
        if mode is Mode.LEXICAL:
            unfiltered = birds.search("the bird it its nest of", mode=mode, top_k=100).hits
            assert found == wanted & {hit.uri for hit in unfiltered}
        else:
            assert found == wanted, mode


values = st.sampled_from(["docs", "blog", "", "2021", 2018, 2021, 2024, 2024.0, 0.05, True, False, None, "sea", "mud"])
fields = st.sampled_from(["year", "site", "tags", "rare", "weight", "seen", "deep.er.x", "none"])
conditions = st.recursive(
    st.builds(lambda field, value: {field: value}, fields, values)
    | st.builds(
        lambda field, op, value: {field: {op: value}}, fields, st.sampled_from(["$eq", "$ne", "$contains"]), values
    )
    | st.builds(
        lambda field, op, value: {field: {op: value}},
        fields,
        st.sampled_from(["$gt", "$gte", "$lt", "$lte"]),
        st.sampled_from([2018, 2021, 2024.5, 0.05, "2021", "docs"]),
    )
    | st.builds(
        lambda field, op, some: {field: {op: some}},
        fields,
        st.sampled_from(["$in", "$nin"]),
        st.lists(values, max_size=3),
    ),
    lambda inner: (
        st.builds(
            lambda op, some: {op: some}, st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3)
        )
        | st.builds(lambda one: {"$not": one}, inner)
    ),
    max_leaves=5,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=conditions)
def test_dense_and_lexical_agree_with_the_grammar_on_any_filter(birds: Whimbrel, where: dict[str, Any]) -> None:
    try:
        wanted = expected(birds, where)
    except BadFilter:
        with pytest.raises(BadFilter):
            birds.search("x", filter=where)
        return
    dense = birds.search("bird", mode="dense", filter=where, top_k=100).hits
    assert {hit.uri for hit in dense} - {"text:long"} == wanted
    words = " ".join(BIRDS)  # each note has one of them
    lexical = birds.search(words, mode="lexical", filter=where, top_k=100).hits
    assert {hit.uri for hit in lexical} - {"text:long"} == wanted


# --- positions -------------------------------------------------------------------------------------------------------


def test_min_position_waits_for_ones_own_write(birds: Whimbrel) -> None:
    for number in range(3):
        position = birds.add([{"id": f"n{number}", "text": f"The phalarope number{number} spins."}], "own", wait="job")[
            "position"
        ]
        found = birds.search(f"phalarope number{number}", "own", min_position=position, top_k=1)
        assert found.position >= position
        assert (found.hits[0].uri, found.degraded) == (f"text:n{number}", []), "also where the collection is new"
    with pytest.raises(BadQuery, match="ends at"):
        birds.search("x", "own", min_position=10**9)


def test_a_filter_holds_for_what_a_hit_is_now_though_the_views_lag(birds: Whimbrel) -> None:
    birds.add([{"id": "1", "text": "Salaries.", "metadata": {"public": True}}], "relabelled")
    owner, birds.owner = birds.owner, None
    assert owner is not None
    owner.stop()
    with birds.catalog.write() as connection:
        found = collections.find(connection, "relabelled")
        key = listing.resolve(connection, found, "1")
        sources.relabel(connection, found.id, [(key, "", {"public": False})])
    for mode in Mode:
        wrong = birds.search("salaries", "relabelled", mode=mode, filter={"public": True})
        assert (wrong.hits, bool(wrong.degraded)) == ([], True)
    birds.own()
    birds.wait_for_head("relabelled")
    assert len(birds.search("salaries", "relabelled", filter={"public": False}).hits) == 1


def test_a_position_that_is_not_reached_says_so(birds: Whimbrel) -> None:
    class Short(Whimbrel):
        def own(self) -> bool:
            return False

    with Short(home=birds.home.path, **{"search.timeout_s": 0.3}) as other:
        birds.add([{"id": "1", "text": "A first text."}], "stuck")
        birds.own()
        owner, birds.owner = birds.owner, None
        assert owner is not None
        owner.stop()
        try:
            job = birds.start_add([{"id": "2", "text": "A second text."}], "stuck")
            deleted = other.delete(["1"], "stuck")
            with pytest.raises(WaitTimeout) as raised:
                other.search("text", "stuck", min_position=deleted["position"])
            assert (raised.value.status, "safe" in raised.value.hint) == (504, True)
            found = birds.search("first text", "stuck")  # with its patience, on a busy machine
            assert found.hits == [], "deleted is not found, though both views still have it"
            assert found.position < deleted["position"]
            assert sorted(said.split(":")[0] for said in found.degraded) == ["lexicon", "store"]
            assert "1 changes behind" in found.degraded[0]
        finally:
            birds.finish(job, wait="all", timeout_s=DEADLINE_S)
    assert [hit.uri for hit in birds.search("text", "stuck").hits] == ["text:2"]
    verified(birds, "stuck")


def test_deleted_rows_in_a_lagging_view_take_no_places(birds: Whimbrel) -> None:
    texts = [{"id": f"d{number}", "text": f"The dotterel sits still. {number}"} for number in range(150)]
    birds.add([*texts, {"id": "kept", "text": "A plain sentence on one dotterel."}], "lagging")
    birds.own()
    owner, birds.owner = birds.owner, None
    assert owner is not None
    owner.stop()
    birds.delete([text["id"] for text in texts], "lagging")
    for mode in Mode:
        hits = birds.search("The dotterel sits still.", "lagging", mode=mode, top_k=5).hits
        assert [hit.uri for hit in hits] == ["text:kept"], mode
    birds.own()
    at = head(birds, "lagging")
    until(lambda: birds.search("dotterel", "lagging").position == at, "the views")


# --- requests that are wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"query": ""}, BadQuery),
        ({"query": " \n\t "}, BadQuery),
        ({"query": "x" * 100_000}, BadQuery),
        ({"query": "half a \ud800", "mode": "lexical"}, BadQuery),
        ({"query": "x", "top_k": 0}, BadQuery),
        ({"query": "x", "top_k": -1}, BadQuery),
        ({"query": "x", "top_k": 10_000}, BadQuery),
        ({"query": "x", "threshold": 1.5}, BadQuery),
        ({"query": "x", "threshold": float("nan")}, BadQuery),
        ({"query": "x", "mode": "psychic"}, BadQuery),
        ({"query": "x", "collection": "none-such"}, CollectionNotFound),
        ({"query": "x", "collection": "no/such\0name"}, CollectionNotFound),
        ({"query": "x", "filter": {"year": {"$near": 3}}}, BadFilter),
        ({"query": "x", "filter": ["year"]}, BadFilter),
        ({"query": "x", "filter": {"$or": {}}}, BadFilter),
        ({"query": "x", "filter": {"year": {"$in": 3}}}, BadFilter),
        ({"query": "x", "filter": {"year": float("nan")}}, BadFilter),
        ({"query": "x", "filter": {"$or": [{"a": n} for n in range(5_000)]}}, BadFilter),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)
def test_a_wrong_request_has_a_named_error(birds: Whimbrel, request_: dict[str, Any], error: type[BadQuery]) -> None:
    with pytest.raises(error) as raised:
        birds.search(**request_)
    assert raised.value.status == (404 if error is CollectionNotFound else 422)
    assert raised.value.hint
    assert len(str(raised.value)) < 1_000


@pytest.mark.parametrize(
    "query",
    [
        "?!.,",
        "the of and",
        'a "quoted AND (unbalanced OR -word*',
        "日本語の質問",
        "\0 whimbrel\x07",
        "\u202e🐦" * 50,
        "word " * 1_500,
    ],
    ids=["marks", "stop words", "operators", "other script", "control characters", "signs", "long"],
)
@pytest.mark.parametrize("mode", list(Mode))
def test_any_words_are_a_query(birds: Whimbrel, query: str, mode: Mode) -> None:
    found = birds.search(query, mode=mode)
    assert found.degraded == []
    assert all(isinstance(hit, Hit) for hit in found.hits)


def test_an_empty_collection_answers_with_nothing(birds: Whimbrel) -> None:
    birds.create_collection("empty")
    for mode in Mode:
        found = birds.search("anything", "empty", mode=mode)
        assert (found.hits, found.position) == ([], 0)


def test_searches_at_once_give_what_each_gives_alone(birds: Whimbrel) -> None:
    alone = {bird: [hit.chunk_id for hit in birds.search(ABOUT[bird]).hits] for bird in BIRDS}
    wrong: list[str] = []

    def work(bird: str) -> None:
        for _ in range(5):
            found = birds.search(ABOUT[bird])
            if [hit.chunk_id for hit in found.hits] != alone[bird] or found.degraded:
                wrong.append(bird)

    threads = [threading.Thread(target=work, args=(bird,)) for bird in BIRDS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert wrong == []

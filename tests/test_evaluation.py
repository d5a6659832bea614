"""Evaluating: what is read, what the measures are, when a difference is real, and the whole of it by command."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import Shell
from whimbrel.app import Whimbrel
from whimbrel.errors import BadInput, BadQuery, PathNotFound, WhimbrelError
from whimbrel.evaluation import METRICS, compare, evaluate, read_judged, read_report
from whimbrel.judging.compare import difference
from whimbrel.judging.metrics import measures

# --- measures --------------------------------------------------------------------------------------------------------


def test_measures_of_examples_done_by_hand() -> None:
    found = measures(["x", "a", "y", "b"], {"a": 1, "b": 1, "c": 1})
    best = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert found["ndcg@10"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / best)
    assert found["recall@100"] == pytest.approx(2 / 3)
    assert found["mrr@10"] == pytest.approx(1 / 2)
    graded = measures(["low", "high"], {"low": 1, "high": 3, "none": 0})
    assert graded["ndcg@10"] == pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)))
    assert measures(["low", "high"], {"low": 1, "high": 3}, min_grade=2) == {
        "ndcg@10": graded["ndcg@10"],  # takes every grade as it is
        "recall@100": 1.0,
        "mrr@10": 0.5,
    }


@pytest.mark.parametrize("ranking", [[], ["x"], [f"x{i}" for i in range(10)] + ["a"]])
def test_what_is_not_found_in_time_counts_nothing(ranking: list[str]) -> None:
    found = measures(ranking, {"a": 1})
    assert (found["ndcg@10"], found["mrr@10"]) == (0, 0)
    assert found["recall@100"] == ("a" in ranking)
    assert measures([f"x{i}" for i in range(100)] + ["a"], {"a": 1})["recall@100"] == 0


def plainly(ranking: Sequence[str], grades: Mapping[str, int]) -> dict[str, float]:
    """The definitions once more, as loops."""
    gained = ideal = 0.0
    for place in range(min(10, len(ranking))):
        gained += grades.get(ranking[place], 0) / (math.log(place + 2) / math.log(2))
    for place, grade in enumerate(sorted(grades.values())[::-1]):
        if place < 10:
            ideal += grade / (math.log(place + 2) / math.log(2))
    relevant = [document for document in grades if grades[document] > 0]
    found = [document for document in relevant if document in ranking[0:100]]
    first = 0.0
    for place in range(min(10, len(ranking)) - 1, -1, -1):
        if ranking[place] in relevant:
            first = 1 / (place + 1)
    return {
        "ndcg@10": gained / ideal if ideal else 0.0,
        "recall@100": len(found) / len(relevant) if relevant else 0.0,
        "mrr@10": first,
    }


names = st.integers(0, 150).map(str)


@given(st.lists(names, unique=True, max_size=130), st.dictionaries(names, st.integers(0, 3), max_size=30))
def test_measures_agree_with_a_plain_implementation(ranking: list[str], grades: dict[str, int]) -> None:
    found = measures(ranking, grades)
    assert found == pytest.approx(plainly(ranking, grades))
    assert all(0 <= value <= 1 for value in found.values())
    best = sorted(grades, key=lambda name: -grades[name])
    if any(grades.values()):
        assert measures(best, grades)["ndcg@10"] == pytest.approx(1)


# --- reading ---------------------------------------------------------------------------------------------------------

CORPUS = [
    {"_id": "tern", "title": "The arctic tern", "text": "It migrates from pole to pole and sees two summers a year."},
    {"_id": "curlew", "title": "The curlew", "text": "Its long bill curves downward; it nests in meadows."},
    {"_id": "gannet", "text": "The gannet dives into the sea from thirty metres to catch fish."},
    {"_id": "title only", "title": "Notes on the migration of waders", "text": ""},
    {"_id": "blank", "title": "", "text": " \n"},
]
QUERIES = [
    {"_id": "q1", "text": "Which bird migrates from pole to pole?"},
    {"_id": "q2", "text": "a bird that dives for fish"},
    {"_id": "q3", "text": "waders that migrate"},
    {"_id": "unjudged", "text": "something else"},
]
QRELS = "query-id\tcorpus-id\tscore\nq1\ttern\t2\nq1\tcurlew\t0\nq2\tgannet\t1\nq3\ttitle only\t1\nq3\ttern\t-1\n"


def write(
    folder: Path,
    corpus: Sequence[Any] = CORPUS,
    queries: Sequence[Any] = QUERIES,
    qrels: str | None = QRELS,
    name: str = "qrels.tsv",
) -> Path:
    """A collection on disk; what is a string in it is written as it is."""
    folder.mkdir(exist_ok=True)
    for file, entries in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
        lines = [entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False) for entry in entries]
        (folder / file).write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    if qrels is not None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(qrels)
    return folder


@pytest.mark.parametrize("name", ["qrels.tsv", "qrels/test.tsv"])
@pytest.mark.parametrize("header", [True, False])
def test_a_collection_is_read_with_or_without_a_header(tmp_path: Path, name: str, header: bool) -> None:
    qrels = QRELS if header else QRELS.split("\n", 1)[1]
    judged = read_judged(write(tmp_path / "birds", qrels=qrels.replace("\n", "\r\n"), name=name))
    assert (judged.name, [document.id for document in judged.documents], list(judged.empty)) == (
        "birds",
        ["tern", "curlew", "gannet", "title only"],
        ["blank"],
    )
    assert judged.queries == {query["_id"]: query["text"] for query in QUERIES[:3]}
    assert judged.grades == {"q1": {"tern": 2, "curlew": 0}, "q2": {"gannet": 1}, "q3": {"title only": 1, "tern": 0}}


def test_only_queries_with_something_to_find_are_evaluated(tmp_path: Path) -> None:
    assert list(read_judged(write(tmp_path), min_grade=2).queries) == ["q1"]
    many = [{"_id": f"{i}", "text": f"query {i}"} for i in range(50)]
    write(tmp_path, queries=many, qrels="".join(f"{i}\ttern\t1\n" for i in range(50)))
    few, more = (list(read_judged(tmp_path, queries=n).queries) for n in (5, 20))
    assert (len(few), len(more)) == (5, 20)
    assert set(few) < set(more)
    assert list(read_judged(tmp_path, queries=1_000).queries) == [query["_id"] for query in many]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no JSON": ({"corpus": [*CORPUS, "{half"]}, "corpus.jsonl, line 6: no JSON object"),
    "a list": ({"queries": ["[]"]}, "queries.jsonl, line 1: no JSON object"),
    "no id": ({"corpus": [{"text": "x"}]}, "corpus.jsonl, line 1: `_id`"),
    "an id twice": ({"corpus": [*CORPUS, CORPUS[0]]}, "corpus.jsonl, line 6: the id 'tern' was given before"),
    "no text": ({"corpus": [{"_id": "tern"}]}, "corpus.jsonl, line 1: `text`"),
    "text that is none": ({"queries": [{"_id": "q1", "text": 5}]}, "queries.jsonl, line 1: `text`"),
    "another encoding": ({"corpus": [*CORPUS, '{"_id": "x", "text": "caf\udce9"}']}, "line 6: not in UTF-8"),
    "nothing in the corpus": ({"corpus": [{"_id": "tern", "text": " "}]}, "holds no document with a text"),
    "an empty corpus": ({"corpus": []}, "holds no document with a text"),
    "two columns": ({"qrels": "q1\ttern\n"}, "qrels.tsv, line 1: 2 columns"),
    "blanks, not tabs": ({"qrels": "q1 tern 1\n"}, "qrels.tsv, line 1: 1 columns"),
    "a grade in words": ({"qrels": "q1\ttern\t1\nq2\tgannet\tyes\n"}, "qrels.tsv, line 2: the grade"),
    "a fraction": ({"qrels": "q1\ttern\t1\nq2\tgannet\t0.5\n"}, "qrels.tsv, line 2: the grade"),
    "an unknown query": ({"qrels": "q1\ttern\t1\nq9\ttern\t1\n"}, "line 2: queries.jsonl has no query 'q9'"),
    "an unknown document": ({"qrels": "q1\tstork\t1\n"}, "line 1: corpus.jsonl has no document 'stork'"),
    "two opinions": ({"qrels": "q1\ttern\t1\nq1\ttern\t2\n"}, "line 2: another line gives"),
    "no judgement": ({"qrels": "query-id\tcorpus-id\tscore\n"}, "No query of"),
    "nothing relevant": ({"qrels": "q1\ttern\t0\n"}, "No query of"),
    "a query without words": (
        {"queries": [{"_id": "q1", "text": " "}], "qrels": "q1\ttern\t1\n"},
        "the judged query 'q1' has no text",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, case: str) -> None:
    files, said = WRONG[case]
    with pytest.raises(BadInput) as raised:
        read_judged(write(tmp_path / "birds", **files))
    assert said in raised.value.message
    assert raised.value.hint
    assert "migrates" not in str(raised.value)


@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl", "qrels.tsv"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    (write(tmp_path) / missing).unlink()
    with pytest.raises(PathNotFound, match=missing):
        read_judged(tmp_path)
    with pytest.raises(PathNotFound, match="none-such"):
        read_judged(tmp_path / "none-such")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"queries": 0}, BadInput),
        ({"queries": -3}, BadInput),
        ({"min_grade": 0}, BadInput),
        ({"min_grade": 3}, BadInput),
        ({"modes": []}, BadQuery),
        ({"modes": ["hybrid", "psychic"]}, BadQuery),
    ],
)
def test_wrong_options_are_refused_before_anything_is_done(
    tmp_path: Path, options: dict[str, Any], error: type[WhimbrelError]
) -> None:
    home = tmp_path / "home"
    with pytest.raises(error):
        evaluate(write(tmp_path / "birds"), home=home, **options)
    assert not home.exists()


# --- comparing -------------------------------------------------------------------------------------------------------


def test_equal_measurements_differ_by_nothing() -> None:
    same = [0.1, 0.5, 0.9, 0.0]
    found = difference(same, same)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_the_chance_is_that_of_all_swaps() -> None:
    before = [0.2, 0.4, 0.1, 0.9, 0.5, 0.3, 0.6, 0.7, 0.2]
    after = [0.5, 0.3, 0.4, 1.0, 0.6, 0.3, 0.9, 0.8, 0.1]
    found = difference(before, after)
    change = [b - a for a, b in zip(before, after, strict=True)]
    swaps = [sum(s * c for s, c in zip(signs, change, strict=True)) for signs in itertools.product((1, -1), repeat=9)]
    exact = sum(abs(total) >= abs(sum(change)) - 1e-9 for total in swaps) / len(swaps)
    assert found.p == pytest.approx(exact, abs=0.015)
    assert found.difference == pytest.approx(sum(change) / 9)
    assert found.low < found.difference < found.high
    back = difference(after, before)
    assert back.difference == -found.difference
    assert back.p == found.p


def test_a_steady_gain_is_real_and_a_wavering_one_is_not() -> None:
    chance = random.Random(3)
    before = [chance.random() * 0.8 for _ in range(2_000)]
    better = difference(before, [value + 0.02 + 0.02 * chance.random() for value in before])
    assert better.p < 0.001
    assert 0.02 < better.low < better.high < 0.04
    wavering = difference(before[:40], [value + chance.choice([-0.2, 0.2]) for value in before[:40]])
    assert wavering.low < 0 < wavering.high
    assert wavering.p > 0.05
    assert difference(before, before[::-1]) == difference(before, before[::-1])


def per_query(values: Mapping[str, float], modes: Sequence[str] = ("hybrid",)) -> dict[str, Any]:
    return {mode: {metric: dict(values) for metric in METRICS} for mode in modes}


def test_only_what_both_have_is_compared() -> None:
    found = compare(
        per_query({"a": 0.5, "b": 0.5, "c": 0.1}, ["hybrid", "dense"]), per_query({"b": 1, "c": 0.6, "d": 0})
    )
    assert (found.queries, found.left_out, list(found.modes)) == (2, 2, ["hybrid"])
    assert found.modes["hybrid"]["mrr@10"].difference == pytest.approx(0.5)
    with pytest.raises(BadInput, match="no mode in common"):
        compare(per_query({"a": 1}, ["dense"]), per_query({"a": 1}))
    with pytest.raises(BadInput, match="no query in common"):
        compare(per_query({"a": 1}), per_query({"b": 1}))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"per_query": {}}', '{"per_query": {"hybrid": {"ndcg@10": {"q": "0.5"}}}}', "\x00"]
)
def test_a_report_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "A.json"
    with pytest.raises(PathNotFound):
        read_report(path)
    path.write_text(text)
    with pytest.raises(BadInput):
        read_report(path)


# --- the whole -------------------------------------------------------------------------------------------------------


def test_a_document_is_as_good_as_its_best_chunk(tmp_path: Path) -> None:
    filler = "\n\n".join(f"In chapter {n} the river rises, and the town builds walls of stone." for n in range(120))
    long = {"_id": "long", "title": "A chronicle", "text": f"{filler}\n\nThe heron stood on the clock tower."}
    short = [{"_id": f"s{n}", "text": f"The clock of house number {n} is slow."} for n in range(30)]
    folder = write(
        tmp_path / "c", [long, *short], [{"_id": "q", "text": "the heron on the clock tower"}], "q\tlong\t1\n"
    )
    home = tmp_path / "home"
    found = evaluate(folder, home=home)
    assert found.chunks > len(found.modes) + 31
    assert {mode: result.values["mrr@10"]["q"] for mode, result in found.modes.items()} == {
        "hybrid": 1,
        "dense": 1,
        "lexical": 1,
    }
    with Whimbrel(home) as kept:
        counts = kept.status()["collections"][0]["documents"]
    assert counts["indexed"] == found.documents == 31
    again = evaluate(folder, home=home, modes=["lexical"])
    assert again.per_query["lexical"] == found.per_query["lexical"]


def test_the_command_prints_the_figures_and_leaves_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "birds")
    (tmp_path / "temporary").mkdir()
    shell = Shell(tmp_path / "home", TMPDIR=str(tmp_path / "temporary"))
    ran = shell.run("eval", str(folder), "--json")
    report = ran.json
    assert {"documents": 5, "queries": 3}.items() <= report.items()
    assert {mode: list(figures) for mode, figures in report["modes"].items()} == {
        mode: ["ndcg@10", "recall@100", "mrr@10"] for mode in ("hybrid", "dense", "lexical")
    }
    assert report["modes"]["hybrid"] == {"ndcg@10": 1.0, "recall@100": 1.0, "mrr@10": 1.0}
    assert report["empty"] == 1
    assert not list((tmp_path / "temporary").glob("whimbrel*"))
    assert not shell.home.exists()

    (tmp_path / "A.json").write_text(ran.out)
    few, people, wrong, absent, unknown = shell.several(
        ["eval", str(folder), "--modes", "lexical", "--queries", "2", "--compare", str(tmp_path / "A.json"), "--json"],
        ["eval", str(folder), "--modes", "lexical,dense", "--min-grade", "2"],
        ["eval", str(folder), "--modes", "lexical,telepathy", "--json"],
        ["eval", str(tmp_path / "absent"), "--json"],
        ["eval", str(folder), "--compare", str(tmp_path / "B.json"), "--json"],
    )
    assert list(few.json["modes"]) == ["lexical"]
    assert few.json["queries"] == few.json["compared"]["queries"] == 2
    assert set(few.json["compared"]["modes"]["lexical"]["ndcg@10"]) == {
        "before",
        "after",
        "difference",
        "low",
        "high",
        "p",
    }
    assert "birds: 5 documents, 1 queries." in people.out
    assert [line.split()[0] for line in people.out.splitlines()[2:]] == ["lexical", "dense"]
    assert [(one.status, one.json["error"]) for one in (wrong, absent, unknown)] == [
        (2, "BadQuery"),
        (2, "PathNotFound"),
        (2, "PathNotFound"),
    ]


@pytest.mark.slow
def test_a_real_collection_is_searched_better_by_both_halves_than_by_one(data_dir: Path) -> None:
    found = evaluate(data_dir / "ir" / "cranfield")
    means = {mode: result.mean("ndcg@10") for mode, result in found.modes.items()}
    assert (found.documents, found.queries, found.empty, found.language) == (1_400, 225, 2, "en")
    assert means["hybrid"] > 0.424
    assert means["hybrid"] > max(means["dense"], means["lexical"])

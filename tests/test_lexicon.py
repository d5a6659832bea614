"""The lexicon: what is found, what is kept through crashes, and what goes when it is erased."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.filter_strategies import filters, metadatas

from whimbrel.domain import Position
from whimbrel.errors import AlreadyOwned, BadFilter, BadInput, Conflict, DiskFull, HomeError, ViewDamaged
from whimbrel.filters import Compare, Filter, Op, matches, parse
from whimbrel.lexicon import LexicalRows, TantivyLexicon, layout
from whimbrel.lexicon.analysis import Analysis
from whimbrel.owner.targets import LexiconTarget
from whimbrel.testing import passes, strategies


def at(position: int) -> Position:
    return Position("epoch", position, f"stamp{position}")


def rows(
    texts: Mapping[str, str],
    *,
    titles: Mapping[str, str] | None = None,
    metadata: Mapping[str, Mapping[str, Any]] | None = None,
    digest: str = "",
) -> LexicalRows:
    ids = list(texts)
    return LexicalRows(
        ids,
        [(titles or {}).get(i, "") for i in ids],
        [texts[i] for i in ids],
        [(metadata or {}).get(i, {}) for i in ids],
        [digest or f"digest of {i}" for i in ids],
    )


@pytest.fixture
def lexicon(tmp_path: Path) -> Iterator[TantivyLexicon]:
    made = TantivyLexicon.create(tmp_path / "lexicon")
    yield made
    made.close()


def found(lexicon: TantivyLexicon, query: str, k: int = 10, where: Filter | None = None) -> list[str]:
    return list(lexicon.search(query, k, where).ids)


# --- rows and position -----------------------------------------------------------------------------------------------


def test_rows_are_found_with_their_position(lexicon: TantivyLexicon) -> None:
    assert (lexicon.position(), lexicon.count(), lexicon.ids()) == (None, 0, [])
    assert found(lexicon, "whales") == []
    lexicon.apply(rows({"a": "A whale swims.", "b": "A bird flies."}), [], at(7))
    assert lexicon.position() == at(7)
    assert lexicon.count() == 2
    assert dict(lexicon.scan()) == {"a": "digest of a", "b": "digest of b"}
    assert found(lexicon, "whales swimming") == ["a"]


def test_an_upsert_replaces_and_a_delete_removes(lexicon: TantivyLexicon) -> None:
    lexicon.apply(rows({"a": "whale", "b": "bird"}), [], at(1))
    lexicon.apply(rows({"a": "owl"}, digest="new"), ["b", "unknown"], at(2))
    assert found(lexicon, "whale bird") == []
    assert found(lexicon, "owl") == ["a"]
    assert list(lexicon.scan()) == [("a", "new")]
    lexicon.apply(None, [], at(3))
    assert (lexicon.position(), lexicon.count()) == (at(3), 1)
    twice = LexicalRows(["c", "c"], ["", ""], ["first", "last"], [{}, {}], ["1", "2"])
    lexicon.apply(twice, ["a"], at(4))
    assert list(lexicon.scan()) == [("c", "2")]


def test_it_is_there_after_reopening(lexicon: TantivyLexicon) -> None:
    lexicon.apply(rows({"a": "whale"}), [], at(1))
    lexicon.close()
    again = TantivyLexicon.open(lexicon.path)
    assert (found(again, "whale"), again.position()) == (["a"], at(1))
    with pytest.raises(HomeError):
        again.apply(None, [], at(2))
    with pytest.raises(Conflict):
        TantivyLexicon.create(lexicon.path)
    again.drop()
    assert not TantivyLexicon.exists(lexicon.path)


def test_awkward_ids_are_kept_apart(lexicon: TantivyLexicon) -> None:
    ids = ["", " ", "a", "A", 'a"b', "a\\b", "a b", "id:1 OR id:2", "é", "e\u0301", "\U0001f426", "x" * 5_000, "\0"]
    lexicon.apply(rows(dict.fromkeys(ids, "word")), [], at(1))
    assert sorted(lexicon.ids()) == sorted(ids)
    assert sorted(found(lexicon, "word", 50)) == sorted(ids)
    assert sorted(lexicon.search("word", 50, ids=["a", 'a"b', "gone"]).ids) == ["a", 'a"b']
    lexicon.apply(None, ids[1:], at(2))
    assert lexicon.ids() == [""]


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(BadInput):
        LexicalRows(["a"], [], ["x"], [{}], ["d"])


# --- search ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    ["whale", '"whale', "whale AND", "NOT whale", "-whale", "whale:", "(whale", "id:b whale", "whale^9", "whale*",
     "wh?le whale", "[a TO whale]", "whale \ud800", "WHALE", "Wh\u0430le whale"],
)  # fmt: skip
def test_nothing_in_a_query_is_an_operator(lexicon: TantivyLexicon, query: str) -> None:
    lexicon.apply(rows({"a": "a whale", "b": "a bird"}), [], at(1))
    assert found(lexicon, query) == ["a"]


@pytest.mark.parametrize("query", ["", "   ", "?!…", "\0", "🐦", "_", "ǂ" * 500])
def test_a_query_without_known_words_finds_nothing(lexicon: TantivyLexicon, query: str) -> None:
    lexicon.apply(rows({"a": "a whale"}), [], at(1))
    assert found(lexicon, query) == []


def test_long_queries_are_answered(lexicon: TantivyLexicon) -> None:
    lexicon.apply(rows({f"r{i}": f"word{i} word{i + 1}" for i in range(3_000)}), [], at(1))
    long = " ".join(f"word{i % 3_000}" for i in range(11_000))
    assert len(long) > 90_000
    result = lexicon.search(long, 10)
    assert len(result.ids) == 10
    assert found(lexicon, "nothing " * 10_000 + "word77", 1) in (["r76"], ["r77"])


def test_stop_words_count_only_where_there_is_nothing_else(lexicon: TantivyLexicon) -> None:
    lexicon.apply(rows({"a": "To be, or not to be", "b": "a whale", "c": "that is the question"}), [], at(1))
    assert found(lexicon, "to be or not to be") == ["a"]
    assert found(lexicon, "is that a whale") == ["b"]


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("What's the whale's weight, and why don't you know?", {"whale": 1, "weight": 1, "know": 1}),
        ("I’d like what I’m told they’ve seen", {"like": 1, "told": 1, "seen": 1}),
        ("Which of these can we do?", {"which": 1, "of": 1, "these": 1, "can": 1, "we": 1, "do": 1}),
        (
            "vitamin C, O'Reilly, rock 'n' roll",
            {"vitamin": 1, "c": 1, "o": 1, "reilli": 1, "rock": 1, "n": 1, "roll": 1},
        ),
        ("whales and whales", {"whale": 2}),
    ],
)
def test_a_question_is_searched_for_its_subject(lexicon: TantivyLexicon, query: str, terms: dict[str, int]) -> None:
    assert Analysis("en").query_terms(query) == terms
    assert lexicon.words(query) == sum(terms.values())


@pytest.mark.parametrize(
    ("text", "queries"),
    [
        (
            "call max_batch_size() first",
            ["max_batch_size", "maxBatchSize", "batch size", "MAX_BATCH_SIZE"],
        ),
        ("class HTTPServerError", ["HTTPServerError", "server error", "http_server_error", "httpservererror"]),
        ("set getUserName2 here", ["getUserName2", "user", "get_user_name2"]),
        ("both APIs and PDFs", ["API", "pdf"]),
        ("東京都に住んでいます", ["東京", "京都", "東京都", "都", "住んで"]),
        ("我们喜欢自然语言处理。", ["自然语言", "处理", "喜欢", "自然語言处理"]),
        ("한국어를 공부합니다", ["한국어", "공부"]),
        ("ｶﾞｲﾄﾞ and ＡＰＩ", ["ガイド", "api"]),
        ("ภาษาไทยง่าย", ["ไทย"]),
        ("Ünïcödé café", ["unicode", "cafe\u0301", "CAFÉ"]),
        ("running quickly", ["run", "ran quick", "runs"]),
        ("sha 3f786850e387550fdab836ed7e6dc881de23001b", ["3f786850e387550fdab836ed7e6dc881de23001b"]),
    ],
)
def test_words_are_found_in_their_forms(lexicon: TantivyLexicon, text: str, queries: Sequence[str]) -> None:
    lexicon.apply(rows({"a": text, "b": "something else 一"}), [], at(1))
    assert {query: found(lexicon, query) for query in queries} == {query: ["a"] for query in queries}


def test_a_language_has_its_own_stems(tmp_path: Path) -> None:
    lexicon = TantivyLexicon.create(tmp_path / "de", language="de")
    lexicon.apply(rows({"a": "Die Häuser der Städte"}), [], at(1))
    assert found(lexicon, "haus") == found(lexicon, "Häusern") == ["a"]
    with pytest.raises(ViewDamaged, match="analysed as"):
        TantivyLexicon.open(tmp_path / "de", language="en")


def test_a_score_is_a_share_between_0_and_1(lexicon: TantivyLexicon) -> None:
    lexicon.apply(
        rows(
            {"all": "whale " * 50, "half": "whale and other things", "none": "bird", "titled": "x"},
            titles={"all": "whale", "titled": "Of whales"},
        ),
        [],
        at(1),
    )
    alone = lexicon.search("whale", 10)
    assert alone.ids[0] == "all"
    assert set(alone.ids) == {"all", "half", "titled"}
    assert 0.7 < alone.scores[0] < 1
    assert np.all(np.diff(alone.scores) <= 0)
    beside_unknown = lexicon.search("whale zyzzyva", 10)
    assert beside_unknown.scores[0] < alone.scores[0] / 1.5
    assert lexicon.search("whale whale whale", 1).scores[0] == alone.scores[0]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("ab c", max_size=12), min_size=1, max_size=30), st.text("abc ", max_size=20))
def test_scores_never_leave_0_to_1(tmp_path: Path, texts: list[str], query: str) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        lexicon = TantivyLexicon.create(Path(folder) / "x", language="und")
        lexicon.apply(rows({f"{i}": text for i, text in enumerate(texts)}), [], at(1))
        scores = lexicon.search(query, 100).scores
        assert scores.dtype == np.float32
        assert np.all((scores > 0) & (scores <= 1))
        lexicon.close()


def test_ties_break_by_id_whatever_k(lexicon: TantivyLexicon) -> None:
    ids = [f"{i:03}" for i in range(200)]
    shuffled = random.Random(1).sample(ids, len(ids))
    for part in range(4):
        lexicon.apply(rows(dict.fromkeys(shuffled[part::4], "the same words")), [], at(part + 1))
    for k in (1, 7, 20, 200, 500):
        assert found(lexicon, "same words", k) == ids[:k]


# --- filters ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(strategies.foreign_metadatas, max_size=8), st.lists(strategies.filters, min_size=1, max_size=4))
def test_filters_mean_what_they_mean_in_every_store(
    tmp_path: Path, rowset: list[dict[str, Any]], raws: list[dict[str, Any]]
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        lexicon = TantivyLexicon.create(Path(folder) / "x")
        metadata = {f"{i}": row for i, row in enumerate(rowset)}
        lexicon.apply(rows(dict.fromkeys(metadata, "word"), metadata=metadata), [], at(1))
        for raw in raws:
            assert _columns(lexicon, parse(raw))[0] == [i for i, row in metadata.items() if passes(raw, row)]
        lexicon.close()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(metadatas, max_size=8), st.lists(filters, min_size=1, max_size=4))
def test_filters_agree_with_their_meaning(tmp_path: Path, rowset: list[dict[str, Any]], wheres: list[Filter]) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        lexicon = TantivyLexicon.create(Path(folder) / "x")
        metadata = {f"{i}": row for i, row in enumerate(rowset)}
        lexicon.apply(rows(dict.fromkeys(metadata, "word"), metadata=metadata), [], at(1))
        unfiltered = dict(zip(*_columns(lexicon, None), strict=True))
        for where in wheres:
            ids, scores = _columns(lexicon, where)
            assert ids == [i for i, row in metadata.items() if matches(where, row)]
            assert scores == [unfiltered[i] for i in ids]
        lexicon.close()


def _columns(lexicon: TantivyLexicon, where: Filter | None) -> tuple[list[str], list[float]]:
    result = lexicon.search("word", 100, where)
    return list(result.ids), [float(score) for score in result.scores]


def test_k_rows_come_whenever_k_rows_pass(lexicon: TantivyLexicon) -> None:
    texts = {f"{i:05}": "common words" for i in range(10_000)}
    metadata = {i: {"n": int(i), "tag": ["rare"] if int(i) % 1_000 == 999 else []} for i in texts}
    lexicon.apply(rows(texts, metadata=metadata), [], at(1))
    assert len(found(lexicon, "common", 10, parse({"tag": "rare"}))) == 10
    assert found(lexicon, "common", 10, parse({"n": {"$gt": 9_997.5}})) == ["09998", "09999"]
    assert found(lexicon, "common", 3, parse({"$not": {"n": {"$gte": 1}}})) == ["00000"]
    some = lexicon.search("common", 3, parse({"n": {"$gte": 5}}), ids=["00001", "00007", "unknown", "00006"])
    assert list(some.ids) == ["00006", "00007"]
    assert list(lexicon.search("common", 3, ids=[]).ids) == []


def test_long_strings_are_compared_whole(lexicon: TantivyLexicon) -> None:
    long = "é" * 16_000
    metadata = {"a": {"s": long}, "b": {"s": long + "x"}, "c": {"s": "é"}}
    lexicon.apply(rows(dict.fromkeys(metadata, "word"), metadata=metadata), [], at(1))
    assert found(lexicon, "word", where=Compare("s", Op.EQ, (long,))) == ["a"]
    assert found(lexicon, "word", where=Compare("s", Op.GT, ("é" * 15_000,))) == ["a", "b"]
    assert found(lexicon, "word", where=Compare("s", Op.LT, ("é" * 15_000,))) == ["c"]
    with pytest.raises(BadFilter):
        lexicon.search("word", 1, Compare("s", Op.GT, (long,)))


# --- several processes, crashes ---------------------------------------------------------------------------------------

WRITER = """
    import sys
    from pathlib import Path
    from whimbrel.domain import Position
    from whimbrel.lexicon import LexicalRows, TantivyLexicon

    lexicon = TantivyLexicon.open(Path(sys.argv[1]), writable=True)
    number = lexicon.position().position
    while number < int(sys.argv[2]):
        number += 1
        ids = [f"{i}" for i in range(number % 50 + 1)]
        rows = LexicalRows(ids, ids, [f"batch{number} " * 20] * len(ids), [{}] * len(ids), [f"{number}"] * len(ids))
        lexicon.apply(rows, [f"{i}" for i in range(len(ids), 50)], Position("epoch", number, f"stamp{number}"))
        print(number, flush=True)
        if number % 9 == 0:
            lexicon.maintain(share=0.0)
        if number % 14 == 0:
            assert lexicon.erase()
    sys.stdin.read()
"""


def write_elsewhere(path: Path, until: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(path), str(until)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_commits_of_another_process_are_seen_and_a_second_writer_is_refused(lexicon: TantivyLexicon) -> None:
    lexicon.apply(None, [], at(0))
    lexicon.close()
    with write_elsewhere(lexicon.path, 1) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        assert found(lexicon, "batch1") == ["0", "1"]
        with pytest.raises(AlreadyOwned):
            lexicon.apply(None, [], at(9))
        other.kill()
    assert lexicon.position() == at(1)
    lexicon.apply(None, ["0"], at(2))
    assert found(lexicon, "batch1") == ["1"]


def test_a_kill_leaves_one_whole_commit(lexicon: TantivyLexicon) -> None:
    lexicon.apply(rows({"0": "batch0 " * 20}, digest="0"), [], at(0))
    lexicon.close()
    chance = random.Random(4)
    before = 0
    for _ in range(5):
        with write_elsewhere(lexicon.path, 10**6) as other:
            assert other.stdout is not None
            assert other.stdout.readline()
            time.sleep(chance.uniform(0.0, 0.4))
            other.send_signal(signal.SIGKILL)
            printed = [int(line) for line in other.stdout.read().split()]
        position = lexicon.position()
        assert position is not None
        number = position.position
        assert position == at(number)
        assert number >= max(printed, default=before + 1)
        assert dict(lexicon.scan()) == {f"{i}": f"{number}" for i in range(number % 50 + 1)}
        assert sorted(found(lexicon, f"batch{number}", 100)) == sorted(lexicon.ids())
        before = number
    lexicon.apply(None, [], at(before + 1))
    assert lexicon.position() == at(before + 1)
    assert not list(lexicon.path.glob(".tmp*"))


# --- compaction and erasure -------------------------------------------------------------------------------------------


def test_scores_do_not_depend_on_the_past(tmp_path: Path) -> None:
    chance = random.Random(2)
    vocabulary = [f"w{i}" for i in range(60)]
    texts = {f"{i}": " ".join(chance.choices(vocabulary, k=chance.randint(3, 40))) for i in range(150)}
    fresh = TantivyLexicon.create(tmp_path / "fresh")
    fresh.apply(rows(texts), [], at(1))
    old = TantivyLexicon.create(tmp_path / "old")
    for number in range(30):
        ghosts = {f"ghost{number}-{i}": "w1 w2 w3 " * 30 for i in range(20)}
        old.apply(rows(ghosts | dict.fromkeys(chance.sample(list(texts), 20), "w7 w8")), [], at(number))
        old.apply(None, list(ghosts), at(number))
    for part in range(3):
        old.apply(rows(dict(list(texts.items())[part::3])), [], at(50 + part))
    old.maintain(share=0.0)
    assert old.position() == at(52)
    for query in ("w1 w7", "w3 w3 w44 w2", "w9 unknown"):
        ours, theirs = fresh.search(query, 150), old.search(query, 150)
        assert ours.ids == theirs.ids
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=2e-6)
    fresh.close()


def segments(lexicon: TantivyLexicon) -> set[str]:
    lexicon.close()
    return layout.segment_ids(lexicon.path)


async def test_at_rest_a_large_segment_is_written_again_for_many_deleted_rows_not_for_one(tmp_path: Path) -> None:
    target = LexiconTarget(tmp_path / "x", "en")
    await target.create()
    lexicon = target.lexicon
    ids = [f"{i}" for i in range(3_000)]
    lexicon.apply(rows(dict.fromkeys(ids, "word")), [], at(1))
    before = segments(lexicon)
    for position in range(2, 6):  # each commit leaves the place of the one before as a deleted document
        lexicon.apply(None, [], at(position))
    await target.settle()
    assert before <= segments(lexicon)
    lexicon.apply(None, ids[:1], at(6))
    await target.settle()
    assert before <= segments(lexicon)
    lexicon.apply(None, ids[1:60], at(7))
    await target.settle()
    assert not before & segments(lexicon)
    assert lexicon.count() == 2_940
    assert lexicon.position() == at(7)
    await target.close()


def test_erased_text_is_in_no_file(tmp_path: Path) -> None:
    lexicon = TantivyLexicon.create(tmp_path / "x")
    secrets = [f"{random.Random(i).getrandbits(400):0100x}" for i in range(30)]

    def present() -> set[str]:
        data = b"".join(f.read_bytes() for f in lexicon.path.iterdir())
        return {secret for secret in secrets if secret[:24].encode() in data}

    filler = {f"f{i}": f"filler number {i}" for i in range(300)}
    for number, secret in enumerate(secrets):
        part = dict(list(filler.items())[number * 10 : number * 10 + 10])
        lexicon.apply(rows({f"s{number}": secret} | part, metadata={f"s{number}": {"m": secret}}), [], at(number))
    gone = set(random.Random(5).sample(range(30), 12))
    lexicon.apply(None, [f"s{i}" for i in gone], at(99))
    assert present() & {secrets[i] for i in gone}, "the search of the files would find a secret"
    reader = TantivyLexicon.open(lexicon.path)
    assert lexicon.erase()
    assert not present() & {secrets[i] for i in gone}
    assert lexicon.erase()
    for each in (lexicon, reader):
        assert each.position() == at(99)
        assert sorted(each.ids()) == sorted([*filler, *(f"s{i}" for i in range(30) if i not in gone)])
        kept = next(i for i in range(30) if i not in gone)
        assert found(each, secrets[kept]) == [f"s{kept}"]
        assert found(each, "filler", where=Compare("m", Op.EQ, (secrets[kept],))) == []
        assert found(each, secrets[kept], where=Compare("m", Op.EQ, (secrets[kept],))) == [f"s{kept}"]


def test_searches_go_on_while_it_is_rewritten(lexicon: TantivyLexicon) -> None:
    texts = {f"{i}": f"whale {i}" for i in range(1_000)}
    for part in range(10):
        lexicon.apply(rows(dict(list(texts.items())[part::10])), [], at(part))
    stop = threading.Event()

    def keep_searching() -> int:
        searches = 0
        while not stop.is_set():
            assert len(lexicon.search("whale", 100).ids) == 100
            searches += 1
        return searches

    with ThreadPoolExecutor(2) as threads:
        searching = [threads.submit(keep_searching) for _ in range(2)]
        try:
            for i in range(5):
                lexicon.apply(None, [f"{i * 40 + j}" for j in range(3)], at(10 + i))
                lexicon.maintain(share=0.2 * (i % 2))
                lexicon.erase()
        finally:
            stop.set()
        assert all(future.result() > 0 for future in searching)
    assert lexicon.erase()
    assert lexicon.count() == 985


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["missing", "truncated", "overwritten"])
@pytest.mark.parametrize("what", ["*.idx", "*.term", "*.store", "*.fast", "*.fieldnorm", "meta.json"])
def test_damage_is_noticed(lexicon: TantivyLexicon, what: str, how: str) -> None:
    lexicon.apply(rows({f"{i}": f"whale {i}" for i in range(50)}), [], at(1))
    lexicon.close()
    file = next(lexicon.path.glob(what))
    size = file.stat().st_size
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        os.truncate(file, size // 2)
    else:
        file.write_bytes(b"\xff" * size)
    with pytest.raises(ViewDamaged):
        TantivyLexicon.open(lexicon.path, writable=True).search("whale", 10)


def test_one_changed_byte_is_found_by_a_check(lexicon: TantivyLexicon) -> None:
    lexicon.apply(rows({f"{i}": f"whale {i}" for i in range(50)}), [], at(1))
    lexicon.apply(None, ["3"], at(2))
    lexicon.close()
    lexicon.check()
    for file in [f for f in lexicon.path.iterdir() if len(f.name) > 32]:
        good = file.read_bytes()
        file.write_bytes(good[:5] + bytes([good[5] ^ 1]) + good[6:])
        with pytest.raises(ViewDamaged, match=file.name):
            lexicon.check()
        file.write_bytes(good)
    lexicon.check()


def test_a_folder_that_vanishes_under_an_open_index_is_noticed(lexicon: TantivyLexicon) -> None:
    lexicon.apply(rows({"a": "whale"}), [], at(1))
    lexicon.close()
    shutil.rmtree(lexicon.path)
    for call in (lexicon.position, lexicon.count, lexicon.ids, lambda: lexicon.search("whale", 1)):
        with pytest.raises(ViewDamaged):
            call()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_named_and_loses_nothing(small_disk: Path) -> None:
    lexicon = TantivyLexicon.create(small_disk / "x")
    chance = random.Random(3)
    applied = 0

    def fill() -> None:
        nonlocal applied
        while applied < 100:
            texts = {f"{applied}-{i}": f"{chance.getrandbits(4_000):x}" for i in range(500)}
            lexicon.apply(rows(texts), [], at(applied + 1))
            applied += 1

    with pytest.raises(DiskFull):
        fill()
    assert applied
    assert lexicon.position() == at(applied)
    assert lexicon.count() == applied * 500
    lexicon.close()


def test_a_folder_that_cannot_be_written_is_named(small_disk: Path) -> None:
    lexicon = TantivyLexicon.create(small_disk / "x")
    lexicon.apply(rows({"a": "whale"}), [], at(1))
    lexicon.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(HomeError):
        lexicon.apply(None, [], at(2))
    with pytest.raises(HomeError):
        lexicon.search("whale", 1)


# --- quality ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("collection", "floor"), [("cranfield", 0.385), ("cacm", 0.480), ("nfcorpus", 0.322)])
def test_retrieval_is_as_good_as_measured(tmp_path: Path, data_dir: Path, collection: str, floor: float) -> None:
    folder = data_dir / "ir" / collection
    corpus = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    judged: dict[str, dict[str, float]] = {}
    for line in (folder / "qrels.tsv").read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        if float(grade) > 0:
            judged.setdefault(query, {})[document] = float(grade)
    lexicon = TantivyLexicon.create(tmp_path / collection)
    lexicon.apply(
        rows({d["_id"]: d["text"] for d in corpus}, titles={d["_id"]: d.get("title") or "" for d in corpus}), [], at(1)
    )
    lexicon.close()
    gains = [_ndcg(lexicon.search(q["text"], 10).ids, judged[q["_id"]]) for q in queries if q["_id"] in judged]
    assert np.mean(gains) >= floor


def _ndcg(ids: Sequence[str], grades: Mapping[str, float], k: int = 10) -> float:
    discounts = 1 / np.log2(np.arange(2, k + 2))
    gained = np.array([grades.get(i, 0.0) for i in ids[:k]])
    ideal = np.array(sorted(grades.values(), reverse=True)[:k])
    return float((gained * discounts[: len(gained)]).sum() / (ideal * discounts[: len(ideal)]).sum())

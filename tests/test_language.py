"""Languages: found out from documents, analysed each in its own way, and never changed under a lexicon."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from languages import ABOUT_TERNS, QUESTIONS
from running import DEADLINE_S, head, until, verified
from whimbrel.answer.languages import NAMES, foreign
from whimbrel.answer.languages import language_of as asked_in
from whimbrel.app import Whimbrel
from whimbrel.catalog import collections
from whimbrel.catalog.collections import ViewRow
from whimbrel.domain import Mode, Position, ViewState
from whimbrel.errors import BadInput
from whimbrel.lexicon import LexicalRows, TantivyLexicon
from whimbrel.lexicon.analysis import Analysis, document_text, query_text
from whimbrel.lexicon.language import AUTO, checked, detect, language_of, uri_of

pytestmark = pytest.mark.timeout(120)

# --- finding it out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ABOUT_TERNS)
def test_a_language_is_told_from_a_paragraph(language: str) -> None:
    assert detect([ABOUT_TERNS[language]]) == language


def test_the_most_text_decides_within_a_script_and_each_script_counts() -> None:
    assert detect([ABOUT_TERNS["de"], ABOUT_TERNS["de"], ABOUT_TERNS["en"]]) == "de"
    assert detect([ABOUT_TERNS["ru"], ABOUT_TERNS["en"], ABOUT_TERNS["ru"]]) == "ru+en"
    assert detect([ABOUT_TERNS["en"]] * 20 + [ABOUT_TERNS["ru"]]) == "en"


def test_too_little_tells_nothing() -> None:
    for texts in ([], [""], ["Ein Vogel."], ["12345 " * 200], ["🐦" * 500], ["```python\n" + "def f(x): pass\n" * 90]):
        assert detect(texts) is None, texts


def test_a_sentence_tells_where_the_script_does() -> None:
    assert detect(["数据库每天凌晨三点备份。备份保留三十天。"]) is None
    assert detect(["数据库每天凌晨三点备份。备份保留三十天。超过三十天的备份会自动删除。"]) == "zh"
    assert detect(["データベースのバックアップは毎晩三時に実行されます。"]) == "ja"
    assert detect(["데이터베이스 백업은 매일 밤 세 시에 실행됩니다."]) == "ko"
    assert detect(["Резервная копия базы данных делается ночью."]) is None  # Cyrillic is that of many


def test_code_among_prose_does_not_vote() -> None:
    code = "```js\n" + "function nah(und) { return der(die, das) }\n" * 60 + "```\n"
    assert detect([f"# `der_die_das`\n\n{code}\n{ABOUT_TERNS['en']}\n\nSee https://example.org/der/die/das."]) == "en"


@given(st.lists(st.text(max_size=300), max_size=5))
def test_any_text_may_come(texts: list[str]) -> None:
    found = detect(texts)
    assert found is None or checked(found) == found


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("de", "de"),
        (" DE ", "de"),
        ("pt-BR", "pt"),
        ("zh_TW", "zh"),
        ("ru+en", "ru+en"),
        ("AUTO", "auto"),
        ("gsw", "gsw"),
    ],
)
def test_a_language_is_kept_as_its_code(said: str, kept: str) -> None:
    assert checked(said) == kept
    assert language_of(uri_of(kept), "xx") == kept


@pytest.mark.parametrize(
    "said", ["", "german", "d", "de+fr", "de+", "1", "e n", "tantivy:de", "ru+en+el+ja+th", "auto+de"]
)
def test_what_is_no_language_is_refused(said: str) -> None:
    with pytest.raises(BadInput) as raised:
        checked(said)
    assert raised.value.hint


def test_a_view_without_a_language_is_in_its_collections() -> None:
    assert language_of("tantivy:", "de") == "de"
    assert language_of("tantivy:", AUTO) == "en"


# --- questions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "spoken", "named"),
    [
        ("Wie weit fliegt die Seeschwalbe?", "en", "German"),
        ("Wie weit fliegt die Seeschwalbe?", "de", ""),
        ("Как далеко летит крачка?", "en", "Russian"),
        ("Як далеко летить крячок?", "en+uk", ""),
        ("北極燕鷗飛多遠?", "en", "Chinese"),
        ("日本国憲法第九条", "ja", ""),
        ("キョクアジサシ", "zh", "Japanese"),
        ("Որքա՞ն հեռու է թռչում", "en", "Armenian"),
        ("Arctic tern", "de", ""),
        ("How far does the tern fly?", "uk", ""),
    ],
)
def test_a_question_is_foreign_where_that_is_plain(question: str, spoken: str, named: str) -> None:
    assert foreign(question, spoken) == named


@given(st.text(st.characters(categories=["Lo", "Ll", "Lm"]), max_size=20))
@example("\U00017000\U00017001")  # Tangut: letters for which Python has no name
def test_a_question_of_any_letters_may_come(question: str) -> None:
    assert asked_in(question) in (None, *NAMES)
    foreign(question, "en")


# --- analysing -------------------------------------------------------------------------------------------------------


def found(folder: Path, language: str, texts: dict[str, str], query: str) -> list[str]:
    lexicon = TantivyLexicon.create(folder / f"{language}-{time.monotonic_ns()}", language=language)
    ids = list(texts)
    rows = LexicalRows(ids, [""] * len(ids), [texts[i] for i in ids], [{}] * len(ids), [""] * len(ids))
    lexicon.apply(rows, [], Position("epoch", 1, "stamp"))
    try:
        return list(lexicon.search(query, 10).ids)
    finally:
        lexicon.close()


@pytest.mark.parametrize("language", ABOUT_TERNS)
def test_a_question_finds_the_text_in_its_language(tmp_path: Path, language: str) -> None:
    assert found(tmp_path, language, ABOUT_TERNS, QUESTIONS[language])[0] == language


@pytest.mark.parametrize(
    ("language", "text", "query"),
    [
        ("ru", "Гнёзда лежат на земле", "гнезда"),
        ("ru", "Установите servers и clients", "server client"),
        ("ja", "複数の servers を起動します", "server"),
        ("en", "Donau\u00addampf\u00adschiff", "Donaudampfschiff"),
        ("ar", "مُحَمَّد", "محمد"),
        ("ar", "كتـــاب", "كتاب"),
        ("he", "שָׁלוֹם", "שלום"),
        ("hi", "हिन्दी", "हिन्दी"),
        ("fr", "L’été, l'œuvre", "été œuvre"),
        ("en", "x\u0303y", "x\u0303y"),
        ("de", "Die Straßen", "STRASSE"),
        ("th", "ประเทศไทยมีอากาศร้อน", "อากาศ"),
        ("zh", "数据库的备份与恢复", "备份数据库"),
        ("ja", "サーバーを起動する", "サーバー"),
        ("ko", "데이터베이스를 복구했습니다", "데이터베이스 복구"),
    ],
)
def test_what_is_written_in_two_ways_is_found_in_both(tmp_path: Path, language: str, text: str, query: str) -> None:
    assert found(tmp_path, language, {"a": text, "b": "something else altogether"}, query) == ["a"]


def test_a_word_with_a_joined_letter_stays_one() -> None:
    assert Analysis("hi").query_terms("हिन्दी").total() == 1
    assert Analysis("en").query_terms("co\u00adoperate").total() == 1


@given(st.text(max_size=200), st.sampled_from(["en", "ja", "ru+en", "und", "ta", "tr"]))
def test_every_term_of_a_query_is_one_of_the_same_text(text: str, language: str) -> None:
    analysis = Analysis(language)
    terms = set(analysis.analyser.analyze(document_text(text)))
    assert set(analysis.query_terms(text)) <= terms
    assert set(analysis.analyser.analyze(query_text(text))) <= terms


# --- collections -----------------------------------------------------------------------------------------------------


def lexicons(whimbrel: Whimbrel, name: str) -> tuple[str, list[str]]:
    """The uri of the live lexicon, and those of others that follow the log."""
    with whimbrel.catalog.read() as connection:
        collection = collections.find(connection, name)
        _, live = collections.live_views(connection, collection)
        rows: list[ViewRow] = collections.fed(collections.views(connection, collection.id))
    others = [row.view.uri for row in rows if row.view.kind == "lexicon" and (live is None or row.id != live.id)]
    return (live.view.uri if live is not None else ""), others


@pytest.fixture(scope="module")
def whimbrel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whimbrel]:
    with Whimbrel(home=tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.mark.parametrize("language", ["en", "de", "ru", "ja", "th"])
def test_the_first_documents_tell_the_language(whimbrel: Whimbrel, language: str) -> None:
    name = f"first-{language}"
    whimbrel.add([{"id": "tern", "text": ABOUT_TERNS[language]}], name)
    assert whimbrel.language(name) == language
    assert lexicons(whimbrel, name) == (f"tantivy:{language}", [])
    found = whimbrel.search(QUESTIONS[language], name, mode="lexical")
    assert [hit.uri for hit in found.hits][:1] == ["text:tern"]
    verified(whimbrel, name)


def test_too_few_words_are_taken_for_english_until_more_come(whimbrel: Whimbrel) -> None:
    whimbrel.add([{"id": "0", "text": "Ein Vogel."}], "grows")
    assert whimbrel.language("grows") == "en"
    before = lexicons(whimbrel, "grows")[0]
    sentences = ABOUT_TERNS["de"].split(". ")
    whimbrel.add([{"id": f"{n}", "text": f"{sentences[n % 3]}. Nummer {n}."} for n in range(1, 12)], "grows")
    until(lambda: whimbrel.language("grows") == "de", "the lexicon in German")
    assert before == "tantivy:en"
    hits = whimbrel.search("die Nester", "grows", mode="lexical", top_k=20).hits
    assert {hit.uri for hit in hits} >= {"text:2", "text:5", "text:8", "text:11"}
    verified(whimbrel, "grows")


def test_an_explicit_language_is_not_doubted(whimbrel: Whimbrel) -> None:
    assert whimbrel.create_collection("told", language="NL").language == "nl"
    whimbrel.add([{"id": str(n), "text": ABOUT_TERNS["de"]} for n in range(6)], "told")
    whimbrel.add([{"id": str(n), "text": ABOUT_TERNS["de"]} for n in range(6, 40)], "told")
    assert (whimbrel.language("told"), lexicons(whimbrel, "told")) == ("nl", ("tantivy:nl", []))
    with pytest.raises(BadInput):
        whimbrel.create_collection("wrong", language="dutch")


def test_another_language_is_another_view(whimbrel: Whimbrel) -> None:
    whimbrel.create_collection("changed", language="en")
    whimbrel.add([{"id": "tern", "text": ABOUT_TERNS["de"]}], "changed")
    assert whimbrel.search("Küste Nest", "changed", mode="lexical").hits[0].uri == "text:tern"
    with whimbrel.catalog.read() as connection:
        before = collections.find(connection, "changed").lexicon_view_id
    assert whimbrel.set_language("changed", "de").language == "de"
    until(lambda: whimbrel.language("changed") == "de", "the lexicon in German")
    with whimbrel.catalog.read() as connection:
        after = collections.find(connection, "changed").lexicon_view_id
        old = next((row for row in collections.views(connection) if row.id == before), None)
    assert after != before
    assert old is None or (old.view.uri, old.view.state) == ("tantivy:en", ViewState.RETIRED)
    found = whimbrel.search("das Nest", "changed", mode="lexical")
    assert ([hit.uri for hit in found.hits], found.degraded) == (["text:tern"], [])
    verified(whimbrel, "changed")


def test_a_collection_without_a_document_waits_for_its_lexicon(whimbrel: Whimbrel, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = whimbrel.ingest([tmp_path / "empty"], "nothing")
    assert result["position"] == 0
    assert whimbrel.search("anything", "nothing").hits == []
    assert (lexicons(whimbrel, "nothing"), whimbrel.language("nothing")) == (("", []), "en")
    whimbrel.add([{"id": "tern", "text": ABOUT_TERNS["fr"]}], "nothing")
    assert whimbrel.language("nothing") == "fr"


@pytest.mark.parametrize("language", ABOUT_TERNS)
def test_a_question_in_any_language_is_answered_from_any_corpus(whimbrel: Whimbrel, language: str) -> None:
    whimbrel.add([{"id": "tern", "text": ABOUT_TERNS["en"]}, {"id": "x", "text": "Bread is baked at dawn."}], "english")
    for mode in Mode:
        found = whimbrel.search(QUESTIONS[language], "english", mode=mode)
        assert found.degraded == []
        assert found.position == head(whimbrel, "english")


def test_a_restart_finds_the_lexicon_as_it_was(tmp_path: Path) -> None:
    with Whimbrel(home=tmp_path / "home") as first:
        first.add([{"id": "tern", "text": ABOUT_TERNS["es"]}])
        assert first.language() == "es"
    with Whimbrel(home=tmp_path / "home") as second:
        assert second.search("nido", mode="lexical").hits[0].uri == "text:tern"
        assert second.own()
        second.wait_for_head("default", timeout_s=DEADLINE_S)
        assert lexicons(second, "default") == ("tantivy:es", [])
        verified(second, "default")

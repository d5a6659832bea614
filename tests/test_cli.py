"""The command line as scripts rely on it: forms, one line of JSON, exit statuses, and what survives a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import Ran, Shell, until
from whimbrel.cli.app import app
from whimbrel.client import ServeClient
from whimbrel.home import Home

REPOSITORY = Path(__file__).parents[1]

BIRDS = {
    "whimbrel.md": "# The whimbrel\n\nThe whimbrel is a shore bird. It flies thousands of kilometres at a stretch.\n",
    "curlew.md": "# The curlew\n\nThe curlew has a long bill that curves downward. It nests in meadows.\n",
    "tern.md": "# The arctic tern\n\nThe arctic tern sees two summers a year. It migrates from pole to pole.\n",
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A home with three documents in `default`."""
    folder = tmp_path_factory.mktemp("shelf")
    write(folder / "birds", BIRDS)
    shell = Shell(folder / "home")
    ran = shell.run("ingest", "birds", "--meta", '{"kind": "bird", "year": 2024}', "--json")
    assert {name: ran.json[name] for name in ("collection", "documents", "added", "failed")} == {
        "collection": "default",
        "documents": 3,
        "added": 3,
        "failed": 0,
    }
    return shell


@pytest.fixture
def fresh(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "home")


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def many(count: int) -> dict[str, str]:
    return {f"note-{n:03}.md": f"# Note {n}\n\nThis is note {n}, about the number {n * 7919}.\n" for n in range(count)}


# --- starting --------------------------------------------------------------------------------------------------------


DATABASES_AND_MODELS = {"fastapi", "kreuzberg", "lancedb", "numpy", "onnxruntime", "pyarrow", "sqlalchemy", "tantivy"}


def test_starting_the_command_line_imports_no_database_and_no_model() -> None:
    assert not _imported("import whimbrel.cli.run") & {*DATABASES_AND_MODELS, "httpx", "pydantic", "rich"}


def test_a_search_through_a_server_needs_no_database_here() -> None:
    code = "import whimbrel.cli.run, whimbrel.client; from whimbrel.cli.opening import settings; settings()"
    assert not _imported(code) & {*DATABASES_AND_MODELS, "httpx"}


def test_opening_a_home_imports_no_client_of_a_database_that_it_may_not_need() -> None:
    assert not _imported("import whimbrel.app") & {"pyarrow", "httpx", "lancedb", "chromadb", "pymilvus", "onnxruntime"}


def _imported(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_documentation_names_every_command_and_option() -> None:
    import typer.main

    page = (REPOSITORY / "docs" / "cli.md").read_text()
    missing = [name for name in _names(typer.main.get_command(app), "whimbrel") if f"`{name}" not in page]
    assert not missing, f"docs/cli.md does not mention: {missing}"


def _names(command: Any, path: str) -> Iterator[str]:
    yield path
    for parameter in command.params:
        yield from (name for name in getattr(parameter, "opts", ()) if name.startswith("-"))
    for name, child in getattr(command, "commands", {}).items():
        yield from _names(child, f"{path} {name}")


# --- data ------------------------------------------------------------------------------------------------------------

QUESTION = "Which bird migrates from pole to pole?"

READING: dict[str, list[str]] = {
    "search": ["search", QUESTION, "-k", "2", "--json"],
    "search for people": ["search", QUESTION],
    "filtered": ["search", "bird", "--filter", '{"year": {"$lt": 2000}}', "--mode", "lexical", "--json"],
    "above a threshold": ["search", QUESTION, "--threshold", "0.99", "--json"],
    "ask": ["ask", QUESTION, "--json"],
    "ask for people": ["ask", QUESTION],
    "status": ["status", "--json"],
    "status for people": ["status"],
    "documents": ["documents", "list", "--json"],
    "documents for people": ["documents", "list"],
    "document": ["documents", "show", "birds/tern.md", "--json"],
    "document for people": ["documents", "show", "birds/tern.md"],
    "collections": ["collections", "list", "--json"],
    "views": ["view", "list", "--json"],
    "views for people": ["view", "list"],
    "jobs": ["jobs", "list", "--json"],
    "jobs for people": ["jobs", "list"],
    "config": ["config", "show", "--json"],
    "config for people": ["config", "show"],
    "doctor": ["doctor", "--json"],
    "doctor for people": ["doctor"],
}


@pytest.fixture(scope="module")
def read(shelf: Shell) -> dict[str, Ran]:
    """What each command that only reads has said."""
    ran = dict(zip(READING, shelf.several(*READING.values()), strict=True))
    assert not [one for one in ran.values() if one.status]
    return ran


def test_search_and_ask_print_the_promised_json(read: dict[str, Ran]) -> None:
    search = read["search"].json
    assert set(search) == {"hits", "position", "degraded", "timings_ms"}
    assert search["degraded"] == []
    best = search["hits"][0]
    assert set(best) >= {"rank", "score", "chunk_id", "document_id", "uri", "title", "text", "start", "end", "metadata"}
    assert (best["rank"], best["metadata"]) == (1, {"kind": "bird", "year": 2024})
    assert best["uri"].endswith("/tern.md")
    assert len(search["hits"]) == 2
    assert read["filtered"].json["hits"] == []
    assert read["above a threshold"].json["hits"] == []
    ask = read["ask"].json
    assert set(ask) == {
        *("answer", "citations", "model", "degraded", "usage", "sentences"),
        *("abstained", "question", "conversation_id", "turn_id"),
    }
    cited = ask["citations"][0]
    assert set(cited) >= {"marker", "chunk_id", "document_id", "uri", "start", "end", "quote", "supported"}
    assert BIRDS["tern.md"][cited["start"] : cited["end"]] == cited["quote"]


def test_people_read_titles_places_scores_and_footnotes(read: dict[str, Ran]) -> None:
    search, ask = read["search for people"].out, read["ask for people"].out
    assert search.startswith(" 1. The arctic tern  0.")
    assert "/tern.md:0-" in search
    assert "pole to pole" in ask
    assert "\n[1] file://" in ask
    assert " — “" in ask


def test_every_listing_prints_one_line_of_json(shelf: Shell, read: dict[str, Ran]) -> None:
    status = read["status"].json
    assert status["collections"][0]["documents"]["indexed"] == 3
    assert {view["lag"] for view in status["collections"][0]["views"]} == {0}
    assert [one["state"] for one in read["documents"].json["documents"]] == ["indexed"] * 3
    assert read["document"].json["text"] == BIRDS["tern.md"]
    assert [one["name"] for one in read["collections"].json["collections"]] == ["default"]
    assert sorted(view["kind"] for view in read["views"].json["views"]) == ["lexicon", "store"]
    assert read["jobs"].json["jobs"][0]["kind"] == "ingest"
    home = read["config"].json["settings"][0]
    assert (home["key"], home["value"], home["source"]) == ("home", str(shelf.home), "WHIMBREL_HOME")
    assert read["doctor"].json["healthy"] is True


def test_listings_are_also_for_people(shelf: Shell, read: dict[str, Ran]) -> None:
    assert "3 indexed" in read["status for people"].out
    assert "/curlew.md" in read["documents for people"].out
    assert BIRDS["tern.md"] in read["document for people"].out
    assert "lancedb:" in read["views for people"].out
    assert read["jobs"].json["jobs"][0]["id"] in read["jobs for people"].out
    assert "WHIMBREL_HOME" in read["config for people"].out
    assert f"{shelf.home} is in order." in read["doctor for people"].out


def test_views_are_verified_and_rebuilt(shelf: Shell) -> None:
    listed, rebuilt, verified, refused = shelf.several(
        ["view", "list", "--json"],
        ["view", "rebuild", "--json"],
        ["view", "verify", "--json"],
        ["view", "drop", "9999", "--json"],
    )
    before = {view["id"] for view in listed.json["views"] if view["state"] == "live"}
    assert {view["replaces"] for view in rebuilt.json["views"]} == before
    assert len(verified.json["views"]) == 2
    assert all(view["equal"] and view["rows"] == view["expected"] for view in verified.json["views"])
    assert (refused.status, refused.json["error"]) == (2, "ViewNotFound")
    live = verified.json["views"][0]["view"]
    kept = shelf.several(["view", "drop", str(live), "--json"])[0]
    assert (kept.status, kept.json["error"]) == (2, "Conflict")


# --- what is wrong is told in one way --------------------------------------------------------------------------------

REFUSED = [
    (["ingest", "nowhere"], "PathNotFound", "spelling"),
    (["ingest", "birds", "--id", "one"], "BadInput", "single file"),
    (["ingest", "birds", "--meta", "{broken"], "BadInput", "--meta"),
    (["ingest", "birds", "--meta", "[1]"], "BadInput", "--meta"),
    (["ingest", "birds", "-c", "no/such name"], "BadInput", "name"),
    (["search", "bird", "-c", "nothing"], "CollectionNotFound", "whimbrel ingest"),
    (["search", "  "], "BadQuery", "words"),
    (["search", "x" * 100_000], "BadQuery", "max_query_chars"),
    (["search", "bird", "-k", "0"], "BadQuery", "1 to 1000"),
    (["search", "bird", "-k", "10000"], "BadQuery", "1 to 1000"),
    (["search", "bird", "--threshold", "2"], "BadQuery", "all hits"),
    (["search", "bird", "--filter", '{"year":'], "BadFilter", "--filter"),
    (["search", "bird", "--filter", '{"year": {"$near": 3}}'], "BadFilter", "$"),
    (["search", "bird", "--mode", "psychic"], "UsageError", "psychic"),
    (["ask", "why?", "-c", "nothing"], "CollectionNotFound", "whimbrel ingest"),
    (["ask", "why?", "--model", "openai:gpt"], "ModelKeyMissing", "OPENAI_API_KEY"),
    (["ask", "why?", "--model", "opnai:gpt"], "ConfigError", "anthropic"),
    (["ask", "why?", "-C", "nothing"], "ConversationNotFound", "-C new"),
    (["open", "99"], "CitationNotFound", "It has:"),
    (["conversations", "show", "nothing"], "ConversationNotFound", "-C new"),
    (["documents", "show", "nothing"], "DocumentNotFound", "documents list"),
    (["documents", "delete", "nothing"], "DocumentNotFound", "documents list"),
    (["documents", "list", "-c", "nothing"], "CollectionNotFound", "whimbrel ingest"),
    (["collections", "create", "default"], "Conflict", "another name"),
    (["collections", "rename", "nothing", "else"], "CollectionNotFound", "whimbrel ingest"),
    (["view", "verify", "9999"], "ViewNotFound", "view list"),
    (["jobs", "show", "nothing"], "JobNotFound", "jobs list"),
    (["restore", "nowhere.whimbrel"], "PathNotFound", ""),
    (["serve", "--host", "198.51.100.1"], "ConfigError", "127.0.0.1"),
    (["search"], "UsageError", "QUERY"),
    (["nonsense"], "UsageError", "nonsense"),
]


@pytest.fixture(scope="module")
def refusals(shelf: Shell) -> dict[tuple[str, ...], Any]:
    asked = ["ask", "Where does the whimbrel breed?"]  # there is an answer, of which `open 99` shows no citation
    wrong = ([*args, "--json"] for args, _, _ in REFUSED if args[0] != "serve")
    return {tuple(ran.args): ran for ran in shelf.several(asked, *wrong)}


@pytest.mark.parametrize(("args", "error", "hint"), REFUSED, ids=[" ".join(args)[:40] for args, _, _ in REFUSED])
def test_a_wrong_request_is_named_hinted_and_ends_with_status_2(
    shelf: Shell, refusals: dict[tuple[str, ...], Any], args: list[str], error: str, hint: str
) -> None:
    if args[0] == "serve":  # it prints no data, so it has no --json
        ran = shelf.run(*args, ok=False)
        assert f"{error}: " in ran.err
    else:
        ran = refusals[(*args, "--json")]
        assert ran.json["error"] == error
        assert set(ran.json) == {"error", "message", "hint", "status"}
    assert ran.status == 2
    assert hint in ran.err


def test_an_unknown_variable_is_refused_with_the_nearest_named(shelf: Shell) -> None:
    ran = Shell(shelf.home, WHIMBREL_EMBEDER="minilm").run("status", "--json", ok=False)
    assert (ran.status, ran.json["error"]) == (2, "ConfigError")
    assert "WHIMBREL_EMBEDDER" in ran.err


def test_a_home_that_cannot_be_written_to_is_named(fresh: Shell) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    fresh.home.mkdir(mode=0o500)
    ran = fresh.run("status", "--json", ok=False)
    assert (ran.status, ran.json["error"]) == (1, "HomeError")
    assert "WHIMBREL_HOME" in ran.err


def test_a_home_that_is_a_file_is_named(fresh: Shell) -> None:
    fresh.home.write_text("no folder")
    ran = fresh.run("status", "--json", ok=False)
    assert (ran.status, ran.json["error"]) == (1, "HomeError")


# --- ingest ----------------------------------------------------------------------------------------------------------


def test_ingest_takes_in_what_changed_and_says_beforehand_what_that_is(fresh: Shell) -> None:
    folder = write(fresh.home.parent / "notes", many(12))
    first, again = fresh.several(["ingest", "notes", "--json"], ["ingest", "notes", "--json"])
    assert (first.json["added"], again.json["added"], again.json["unchanged"]) == (12, 0, 12)
    (folder / "note-000.md").unlink()
    (folder / "note-001.md").write_text("# Note 1\n\nThis one is about herons.\n")
    write(folder, {"new.md": "A new note, about egrets.\n"})
    dry, still, wet = fresh.several(
        ["ingest", "notes", "--dry-run", "--json"],
        ["documents", "list", "--json"],
        ["ingest", "notes", "--json"],
    )
    expected = {"added": 1, "changed": 1, "removed": 1, "unchanged": 10, "failed": 0}
    assert {name: dry.json[name] for name in expected} == expected
    assert [uri.rpartition("/")[2] for uri in dry.json["uris"]["changed"]] == ["note-001.md"]
    assert len(still.json["documents"]) == 12
    assert {name: wet.json[name] for name in expected} == expected


def test_a_bad_file_is_reported_and_the_others_go_on(fresh: Shell) -> None:
    folder = write(fresh.home.parent / "mixed", BIRDS)
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\nnot really")
    (folder / "empty.md").write_bytes(b"")
    mixed, failed = fresh.several(["ingest", "mixed", "--json"], ["documents", "list", "--state", "failed", "--json"])
    assert mixed.status == 0
    assert (mixed.json["added"], mixed.json["failed"]) == (3, 2)
    assert "broken.pdf" in mixed.err
    assert "EmptyFile" in mixed.err
    assert len(failed.json["documents"]) == 2
    alone = fresh.several(["ingest", "mixed/broken.pdf", "--json"])[0]
    assert (alone.status, alone.json["failed"]) == (1, 1)


def test_too_many_vanished_files_stop_an_ingest_unless_allowed(fresh: Shell) -> None:
    folder = write(fresh.home.parent / "notes", many(12))
    fresh.run("ingest", "notes", "--wait", "lexical")
    for path in folder.iterdir():
        path.unlink()
    stopped, dry, allowed = fresh.several(
        ["ingest", "notes", "--json"],
        ["ingest", "notes", "--dry-run", "--json"],
        ["ingest", "notes", "--allow-gone", "--json"],
    )
    assert (stopped.status, stopped.json["error"]) == (1, "SuspiciousChange")
    assert "--allow-gone" in stopped.err
    assert dry.json["guarded"] is True
    assert allowed.json["removed"] == 12


def test_an_id_of_ones_own_and_metadata_follow_the_document(fresh: Shell) -> None:
    write(fresh.home.parent, {"a.md": "About godwits.\n"})
    ran = fresh.several(
        ["ingest", "a.md", "--id", "bird-1", "--meta", '{"draft": true}', "--json"],
        ["documents", "show", "bird-1", "--json"],
        ["ingest", "a.md", "--id", "bird-1", "--meta", '{"draft": false}', "--json"],
        ["search", "godwits", "--filter", '{"draft": false}', "--json"],
        ["documents", "delete", "bird-1", "--json"],
        ["search", "godwits", "--json"],
    )
    assert [one.status for one in ran] == [0] * len(ran)
    assert ran[1].json["metadata"] == {"draft": True}
    assert (ran[2].json["changed"], ran[2].json["chunks_added"]) == (1, 0)
    assert len(ran[3].json["hits"]) == 1
    assert ran[4].json["removed"] == 1
    assert ran[5].json["hits"] == []


def test_collections_are_made_renamed_and_deleted(fresh: Shell) -> None:
    write(fresh.home.parent / "birds", BIRDS)
    ran = fresh.several(
        ["collections", "create", "one", "--json"],
        ["ingest", "birds", "-c", "one", "--json"],
        ["collections", "rename", "one", "two", "--json"],
        ["search", "curlew", "-c", "two", "-k", "1", "--json"],
        ["collections", "delete", "two", "--json"],
        ["collections", "list", "--json"],
    )
    assert [one.status for one in ran] == [0] * len(ran)
    assert ran[3].json["hits"][0]["title"] == "The curlew"
    assert ran[4].json["documents"] == 3
    assert ran[5].json["collections"] == []


def test_a_purge_says_when_it_completes_and_can_be_waited_for(fresh: Shell) -> None:
    write(fresh.home.parent / "birds", BIRDS)
    _, waiting, search = fresh.several(
        ["ingest", "birds"],
        ["documents", "purge", "birds/tern.md", "--json"],
        ["search", "arctic tern", "--mode", "lexical", "--json"],
    )
    assert waiting.json["state"] == "waiting"
    assert waiting.json["progress"]["completes_at"].startswith("20")
    assert all("tern" not in hit["uri"] for hit in search.json["hits"])
    at_once = Shell(fresh.home, WHIMBREL_OWNER_ERASURE_GRACE_S="0")
    ended = at_once.run("documents", "purge", "birds/curlew.md", "--wait", "--json")
    assert ended.json["state"] == "done"


def test_a_purge_says_in_words_what_it_waits_for(fresh: Shell) -> None:
    write(fresh.home.parent / "birds", BIRDS)
    *_, replaced = fresh.several(["ingest", "birds"], ["view", "rebuild", "1"], ["documents", "purge", "birds/tern.md"])
    assert "waits for view 1, which has been replaced, to be dropped; when that has passed" in replaced.out
    usual = Shell(fresh.home.with_name("usual"))
    _, waiting = usual.several(["ingest", "birds"], ["documents", "purge", "birds/tern.md"])
    assert re.search(r"waits for old versions of views to expire; it completes at 20\d\d-", waiting.out)


def test_a_backup_is_restored_into_an_empty_home_only(shelf: Shell, fresh: Shell, read: dict[str, Ran]) -> None:
    archive = str(fresh.home.parent / "saved.whimbrel")
    saved = shelf.several(["backup", archive, "--json"], ["backup", archive, "--json"])
    assert saved[0].json["collections"] == 1
    assert (saved[1].status, saved[1].json["error"]) == (2, "Conflict")
    restored, verified, found, again = fresh.several(
        ["restore", archive, "--json"], ["view", "verify", "--json"], READING["search"], ["restore", archive, "--json"]
    )
    assert restored.json["collections"] == ["default"]
    assert [view["equal"] for view in verified.json["views"]] == [True, True]
    assert found.json["hits"] == read["search"].json["hits"]
    assert (again.status, again.json["error"]) == (2, "Conflict")


def test_a_collection_is_exported_and_imported_into_another_home(
    shelf: Shell, fresh: Shell, read: dict[str, Ran]
) -> None:
    folder = str(fresh.home.parent / "exported")
    told, again, nowhere = shelf.several(
        ["export", "default", folder, "--json"], ["export", "default", folder], ["export", "nowhere", folder + "2"]
    )
    assert told.json["files"] == ["documents.parquet", "chunks.parquet", "vectors.parquet"]
    assert (again.status, nowhere.status) == (2, 2)
    assert "already" in again.err
    made, found, twice, status, missing = fresh.several(
        ["import", folder, "--json"],
        READING["search"],
        ["import", folder, "--json"],
        ["import", folder, "-c", "other", "--no-wait"],
        ["import", folder + "2", "--json"],
    )
    assert {name: made.json[name] for name in ("collection", "documents", "chunks", "vectors")} == {
        name: told.json[name] for name in ("collection", "documents", "chunks", "vectors")
    }
    assert found.json["hits"] == read["search"].json["hits"]
    assert (twice.status, twice.json["error"]) == (2, "Conflict")
    assert status.out.startswith("other: ")
    assert "whimbrel serve" in status.err
    assert (missing.status, missing.json["error"]) == (2, "PathNotFound")


# --- several processes -----------------------------------------------------------------------------------------------


def test_beside_an_owner_others_enqueue_and_only_one_may_own(fresh: Shell) -> None:
    write(fresh.home.parent / "birds", BIRDS)
    write(fresh.home.parent / "notes", many(3))
    fresh.run("ingest", "birds")
    archive = str(fresh.home.parent / "saved.whimbrel")
    with fresh.started("owner") as owner:
        until(lambda: "owns" in owner.log.read_text(), "owner")  # type: ignore[attr-defined]
        second, ingested, saved, restored, exported, imported, status = (
            fresh.run("owner", ok=False),
            *fresh.several(
                ["ingest", "notes", "--json"],
                ["backup", archive, "--json"],
                ["restore", archive, "--json"],
                ["export", "default", f"{archive}.export", "--json"],
                ["import", f"{archive}.export", "-c", "again", "--json"],
                ["status", "--json"],
            ),
        )
        assert second.status == 1
        assert "AlreadyOwned" in second.err
        assert str(owner.pid) in second.err
        assert ingested.json["added"] == 3
        assert saved.status == 0
        assert (restored.status, restored.json["error"]) == (1, "AlreadyOwned")
        assert imported.json["chunks"] == exported.json["chunks"]
        assert status.json["owner"]["pid"] == owner.pid
        owner.send_signal(signal.SIGTERM)
        assert owner.wait(20) == 0
    assert fresh.run("status", "--json").json["owner"] is None


def test_an_owner_that_was_killed_is_not_named_any_more(fresh: Shell) -> None:
    with fresh.started("owner") as owner:
        until(lambda: "owns" in owner.log.read_text(), "owner")  # type: ignore[attr-defined]
        assert fresh.run("status", "--json").json["owner"]["pid"] == owner.pid
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert fresh.run("status", "--json").json["owner"] is None, "its lease has not run out yet"


def test_an_ingest_that_was_killed_is_finished_by_the_next(fresh: Shell) -> None:
    write(fresh.home.parent / "notes", many(80))
    with fresh.started("ingest", "notes") as first:
        until(lambda: first.poll() is not None or _count(fresh, "chunks") > 0, "the first committed chunks")
        first.send_signal(signal.SIGKILL)
        first.wait()
    again, verified, listed = fresh.several(
        ["ingest", "notes", "--json"], ["view", "verify", "--json"], ["documents", "list", "--limit", "1000", "--json"]
    )
    assert again.json["documents"] == 80
    assert len(listed.json["documents"]) == 80
    assert all(view["equal"] and view["rows"] == 80 for view in verified.json["views"])


def test_an_owner_that_was_killed_leaves_its_job_to_the_waiting_ingest(fresh: Shell) -> None:
    write(fresh.home.parent / "notes", many(80))
    with fresh.started("owner") as owner:
        until(lambda: "owns" in owner.log.read_text(), "owner")  # type: ignore[attr-defined]
        with fresh.started("ingest", "notes", "--json") as waiting:
            until(lambda: _count(fresh, "chunks") > 0, "the first committed chunks")
            owner.send_signal(signal.SIGKILL)
            out, _ = waiting.communicate(timeout=60)
            assert waiting.returncode == 0
    assert json.loads(out)["documents"] == 80
    verified = fresh.run("view", "verify", "--json")
    assert all(view["equal"] and view["rows"] == 80 for view in verified.json["views"])


def _count(shell: Shell, table: str) -> int:
    import sqlite3
    from contextlib import closing

    if not Home(shell.home).catalog.exists():
        return 0
    with closing(sqlite3.connect(f"file:{Home(shell.home).catalog}?mode=ro", uri=True, timeout=10)) as connection:
        try:
            return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
        except sqlite3.OperationalError:  # there is no table yet
            return 0


def test_a_running_serve_answers_the_command_line(shelf: Shell, read: dict[str, Ran]) -> None:
    client = ServeClient(Home(shelf.home).socket)
    assert client.post("/v1/search", {"query": "bird"}) is None
    with shelf.started("serve", "--port", "0") as serve:
        until(client.alive, "an answer on the socket")
        asked, wrong, missing = shelf.several(
            READING["search"], ["search", "bird", "-k", "0", "--json"], ["ask", "why?", "-c", "nothing", "--json"]
        )
        assert asked.json["hits"] == read["search"].json["hits"]
        assert (wrong.status, wrong.json["error"]) == (2, "BadQuery")
        assert (missing.status, missing.json["error"]) == (2, "CollectionNotFound")
        serve.send_signal(signal.SIGTERM)
        assert serve.wait(20) == 0
    assert not Home(shelf.home).socket.exists()


def test_an_interrupted_wait_says_what_goes_on(fresh: Shell) -> None:
    write(fresh.home.parent / "notes", many(300))
    with fresh.started("ingest", "notes") as process:
        until(lambda: process.poll() is not None or _count(fresh, "chunks") > 0, "the first committed chunks")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert "Interrupted. Job" in process.log.read_text()  # type: ignore[attr-defined]
    assert fresh.run("ingest", "notes", "--json").json["documents"] == 300

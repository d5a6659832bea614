"""`whimbrel ask`, `open` and `conversations` as a user runs them: piped, in a terminal, and beside a serve."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from commands import DEADLINE_S, Ran, Shell
from providers import ModelServer, served
from whimbrel.client import ServeClient, events
from whimbrel.errors import BadQuery, WhimbrelError
from whimbrel.home import Home

pytestmark = pytest.mark.timeout(180)

QUESTION = "How far does the arctic tern fly each year?"
SAID = "The arctic tern flies from pole to pole each year. [1] It covers 70,900 kilometres a year. [1]"
TERN = (
    "# Birds\n\nThere are many.\n\n## Arctic tern\n\nThe arctic tern flies from pole to pole each year. It covers "
    "70,900 kilometres a year. No other animal migrates as far.\n\n## Whimbrel\n\nThe whimbrel has a curved bill.\n"
)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("ask")
    docs = folder / "docs"
    docs.mkdir()
    (docs / "tern.md").write_text(TERN)
    made = Shell(folder / "home")
    made.run("ingest", str(docs))
    return made


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with served("openai", SAID) as server:
        yield server


def asked(shell: Shell, server: ModelServer) -> Shell:
    """The same home, with a key."""
    return Shell(shell.home, **server.environment)


@pytest.fixture(scope="module")
def ran(shell: Shell, model: ModelServer) -> Mapping[str, Ran]:
    """Several commands in one process, one after the other."""
    model.behaviour = "answer"
    spec = ["--model", model.spec]
    lines = {
        "json": ["ask", QUESTION, *spec, "--json"],
        "people": ["ask", QUESTION, *spec],
        "open": ["open", "1"],
        "open json": ["open", "1", "--json", "--context", "60"],
        "path": ["open", "1", "--path"],
        "none": ["open", "7"],
        "forced": ["ask", QUESTION, *spec, "--stream"],
        "begun": ["ask", QUESTION, "-C", "new", "--model", "extractive", "--json"],
        "listed": ["conversations", "list", "--json"],
        "wrong": ["ask", QUESTION, "--model", "openai:nonsense", "--json"],
    }
    found = dict(zip(lines, asked(shell, model).several(*lines.values()), strict=True))
    model.behaviour = "cut"
    (found["cut"],) = asked(shell, model).several(["ask", QUESTION, *spec, "--json"])
    return found


def test_json_is_one_line_with_the_answer_of_the_model(ran: Mapping[str, Ran], model: ModelServer) -> None:
    found = ran["json"].json
    assert (found["model"], found["degraded"], found["abstained"]) == (model.spec, [], False)
    assert (found["conversation_id"], found["turn_id"], found["question"]) == (None, None, QUESTION)
    assert [one["supported"] for one in found["sentences"]] == ["yes", "yes"]
    assert found["usage"]["output_tokens"] == 30
    assert ran["json"].err == ""


def test_people_read_the_answer_and_footnotes(ran: Mapping[str, Ran]) -> None:
    out = ran["people"].out
    assert out.startswith("The arctic tern flies from pole to pole each year.")
    (footnote,) = [line for line in out.splitlines() if line.startswith("[1] ")]
    assert re.fullmatch(r"\[1\] file://\S+tern\.md:\d+-\d+ · \S.* — “.+” ✓", footnote)
    assert "\x1b" not in out


def test_a_stream_that_is_asked_for_gives_the_same_text(ran: Mapping[str, Ran]) -> None:
    assert ran["forced"].out.split("\n\n")[0] == ran["people"].out.split("\n\n")[0]


def test_a_cited_passage_is_opened_in_its_document(ran: Mapping[str, Ran]) -> None:
    out = ran["open"].out
    assert re.search(r"\[1\] file://\S+tern\.md:\d+-\d+", out)
    assert re.search(r">>>.*70,900 kilometres.*<<<", out, re.DOTALL)
    found = ran["open json"].json
    assert TERN[found["start"] : found["end"]] == found["quote"]
    below = found["start"] >= TERN.index("## Arctic")
    assert found["heading"] == ("Birds > Arctic tern" if below else "Birds")
    assert f"{found['heading']}\n" in out
    assert len(found["before"]) <= 62
    assert ran["path"].out.strip() == found["path"]
    assert Path(found["path"]).read_text() == TERN


def test_what_was_not_cited_cannot_be_opened(ran: Mapping[str, Ran], tmp_path: Path) -> None:
    assert ran["none"].status == 2
    assert "CitationNotFound" in ran["none"].err
    assert "[1]" in ran["none"].err
    fresh = Shell(tmp_path / "home").run("open", "1", ok=False)
    assert "whimbrel ask" in fresh.err


def test_a_document_that_changed_is_not_misquoted(shell: Shell, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.md").write_text(f"{'A line before it. ' * 20}\n\n{TERN}")
    other = Shell(tmp_path / "home")
    other.run("ingest", str(docs))
    other.run("ask", QUESTION)
    (docs / "a.md").write_text("# Birds\n\nThere are none.\n")
    other.run("ingest", str(docs))
    assert "has changed" in other.run("open", "1", ok=False).err
    other.run("documents", "delete", str(docs / "a.md"))
    assert "was deleted" in other.run("open", "1", ok=False).err


def test_a_model_that_breaks_off_is_replaced_and_said(ran: Mapping[str, Ran]) -> None:
    found = ran["cut"].json
    assert found["model"] == "extractive"
    assert found["degraded"][0].startswith("model: ")
    assert f"degraded: {found['degraded'][0]}" in ran["cut"].err


def test_a_model_that_there_is_not_ends_the_command(ran: Mapping[str, Ran]) -> None:
    assert (ran["wrong"].json["error"], ran["wrong"].status) == ("ModelNotFound", 2)


def test_conversations_go_on_are_shown_rated_and_deleted(shell: Shell, ran: Mapping[str, Ran]) -> None:
    first = ran["begun"].json
    conversation, turn = first["conversation_id"], first["turn_id"]
    assert conversation in [one["id"] for one in ran["listed"].json["conversations"]]
    again, rated, shown, people, deleted, gone = shell.several(
        ["ask", "And how does it migrate?", "-C", conversation, "--json"],
        ["conversations", "rate", turn, "good", "--comment", "It is right."],
        ["conversations", "show", conversation, "--json"],
        ["conversations", "show", conversation],
        ["conversations", "delete", conversation],
        ["conversations", "show", conversation, "--json"],
    )
    assert again.json["conversation_id"] == conversation
    assert rated.status == deleted.status == 0
    turns = shown.json["turns"]
    assert [one["asked"] for one in turns] == [QUESTION, "And how does it migrate?"]
    assert (turns[0]["rating"], turns[0]["comment"]) == (1, "It is right.")
    assert QUESTION in people.out
    assert gone.json["error"] == "ConversationNotFound"


# --- in a terminal ---------------------------------------------------------------------------------------------------


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, shell: Shell, *args: str, rows: int = 40, columns: int = 60) -> None:
        self._screen, inside = pty.openpty()
        ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        env = {**shell.env, "TERM": "xterm", "COLUMNS": str(columns), "LINES": str(rows)}
        command = [sys.executable, "-m", "whimbrel", *args]
        self.process = subprocess.Popen(command, env=env, stdin=inside, stdout=inside, stderr=subprocess.DEVNULL)
        os.close(inside)
        self.shown = ""

    def until(self, true: Callable[[str], bool]) -> str:
        deadline = time.monotonic() + DEADLINE_S
        while not true(self.shown):
            assert time.monotonic() < deadline, f"not shown: {self.shown!r}"
            ready, _, _ = select.select([self._screen], [], [], 0.5)
            try:
                part = os.read(self._screen, 65536) if ready else b""
            except OSError:  # the other end is closed
                break
            self.shown += part.decode()
        return self.shown

    def end(self) -> str:
        self.until(lambda _: False if self.process.poll() is None else not self._waiting())
        os.close(self._screen)
        assert self.process.wait(10) == 0
        return self.shown

    def _waiting(self) -> bool:
        return bool(select.select([self._screen], [], [], 0)[0])


def test_a_terminal_shows_the_answer_while_it_is_written(shell: Shell, model: ModelServer) -> None:
    model.behaviour = "silent"
    terminal = Terminal(asked(shell, model), "ask", QUESTION, "--model", model.spec)
    terminal.until(lambda shown: "The arctic" in shown)
    assert terminal.process.poll() is None, "it goes on"
    assert "[1] file" not in terminal.shown
    terminal.process.kill()
    terminal.process.wait(10)


def test_a_terminal_keeps_what_was_right(shell: Shell, model: ModelServer) -> None:
    model.behaviour = "answer"
    shown = Terminal(asked(shell, model), "ask", QUESTION, "--model", model.spec).end()
    assert "\x1b[J" not in shown
    assert "[1] file://" in shown.replace("\r\n", "")


def test_a_terminal_takes_back_what_broke_off(shell: Shell, model: ModelServer) -> None:
    model.behaviour = "cut"
    shown = Terminal(asked(shell, model), "ask", QUESTION, "--model", model.spec).end()
    taken_back, answer = shown.split("\x1b[J")
    assert "The arctic" in taken_back
    assert "[1] file://" in answer.replace("\r\n", "")


def test_without_a_stream_a_terminal_shows_only_the_answer(shell: Shell, model: ModelServer) -> None:
    model.behaviour = "cut"
    shown = Terminal(asked(shell, model), "ask", QUESTION, "--model", model.spec, "--no-stream").end()
    assert "\x1b[J" not in shown


# --- beside a serve --------------------------------------------------------------------------------------------------

ANSWER = {
    **{"answer": "It flies far. [1]", "model": "openai:small", "degraded": [], "usage": {}, "abstained": False},
    **{"question": QUESTION, "conversation_id": None, "turn_id": None},
    "citations": [
        {
            **{"marker": 1, "chunk_id": "c", "document_id": "d", "uri": "file:///x.md", "start": 5, "end": 9},
            **{"quote": "far", "supported": "partly", "page": 12},
        }
    ],
    "sentences": [{"start": 0, "end": 13, "markers": [1], "supported": "no", "evidence": []}],
}
HIT = {"document_id": "d", "title": "Birds of the North"}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


class Serving:
    """Something that answers on a home's socket as a serve streams."""

    def __init__(self, home: Path, answer: bytes) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.asked: list[bytes] = []
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(Home(home).socket))
        self._socket.listen()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                received = b""
                while b"\r\n\r\n" not in received:
                    received += connection.recv(65536)
                head, _, body = received.partition(b"\r\n\r\n")
                length = re.search(rb"Content-Length: (\d+)", head)
                while length and len(body) < int(length[1]):
                    body += connection.recv(65536)
                self.asked.append(head + b"\r\n\r\n" + body)
                connection.sendall(self._answer)

    def close(self) -> None:
        self._socket.close()


def chunked(*told: tuple[str, Any], end: bool = True) -> bytes:
    parts = [b": hello\n\n", *(f"event: {name}\nid: 7\ndata: {json.dumps(data)}\n\n".encode() for name, data in told)]
    body = b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts)
    return HEAD + body + (b"0\r\n\r\n" if end else b"")


PASSAGES = ("passages", {"passages": [HIT], "question": QUESTION, "position": 1, "degraded": []})


def test_a_running_serve_streams_to_people(tmp_path: Path) -> None:
    home = tmp_path / "home"
    serving = Serving(
        home, chunked(PASSAGES, ("text", {"text": "It flies "}), ("text", {"text": "far. [1]"}), ("answer", ANSWER))
    )
    ran = Shell(home).run("ask", QUESTION, "-C", "abc")
    serving.close()
    head, _, body = serving.asked[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/query ")
    assert b"Accept: text/event-stream" in head
    assert json.loads(body) == {"query": QUESTION, "collection": "default", "conversation_id": "abc", "stream": True}
    assert ran.out == (
        "It flies far. [1]\n\n"
        "[1] file:///x.md:5-9 (page 12) · Birds of the North — “far” (supported: partly)\n\n"
        "Not supported: “It flies far.”\n"
    )


def streamed(tmp_path: Path, answer: bytes) -> list[tuple[str, dict[str, Any]]]:
    serving = Serving(tmp_path / "home", answer)
    try:
        told = ServeClient(Home(tmp_path / "home").socket, timeout_s=5).stream("/v1/query", {"query": "x"})
        assert told is not None
        return list(told)
    finally:
        serving.close()


def test_an_error_in_the_stream_is_the_servers_error(tmp_path: Path) -> None:
    error = {"error": "BadQuery", "detail": "The query is empty.", "hint": "Send one.", "status": 422}
    with pytest.raises(BadQuery, match="The query is empty"):
        streamed(tmp_path, chunked(PASSAGES, ("error", error)))


@pytest.mark.parametrize("end", [True, False])
def test_a_stream_that_ends_before_the_answer_is_an_error(end: bool, tmp_path: Path) -> None:
    with pytest.raises(WhimbrelError, match="middle of its answer"):
        streamed(tmp_path, chunked(PASSAGES, ("text", {"text": "It"}), end=end))


def test_an_answer_that_is_no_stream_is_taken_all_the_same(tmp_path: Path) -> None:
    body = json.dumps(ANSWER).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    assert streamed(tmp_path, head + body) == [("answer", ANSWER)]


def test_nobody_on_the_socket(tmp_path: Path) -> None:
    assert ServeClient(Home(tmp_path).socket).stream("/v1/query", {"query": "x"}) is None


def test_events_may_be_split_over_lines_and_commented() -> None:
    lines = [
        b": ping\n",
        b"\n",
        b"event:answer\r\n",
        b'data: {"a":\n',
        b"data: 1}\n",
        b"retry: 5\n",
        b"\n",
        b"data: {}\n",
        b"\n",
    ]
    assert list(events(lines)) == [("answer", {"a": 1}), ("message", {})]

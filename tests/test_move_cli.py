"""Steering a move by the command line, while an owner does it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import lancedb
import pytest

from commands import Shell, until
from running import files

ROWS = 40


@pytest.mark.timeout(180)
def test_a_move_is_steered_beside_its_owner(tmp_path: Path) -> None:
    """`--detach` returns at once; `--rate` bounds the copy, a pause stops it, another rate goes on with it."""
    shell = Shell(tmp_path / "home")
    files(tmp_path / "notes", ROWS)
    shell.run("ingest", str(tmp_path / "notes"))
    with shell.started("owner"):
        until(lambda: shell.run("status", "--json").json["owner"], "there is an owner")
        began = time.monotonic()
        started = shell.run("move", "start", "default", "--to", "lancedb:other", "--rate", "2", "--detach", "--json")
        assert started.json["state"] in ("planned", "copying")
        total = started.json["rows"]["total"]
        assert total >= ROWS

        until(lambda: shell.run("move", "status", "default", "--json").json["rows"]["done"], "it copies")
        paused, before = shell.several(["move", "pause", "default", "--json"], ["move", "status", "default", "--json"])
        copied, took = before.json["rows"]["done"], time.monotonic() - began
        assert paused.json["paused"]
        assert copied <= 2 * took + 10, "a batch may be ahead of its time"
        time.sleep(2.5)  # five rows, were it not paused
        later, told, resumed = shell.several(
            ["move", "status", "default", "--json"],
            ["move", "status", "default"],
            ["move", "resume", "default", "--rate", "4000", "--detach", "--json"],
        )
        assert later.json["rows"]["done"] <= copied + 2, "what was under way when it was paused"
        assert "(paused)" in told.out
        assert not resumed.json["paused"]
        assert resumed.json["request"]["rate"] == 4000
        until(lambda: shell.run("move", "status", "default", "--json").json["state"] == "ready", "it is ready")


def test_nothing_is_left_to_an_owner_that_is_not_there(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "home")
    files(tmp_path / "notes", 3)
    shell.run("ingest", str(tmp_path / "notes"))
    refused, none = shell.several(
        ["move", "start", "default", "--to", "lancedb:other", "--detach"], ["move", "status", "default"]
    )
    assert (refused.status, refused.out) == (2, "")
    assert "--detach needs a running owner, and there is none. Nothing was begun." in refused.err
    assert "leave --detach out" in refused.err
    assert "has never been moved" in none.err
    with shell.started("owner"):
        until(lambda: shell.run("status", "--json").json["owner"], "there is an owner")
        shell.run("move", "start", "default", "--to", "lancedb:other", "--rate", "1", "--detach")
        shell.run("move", "pause", "default")
    resumed, stands = shell.several(["move", "resume", "default", "--detach"], ["move", "status", "default", "--json"])
    assert (resumed.status, resumed.out) == (2, "")
    assert stands.json["paused"], "nothing was changed"


def test_what_differs_is_named_and_can_be_accepted(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "home")
    files(tmp_path / "notes", 3)
    shell.run("ingest", str(tmp_path / "notes"))
    shell.run("move", "start", "default", "--to", "lancedb:other")
    database = lancedb.connect(tmp_path / "home" / "other")
    (name,) = database.list_tables().tables
    row = database.open_table(name).search().limit(1).to_list()[0]
    database.open_table(name).update(where=f"id = '{row['id']}'", values={"text": "Somebody else's words."})

    wrong, accepted, again, switched = shell.several(
        ["move", "verify", "default"],
        ["move", "verify", "default", "--accept"],
        ["move", "verify", "default", "--accept"],
        ["move", "switch", "default", "--json"],
    )
    assert wrong.status == 1
    assert "different 1)" in wrong.out
    assert f"different: {row['id']}" in wrong.out
    assert accepted.status == 0, accepted.err
    assert "is ready" in accepted.out
    assert again.status != 0
    assert "nothing to accept" in again.err
    assert switched.json["state"] == "switched"
    assert switched.json["accepted"]


def test_a_report_is_shown_in_the_browser(tmp_path: Path) -> None:
    shown, programs = tmp_path / "shown", tmp_path / "programs"
    programs.mkdir()
    for name in ("xdg-open", "open"):
        (programs / name).write_text(f'#!/bin/sh\necho "$1" >> {shown}\n')
        (programs / name).chmod(0o755)
    shell = Shell(tmp_path / "home", PATH=f"{programs}:{os.environ['PATH']}")
    files(tmp_path / "notes", 2)
    shell.run("ingest", str(tmp_path / "notes"))
    _, told = shell.several(
        ["move", "start", "default", "--to", "lancedb:other"], ["move", "report", "default", "--open"]
    )
    page = Path(told.out.strip())
    until(lambda: shown.exists() and shown.read_text(), "the page is shown")
    assert shown.read_text().strip().removeprefix("file://") == str(page)

    bare = Shell(tmp_path / "home", PATH=str(tmp_path / "nothing"))
    none = bare.run("move", "report", "default", "--open")
    assert "open the page by hand" in none.err
    assert none.out.strip() == str(page)

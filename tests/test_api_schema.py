"""Schemathesis on the whole API: made-up, malformed and hostile requests by /openapi.json; no 5xx, and every answer as
it is described. The seed is fixed, so that a failure can be had again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import Served

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
]
SECONDS = 20
OPENING = ("GET /ready", "POST /v1/search", "POST /v1/query")
"""503 of these is as it should be for a collection that was just made, whose views are being built."""
CONFIGURATION = "".join(
    f"""
[[operations]]
include-name = "{name}"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", "503"]
"""
    for name in OPENING
)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    home = tmp_path / "home"
    made = Served(home, WHIMBREL_SERVER_HEARTBEAT_S="0.5", WHIMBREL_OWNER_ERASURE_GRACE_S="0")
    try:
        made.wait({"owner": True})
        sent = {"documents": [{"id": "note-1", "text": "The whimbrel flies far."}], "wait": "all"}
        assert made.http.post("/v1/documents", json=sent).status_code == 200
        yield made
    finally:
        assert made.stop() == 0, made.log.read_text()


@pytest.mark.slow
def test_no_request_breaks_it_and_every_answer_is_as_described(served: Served, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{served.url}/openapi.json"]
    command += ["--checks", ",".join(CHECKS), "--seed", "20260131", "--generation-database", "none"]
    command += ["--max-examples", "25", "--max-time", str(SECONDS), "--request-timeout", "30"]
    command += ["--continue-on-failure", "--generation-allow-x00", "true", "--no-color", "--warnings", "off"]
    # A folder of its own: no configuration of somebody else's is found there.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SCHEMATHESIS")}
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    found = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS * 5, check=False
    )
    assert found.returncode == 0, found.stdout[-12_000:] + found.stderr[-2_000:]
    assert "unexpected" not in served.log.read_text()
    assert served.http.get("/v1/documents/note-1").status_code in (200, 404)

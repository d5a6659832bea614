"""Files handed in over HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import Served, refused
from test_formats import PASSWORD, locked_pdf
from whimbrel.errors import BadInput, MalformedUpload, TooLarge
from whimbrel.ingest.handed_in import MAX_NAME, safe_name
from whimbrel.server.multipart import Upload, read_upload

FILE_LIMIT = 300_000
PLACE = "/v1/documents"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("uploads") / "home"
    limits = {
        "INGEST_MAX_FILE_BYTES": str(FILE_LIMIT),
        "SERVER_MAX_UPLOAD_BYTES": "1MB",
        "SERVER_MAX_BODY_BYTES": "64KiB",
    }
    made = Served(home, **{f"WHIMBREL_{name}": value for name, value in limits.items()})
    try:
        made.wait({"owner": True})
        yield made
    finally:
        assert made.stop() == 0, made.log.read_text()


def docx(text: str) -> bytes:
    """The smallest DOCX."""
    kind = "http://schemas.openxmlformats.org"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{kind}/package/2006/content-types"><Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Override PartName="/word/document.xml" '
        'ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{kind}/package/2006/relationships"><Relationship Id="r" '
        f'Type="{kind}/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{kind}/wordprocessingml/2006/main"><w:body><w:p><w:r><w:t>{text}'
        "</w:t></w:r></w:p></w:body></w:document>",
    }
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return made.getvalue()


def test_files_are_taken_in_and_found(served: Served) -> None:
    files = [
        ("file", ("report.docx", docx("The gannet dives from thirty metres."), "application/octet-stream")),
        ("file", ("notes.md", b"# Notes\n\nThe curlew has a curved bill.", "text/markdown")),
    ]
    form = {"collection": "files", "metadata": json.dumps({"kind": "bird"}), "wait": "all"}
    answer = served.http.post(PLACE, files=files, data=form)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["added"], answer.json()["failed"]) == (2, 0)
    found = served.http.post("/v1/search", json={"query": "gannet", "collection": "files", "mode": "lexical"}).json()
    assert found["hits"][0]["uri"] == "upload:report.docx"
    assert found["hits"][0]["metadata"] == {"kind": "bird"}
    listed = served.http.get(PLACE, params={"collection": "files"}).json()["documents"]
    assert {one["uri"]: one["title"] for one in listed} == {"upload:report.docx": "report", "upload:notes.md": "Notes"}


def test_the_same_name_again_replaces_and_ids_tell_apart(served: Served) -> None:
    def sent(text: str, **form: Any) -> dict[str, Any]:
        data = {"collection": "named", "wait": "job", **form}
        return dict(served.http.post(PLACE, files=[("file", ("a.txt", text.encode()))], data=data).json())

    assert sent("One.")["added"] == 1
    assert sent("One.")["unchanged"] == 1
    assert sent("Another one.")["changed"] == 1
    assert sent("A third.", id="three")["added"] == 1
    assert len(served.http.get(PLACE, params={"collection": "named"}).json()["documents"]) == 2


def test_an_idempotency_key_makes_one_job_of_files(served: Served) -> None:
    def sent(text: bytes) -> Any:
        return served.http.post(
            PLACE,
            files=[("file", ("a.txt", text))],
            data={"collection": "keyed"},
            headers={"Idempotency-Key": "upload-1"},
        )

    first = sent(b"Once.")
    assert first.status_code == 202
    assert sent(b"Once.").json()["job_id"] == first.json()["job_id"]
    refused(sent(b"Other."), 409, "Conflict")


def test_a_bad_file_fails_by_itself(served: Served) -> None:
    files = [
        ("file", ("good.txt", b"This one is good.")),
        ("file", ("bad.pdf", b"%PDF-1.7 nothing more")),
        ("file", ("empty.txt", b"")),
    ]
    answer = served.http.post(PLACE, files=files, data={"collection": "mixed", "wait": "job"}).json()
    assert (answer["added"], answer["failed"]) == (1, 2)
    assert {one["uri"] for one in answer["failures"]} == {"upload:bad.pdf", "upload:empty.txt"}
    assert all(one["reason"] and one["hint"] for one in answer["failures"])


def test_a_password_opens_an_upload_and_is_written_nowhere(served: Served) -> None:
    locked = [("file", ("locked.pdf", locked_pdf("The words inside.", PASSWORD)))]

    def sent(**form: Any) -> Any:
        return served.http.post(PLACE, files=locked, data={"collection": "locked", "wait": "all", **form}).json()

    (failure,) = sent()["failures"]
    assert (failure["error"], "`password`" in failure["hint"]) == ("EncryptedFile", True)
    assert sent(password="wrong")["failed"] == 1
    assert sent(password=["", "wrong", PASSWORD])["added"] == 1
    hits = served.http.post("/v1/search", json={"query": "words inside", "collection": "locked"}).json()["hits"]
    assert (hits[0]["uri"], hits[0]["page"]) == ("upload:locked.pdf", 1)
    assert PASSWORD not in served.http.get("/v1/jobs").text + served.log.read_text()
    for path in served.home.rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes(), path
    refused(served.http.post(PLACE, files=locked, data={"password": [str(n) for n in range(21)]}), 422, "BadInput")


def test_a_request_with_passwords_sent_again_is_one_job(served: Served) -> None:
    def sent(**form: str) -> Any:
        return served.http.post(
            PLACE,
            files=[("file", ("again.pdf", locked_pdf("Again.", PASSWORD)))],
            data={"collection": "again", "wait": "job", **form},
            headers={"Idempotency-Key": "locked-1"},
        )

    first = sent(password=PASSWORD).json()
    assert first["added"] == 1
    assert sent(password=PASSWORD).json()["job_id"] == first["job_id"]
    refused(sent(), 409, "Conflict")


def test_a_worker_beside_the_owner_takes_no_passwords(served: Served) -> None:
    beside = Served(served.home)
    try:
        beside.wait({"owner": "elsewhere"})
        files = [("file", ("locked.pdf", locked_pdf("Beside.", PASSWORD)))]
        problem = refused(beside.http.post(PLACE, files=files, data={"password": PASSWORD}), 409, "Conflict")
        assert PASSWORD not in json.dumps(problem)
    finally:
        beside.stop()


@pytest.mark.parametrize("name", ["files", "upload", "metadata", "password"])
def test_only_what_is_sent_as_a_file_becomes_a_document(served: Served, name: str) -> None:
    files = [("file", ("a.txt", b"A text.")), (name, ("b.json", b'{"year": 2024}'))]
    problem = refused(served.http.post(PLACE, files=files, data={"collection": "by-name"}), 422, "InvalidRequest")
    assert name in problem["message"]
    refused(served.http.get(PLACE, params={"collection": "by-name"}), 404, "CollectionNotFound")


def test_a_name_with_a_path_makes_no_file(served: Served) -> None:
    before = set(served.home.parent.rglob("*.txt"))
    for name in ("../../escaped.txt", "/etc/escaped.txt", "..\\..\\escaped.txt", "a/../escaped.txt"):
        answer = served.http.post(PLACE, files=[("file", (name, b"Somewhere else."))], data={"collection": "paths"})
        assert answer.status_code == 202
    served.http.post(PLACE, files=[("file", ("last.txt", b"Last."))], data={"collection": "paths", "wait": "job"})
    listed = served.http.get(PLACE, params={"collection": "paths"}).json()["documents"]
    assert {one["uri"] for one in listed} == {"upload:escaped.txt", "upload:last.txt"}
    assert set(served.home.parent.rglob("*.txt")) == before


@pytest.mark.parametrize(
    ("files", "form", "status", "error", "says"),
    [
        ([("file", ("a.txt", b"x")), ("file", ("a.txt", b"y"))], {}, 422, "BadInput", "replace the other"),
        ([("file", ("a.txt", b"x"))], {"id": ["1", "2"]}, 422, "BadInput", "1 files came with 2 ids"),
        ([("file", ("a.txt", b"x"))], {"id": " "}, 422, "BadInput", "id is blank"),
        ([("file", ("a.txt", b"x"))], {"metadata": "{"}, 422, "BadInput", "no JSON"),
        ([("file", ("a.txt", b"x"))], {"metadata": "[1]"}, 422, "BadInput", "no JSON object"),
        ([("file", ("a.txt", b"x"))], {"metadata": '{"a": {"b": {}}}', "collection": "a b"}, 422, "BadInput", ""),
        ([("file", ("a.txt", b"x"))], {"collecton": "a"}, 422, "InvalidRequest", "'collection'"),
        ([("file", ("a.txt", b"x"))], {"wait": "long"}, 422, "InvalidRequest", "wait"),
        ([("file", ("a.txt", b"x"))], {"wait": ["job", "all"]}, 422, "InvalidRequest", "2 times"),
        ([("file", ("..", b"x"))], {}, 422, "BadInput", "no name"),
        ([("file", ("a.txt", b"x" * (FILE_LIMIT + 1)))], {}, 413, "TooLarge", "larger than 300kB"),
        ([("file", (f"{n}.txt", b"x" * 250_000)) for n in range(5)], {}, 413, "TooLarge", "1MB"),
        ([("file", (f"{n}.txt", b"x")) for n in range(201)], {}, 413, "TooLarge", "200 files"),
    ],
)
def test_bad_forms_are_refused_whole(
    served: Served, files: list[Any], form: dict[str, Any], status: int, error: str, says: str
) -> None:
    told = refused(served.http.post(PLACE, files=files, data={"collection": "refused", **form}), status, error)
    assert says in told["message"]
    assert "refused" not in {one["name"] for one in served.http.get("/v1/collections").json()["collections"]}


PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nsome text'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", PART),
        ("multipart/form-data; boundary=", PART),
        (f"multipart/form-data; boundary={'b' * 300}", PART),
        ("multipart/form-data; boundary=b", PART),
        ("multipart/form-data; boundary=b", PART + b"\r\n--b"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"nothing of the kind"),
        ("multipart/form-data; boundary=b", PART.replace(b'name="file"; ', b"") + b"\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", PART.replace(b"a.txt", b"\xff.txt") + b"\r\n--b--\r\n"),
        ("multipart/mixed; boundary=c", PART + b"\r\n--b--\r\n"),
    ],
)
def test_a_body_that_is_no_form_is_refused(served: Served, kind: str, body: bytes) -> None:
    refused(served.http.post(PLACE, content=body, headers={"Content-Type": kind}), 400, "MalformedUpload")


def test_a_form_without_files_is_refused(served: Served) -> None:
    nameless = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nsome text\r\n--b--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    refused(served.http.post(PLACE, content=nameless, headers=kind), 422, "InvalidRequest")
    refused(
        served.http.post(PLACE, content=nameless.replace(b'"file"', b'"wait"'), headers=kind), 422, "InvalidRequest"
    )
    only = nameless.replace(b'"file"', b'"collection"').replace(b"some text", b"default")
    refused(served.http.post(PLACE, content=only, headers=kind), 422, "BadInput")


def test_files_survive_until_an_owner_comes(tmp_path: Path) -> None:
    """Handed in to a process that is killed before its work is done, they are taken in by the next."""
    home = tmp_path / "home"
    first = Served(home, WHIMBREL_OWNER_POLL_S="2")
    binary = docx("The knot flies to Mauretania. " * 200)
    try:
        first.wait({"owner": True})
        answer = first.http.post(PLACE, files=[("file", ("knot.docx", binary))])
        job = answer.json()["job_id"]
    finally:
        first.kill()
    second = Served(home, WHIMBREL_OWNER_LEASE_S="1")
    try:
        second.wait({"state": "done"}, f"/v1/jobs/{job}", seconds=60)
        assert second.http.get(f"{PLACE}/upload:knot.docx").json()["text"].startswith("The knot flies")
    finally:
        assert second.stop() == 0


def test_files_reach_an_owner_that_is_another_process(tmp_path: Path) -> None:
    owner = Served(tmp_path / "home")
    beside = None
    try:
        owner.wait({"owner": True})
        beside = Served(tmp_path / "home")
        beside.wait({"owner": "elsewhere"})
        files = [("file", (f"{number}.docx", docx(f"The knot, number {number}."))) for number in range(3)]
        answer = beside.http.post(PLACE, files=files, data={"wait": "all"})
        assert (answer.status_code, answer.json().get("added")) == (200, 3), answer.text
    finally:
        if beside is not None:
            assert beside.stop() == 0
        assert owner.stop() == 0


# --- its parts ------------------------------------------------------------------------------------------------------


def _form(files: list[tuple[str, bytes]], fields: list[tuple[str, str]]) -> bytes:
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode() for name, value in fields]
    parts += [
        f'Content-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: x/y\r\n\r\n'.encode() + data
        for name, data in files
    ]
    return b"".join(b"--limit\r\n" + part + b"\r\n" for part in parts) + b"--limit--\r\n"


async def _read(pieces: list[bytes], folder: Path, limit: int = 10_000) -> Upload:
    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return await read_upload(body(), "multipart/form-data; boundary=limit", folder, limit)


@settings(max_examples=60, deadline=None)
@given(
    contents=st.lists(st.binary(max_size=300), max_size=4),
    fields=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=3),
    cuts=st.lists(st.integers(0, 2_000), max_size=12),
)
def test_however_a_body_is_cut_the_files_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], fields: list[str], cuts: list[int]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    body = _form([(f"{n}.bin", data) for n, data in enumerate(contents)], [("id", value) for value in fields])
    edges = sorted({0, len(body), *(min(cut, len(body)) for cut in cuts)})
    pieces = [body[start:end] for start, end in pairwise(edges)]
    upload = asyncio.run(_read(pieces, folder))
    try:
        assert [(one.name, one.read(), one.size) for one in upload.files] == [
            (f"{n}.bin", data, len(data)) for n, data in enumerate(contents)
        ]
        assert list(upload.fields.get("id", [])) == fields
    finally:
        upload.close()


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400))
def test_a_body_that_breaks_off_is_never_taken(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    body = _form([("a.bin", b"x" * 100)], [("collection", "c")])
    cut = min(cut, len(body) - len("--\r\n"))
    with pytest.raises(MalformedUpload):
        asyncio.run(_read([body[:cut]], tmp_path_factory.getbasetemp()))


async def test_nothing_is_left_on_the_disk(tmp_path: Path) -> None:
    upload = await _read([_form([("a.bin", b"x" * 9_000)], [])], tmp_path)
    assert not any(tmp_path.iterdir())  # also while it is open: the file has no name
    upload.close()
    with pytest.raises(TooLarge):
        await _read([_form([("a.bin", b"x" * 10_001)], [])], tmp_path)
    assert not any(tmp_path.iterdir())


@given(st.text(max_size=400))
def test_a_name_is_printable_short_and_no_path(name: str) -> None:
    try:
        safe = safe_name(name)
    except BadInput:
        return
    assert 0 < len(safe) <= MAX_NAME
    assert not set(safe) & set("/\\\0\r\n")
    assert safe not in (".", "..")
    safe.encode()
    assert safe_name(safe) == safe


@pytest.mark.parametrize(
    ("given_name", "safe"),
    [
        ("C:\\Users\\me\\a.pdf", "a.pdf"),
        ("x" * 500 + ".pdf", "x" * 180 + ".pdf"),
        (" a\x00b\n.md ", "ab.md"),
        ("ü.txt", "ü.txt"),
    ],
)
def test_names(given_name: str, safe: str) -> None:
    assert safe_name(given_name) == safe

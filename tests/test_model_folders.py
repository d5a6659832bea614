"""Encoders in the layout of the Hugging Face Hub: from a folder, and from a hub."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from small_models import WORDS, encoder, weights
from whimbrel import Whimbrel
from whimbrel.domain import EmbedKind
from whimbrel.errors import ConfigError, ModelDown, TextRefused
from whimbrel.models.embedders.layout import fingerprint
from whimbrel.models.embedders.onnx import OnnxEmbedder
from whimbrel.models.embedders.resolve import resolve_embedder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def embedder(spec: str) -> OnnxEmbedder:
    found = resolve_embedder(f"onnx:{spec}", threads=1)
    assert isinstance(found, OnnxEmbedder)
    return found


def tokens(text: str) -> np.ndarray:
    """float32[n, d], with those of [CLS] and [SEP]."""
    rows = [2, *(WORDS.index(word) + 4 for word in text.split()), 3]
    return weights()[rows]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize(
    ("pooling", "of"),
    [
        ("mean", lambda rows: rows.mean(axis=0)),
        ("cls", lambda rows: rows[0]),
        ("max", lambda rows: rows.max(axis=0)),
        ("lasttoken", lambda rows: rows[-1]),
    ],
)
@pytest.mark.parametrize("normalise", [True, False])
def test_vectors_are_pooled_as_the_folder_says(tmp_path: Path, pooling: str, of: Any, normalise: bool) -> None:
    model = embedder(str(encoder(tmp_path / "m", pooling=pooling, normalise=normalise)))
    assert (model.space.pooling, model.space.normalised, model.space.dimensions) == (pooling, normalise, 12)
    text = "the sandpiper sings"
    (vector,) = model.embed_sync([text], EmbedKind.DOCUMENT)
    expected = of(tokens(text))
    assert np.allclose(vector, unit(expected) if normalise else expected, atol=1e-6)


def test_prompts_limits_and_names_are_the_folders(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "m", prompts={"query": "query: ", "passage": "passage: "}, max_tokens=9)
    model = embedder(str(folder))
    assert (model.space.query_prefix, model.space.document_prefix) == ("query: ", "passage: ")
    assert (model.space.max_tokens, model.space.numeric, model.space.model) == (9, "fp32", "m")
    (asked,) = model.embed_sync(["the sea"], EmbedKind.QUERY)
    assert np.allclose(asked, unit(tokens("query: the sea").mean(axis=0)), atol=1e-6)
    with pytest.raises(TextRefused):
        model.embed_sync(["sea " * 7], EmbedKind.DOCUMENT)
    other = embedder(f"{folder}?query_prefix=&max_tokens=20")
    assert (other.space.query_prefix, other.space.max_tokens) == ("", 20)


def test_the_same_folder_is_the_same_space_and_other_weights_are_another(tmp_path: Path) -> None:
    one = embedder(str(encoder(tmp_path / "a" / "m"))).space
    shutil.copytree(tmp_path / "a" / "m", tmp_path / "b" / "m")
    assert embedder(str(tmp_path / "b" / "m")).space == one
    assert embedder(str(encoder(tmp_path / "c" / "m", seed=8))).space.key != one.key


def test_a_change_within_a_large_file_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(40 << 20))
    before = fingerprint([tmp_path / "a"])
    with (tmp_path / "a").open("r+b") as file:
        file.seek((40 << 20) - 100)
        file.write(b"x")
    assert fingerprint([tmp_path / "a"]) != before


def test_another_network_of_the_folder_is_named_and_is_another_space(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "m")
    shutil.copy(folder / "onnx/model.onnx", folder / "onnx/model_quantized.onnx")
    assert embedder(f"{folder}?file=onnx/model_quantized.onnx").space.numeric == "int8 (model_quantized)"
    with pytest.raises(ConfigError) as raised:
        embedder(f"{folder}?file=onnx/no.onnx")
    assert "onnx/model_quantized.onnx" in raised.value.hint
    (folder / "onnx/model.onnx").unlink()
    with pytest.raises(ConfigError) as raised:
        embedder(str(folder))
    assert "?file=onnx/model_quantized.onnx" in raised.value.hint


@pytest.mark.parametrize("missing", ["tokenizer.json", "onnx/model.onnx", "config.json", "1_Pooling/config.json"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = encoder(tmp_path / "m")
    (folder / missing).unlink()
    with pytest.raises(ConfigError) as raised:
        embedder(str(folder))
    said = raised.value.message
    assert missing in said or ("ONNX" in said) or ("become one" in said)
    assert raised.value.hint


def test_a_pooling_that_is_not_said_is_asked_for(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "m")
    (folder / "modules.json").unlink()
    with pytest.raises(ConfigError) as raised:
        embedder(str(folder))
    assert "?pooling=mean" in raised.value.hint
    assert embedder(f"{folder}?pooling=cls").space.pooling == "cls"


@pytest.mark.parametrize(
    ("options", "message"),
    [("poling=mean", "takes no option 'poling'"), ("pooling=sum", "no pooling 'sum'"), ("max_tokens=x", "max_tokens")],
)
def test_a_wrong_option_is_named(tmp_path: Path, options: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        embedder(f"{encoder(tmp_path / 'm')}?{options}")
    assert message in raised.value.message


def test_a_layer_that_the_network_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "m")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConfigError, match="Dense"):
        embedder(str(folder))


def test_a_network_of_other_dimensions_is_refused(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "m")
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"hidden_size": 24}))
    with pytest.raises(ConfigError, match="vectors of 24"):
        embedder(str(folder)).warm()


def test_a_collection_is_made_and_searched_with_it(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "m", max_tokens=512)
    with Whimbrel(tmp_path / "home", embedder=f"onnx:{folder}") as whimbrel:
        whimbrel.add([{"id": "a", "text": "the sandpiper sings"}, {"id": "b", "text": "the sea sleeps"}])
        whimbrel.wait_for_head("default")
        assert whimbrel.search("the sandpiper sings", mode="dense").hits[0].text == "the sandpiper sings"


# --- a hub -----------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """What `huggingface_hub` asks of one."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(f"{self.command} {path}")
        files = [str(one.relative_to(self.folder)) for one in self.folder.rglob("*") if one.is_file()]
        if path.startswith("/api/models/org/small/tree/"):
            tree = [{"type": "file", "oid": "0", "size": 1, "path": name} for name in files]
            self._answer(json.dumps(tree).encode())
        elif path.startswith("/api/models/org/small"):
            about = {
                "id": "org/small",
                "modelId": "org/small",
                "sha": COMMIT,
                "private": False,
                "tags": [],
                "downloads": 0,
            }
            self._answer(json.dumps({**about, "siblings": [{"rfilename": name} for name in files]}).encode())
        elif path.startswith("/org/small/resolve/"):
            file = self.folder / path.split("/", 5)[5]
            self._answer(file.read_bytes() if file.is_file() else None)
        else:
            self._answer(None, "RepoNotFound")

    def _answer(self, body: bytes | None, code: str = "EntryNotFound") -> None:
        self.send_response(200 if body is not None else 404)
        if body is None:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{len(body or b"")}"')
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body or b"")

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    folder = encoder(tmp_path / "hub")
    (folder / "pytorch_model.bin").write_bytes(b"large")
    handler = type("OfTest", (Hub,), {"folder": folder, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def test_a_model_is_taken_from_the_hub_and_needs_it_once(hub: ThreadingHTTPServer) -> None:
    model = embedder("org/small")
    assert (model.space.model, model.space.revision) == ("org/small", COMMIT)
    (vector,) = model.embed_sync(["the sea"], EmbedKind.DOCUMENT)
    assert np.allclose(vector, unit(tokens("the sea").mean(axis=0)), atol=1e-6)
    assert not any("pytorch_model.bin" in line for line in hub.RequestHandlerClass.asked)  # type: ignore[attr-defined]
    hub.shutdown()
    hub.server_close()
    assert embedder("org/small").space == model.space


def test_a_model_that_the_hub_does_not_know_or_that_cannot_be_had_is_said(
    hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="knows no model org/other"):
        embedder("org/other")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelDown) as raised:
        embedder("org/elsewhere")
    assert "onnx:./PATH" in raised.value.hint

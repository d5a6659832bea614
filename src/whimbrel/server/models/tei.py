"""The routes of Text Embeddings Inference: https://huggingface.github.io/text-embeddings-inference.

`prompt_name` says what a text is: a `query`, or a `document` (also where it is left out); what the model wants before
the one or the other is put there. A query that is longer than the model reads is read in parts, as by ourselves; a
document is refused, or cut where `truncate` asks for that.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic_core import from_json

from whimbrel.domain import EmbedKind
from whimbrel.errors import InvalidRequest
from whimbrel.models.embedders.wires import FLOAT32
from whimbrel.server.models.models import Models
from whimbrel.server.models.replies import Reply, packed, said
from whimbrel.server.models.shapes import Embed, Rerank, parsed

Headers = Mapping[bytes, bytes]

_FLOAT32 = FLOAT32.encode()


async def info(models: Models, _body: bytes, _headers: Headers) -> Reply:
    return said(models.info())


async def embed(models: Models, body: bytes, headers: Headers) -> Reply:
    """`[[...], ...]`, one vector for each text; as bytes for who accepts those."""
    served = models.embeds()
    asked = parsed(body, Embed)
    texts = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
    kind = EmbedKind.QUERY if asked.prompt_name == "query" else EmbedKind.DOCUMENT
    if served.space.normalised and not asked.normalize:
        raise InvalidRequest("This model's vectors are of unit length.", "Leave `normalize` out.")
    if asked.truncate:
        if asked.truncation_direction.lower() != "right":
            raise InvalidRequest("A text is cut at its end.", "Leave `truncation_direction` out.")
        texts = await models.cut(texts)
    vectors = await models.embed(texts, kind)
    if asked.normalize and not served.space.normalised:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    if _FLOAT32 in headers.get(b"accept", b""):
        return packed(vectors, served.space.key)
    return said(vectors.tolist())


async def rerank(models: Models, body: bytes, _headers: Headers) -> Reply:
    """`[{"index", "score"}, ...]`, best first; scores are 0..1."""
    asked = parsed(body, Rerank)
    if asked.raw_scores:
        raise InvalidRequest("Scores are served from 0 to 1 only.", "Leave `raw_scores` out.")
    scores = await models.rerank(asked.query, asked.texts)
    order = np.argsort(-scores, kind="stable").tolist()
    found = [{"index": index, "score": float(scores[index])} for index in order]
    if asked.return_text:
        found = [{**one, "text": asked.texts[index]} for one, index in zip(found, order, strict=True)]
    return said(found)


async def either(models: Models, body: bytes, headers: Headers) -> Reply:
    """`POST /`, as Hugging Face's endpoints are asked: by what is in it."""
    if models.reranker_spec and (not models.embedder_spec or _has_query(body)):
        return await rerank(models, body, headers)
    return await embed(models, body, headers)


def _has_query(body: bytes) -> bool:
    """Among the names, not among the values: `prompt_name` may be `query`."""
    if b'"query"' not in body:
        return False
    try:
        asked = from_json(body)
    except ValueError:
        return False
    return isinstance(asked, dict) and "query" in asked

"""The routes of OpenAI: https://platform.openai.com/docs/api-reference/embeddings."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import numpy as np

from whimbrel.domain import EmbedKind
from whimbrel.errors import InvalidRequest, NotFound
from whimbrel.server.models.models import Models
from whimbrel.server.models.replies import Reply, said
from whimbrel.server.models.shapes import Embeddings, parsed

Headers = Mapping[bytes, bytes]


async def embeddings(models: Models, body: bytes, _headers: Headers) -> Reply:
    """Vectors as numbers, or as base64 of float32. A text is a document unless `input_type` is `query`."""
    served = models.embeds()
    asked = parsed(body, Embeddings)
    if asked.model not in served.names:
        raise NotFound(
            f"There is no model {asked.model[:200]!r} here.", f"Served is: {', '.join(map(repr, served.names))}."
        )
    if asked.dimensions not in (None, served.space.dimensions):
        raise InvalidRequest(
            f"This model's vectors have {served.space.dimensions} dimensions.", "Leave `dimensions` out."
        )
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    kind = EmbedKind.QUERY if asked.input_type == "query" else EmbedKind.DOCUMENT
    vectors = await models.embed(texts, kind)
    if asked.encoding_format == "base64":
        packed = np.ascontiguousarray(vectors, "<f4")
        made: list[object] = [base64.b64encode(row.tobytes()).decode() for row in packed]
    else:
        made = vectors.tolist()
    tokens = await models.count_tokens(texts)
    data = [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(made)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return said({"object": "list", "data": data, "model": served.space.model, "usage": usage})


async def models_list(models: Models, _body: bytes, _headers: Headers) -> Reply:
    names = models.served.names[:1] if models.served else []
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "whimbrel"} for name in names]
    return said({"object": "list", "data": data})

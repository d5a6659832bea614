"""One request to a server of models. No answer is read that is larger than any could be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from whimbrel.errors import ModelMalformed

if TYPE_CHECKING:
    import httpx

MOST_BYTES = 128 << 20
"""Of an answer: some 1,000 vectors of 4,096 dimensions, written as JSON."""


async def answered(
    client: httpx.AsyncClient,
    name: str,
    method: str,
    url: str,
    body: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> httpx.Response:
    """An answer that was read, of any status. Raises `httpx.HTTPError`, and `ModelMalformed` for one without end.

    `name`: the model's, for messages.
    """
    request = client.build_request(method, url, json=body, headers=headers)
    answer = await client.send(request, stream=True)
    try:
        length = answer.headers.get("content-length", "")
        if not length.isdecimal():
            return await _bounded(answer, name)
        if int(length) > MOST_BYTES:
            raise _too_large(name)
        await answer.aread()
        return answer
    finally:
        await answer.aclose()


async def _bounded(answer: httpx.Response, name: str) -> httpx.Response:
    import httpx

    parts, size = [], 0
    async for part in answer.aiter_bytes():
        size += len(part)
        if size > MOST_BYTES:
            raise _too_large(name)
        parts.append(part)
    headers = [
        (key, value) for key, value in answer.headers.items() if key not in ("content-encoding", "content-length")
    ]
    return httpx.Response(answer.status_code, headers=headers, content=b"".join(parts), request=answer.request)


def _too_large(name: str) -> ModelMalformed:
    return ModelMalformed(
        f"The answer of {name} is larger than {MOST_BYTES >> 20} MiB. Nothing was kept of it.", "Check its address."
    )

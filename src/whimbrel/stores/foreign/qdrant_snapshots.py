"""Collections from one Qdrant server to another by their snapshots, which hold rows, index and configuration.

The file goes through this process: the servers need not see each other. A snapshot that was made for it is removed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import httpx

from whimbrel.errors import Conflict, NotFound, StoreRefused, StoreUnsupported, ViewDamaged
from whimbrel.stores.base import Reach
from whimbrel.stores.qdrant.backend import ServerBackend
from whimbrel.stores.qdrant.rules import check_name
from whimbrel.stores.qdrant.uri import Server, parse_server

_TIMEOUT = httpx.Timeout(3_600.0, connect=10.0)
"""Of the making, the way and the recovery of one snapshot, in seconds."""


class Snapshots:
    """Raises what `whimbrel.stores.base` says of a store."""

    def __init__(self, source: str, target: str) -> None:
        """The URIs of two servers."""
        reach = Reach(timeout_s=3_600.0)
        self._from, self._to = parse_server(source), parse_server(target)
        self._source, self._target = ServerBackend(self._from, reach), ServerBackend(self._to, reach)

    async def names(self) -> list[str]:
        found = await self._source.do(lambda client: client.get_collections())
        return sorted(one.name for one in found.collections)

    async def check(self, names: Sequence[str]) -> None:
        """Before anything is made: the versions fit, and none of the targets is there."""
        here, there = await self._source.version(), await self._target.version()
        if here[0] != there[0] or not here[1] <= there[1] <= here[1] + 1:
            raise StoreUnsupported(
                f"A snapshot of Qdrant {here[0]}.{here[1]} is for that version or the next; {self._target.shown} has "
                f"{there[0]}.{there[1]}. Nothing was copied.",
                "Copy without `--cold`, which goes between any versions.",
            )
        for name in names:
            check_name(name)
            if await self._is_there(self._target, name):
                raise Conflict(
                    f"There is a collection {name!r} at {self._target.shown} already. Nothing was changed.",
                    "Name another collection or server.",
                )

    async def carry(self, name: str, to: str) -> tuple[int, int]:
        """(its rows, the bytes of its snapshot). Raises `ViewDamaged` where the file or the rows are not the same."""
        if not await self._is_there(self._source, name):
            raise NotFound(f"There is no collection {name!r} at {self._source.shown}. Nothing was copied.")
        with TemporaryDirectory() as folder:
            file = Path(folder) / "snapshot"
            async with self._snapshot(name) as made:
                # Of what the snapshot holds; rows that are written later are not in it.
                due = await self._count(self._source, name)
                digest = await self._download(f"{_of(name)}/{quote(made.name, safe='')}", file)
            if made.checksum and made.checksum != digest:
                raise ViewDamaged(f"The snapshot of {name!r} did not arrive as it was made.", "Copy it again.")
            await self._upload(to, file, digest)
            size = file.stat().st_size
        found = await self._count(self._target, to)
        if found != due:
            raise ViewDamaged(
                f"{to!r} at {self._target.shown} has {found:,} rows, {name!r} at {self._source.shown} {due:,}.",
                "If the source was written to meanwhile, drop the target and copy again, or copy without `--cold`.",
            )
        return found, size

    async def close(self) -> None:
        await self._source.close()
        await self._target.close()

    # --- inside ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _snapshot(self, name: str) -> AsyncIterator[Any]:
        made = await self._source.do(lambda client: client.create_snapshot(name, wait=True))
        if made is None:
            raise StoreRefused(f"{self._source.shown} makes no snapshot of {name!r}.", "Copy without `--cold`.")
        try:
            yield made
        finally:
            await self._source.do(lambda client: client.delete_snapshot(name, made.name, wait=True))

    async def _is_there(self, backend: ServerBackend, name: str) -> bool:
        return bool(await backend.do(lambda client: client.collection_exists(name)))

    async def _count(self, backend: ServerBackend, name: str) -> int:
        answer = await backend.do(lambda client: client.count(name, exact=True))
        return int(answer.count)

    async def _download(self, path: str, file: Path) -> str:
        """SHA-256 of what came."""
        found = sha256()

        async def load(_: Any) -> None:
            async with _http(self._from) as http, http.stream("GET", path) as response:
                if response.is_error:
                    raise _refused(response, await response.aread())
                with file.open("wb") as written:
                    async for block in response.aiter_bytes(1 << 20):
                        found.update(block)
                        written.write(block)

        await self._source.do(load)
        return found.hexdigest()

    async def _upload(self, name: str, file: Path, digest: str) -> None:
        async def send(_: Any) -> None:
            with file.open("rb") as read:
                async with _http(self._to) as http:
                    response = await http.post(
                        f"{_of(name)}/upload",
                        params={"wait": "true", "priority": "snapshot", "checksum": digest},
                        files={"snapshot": ("snapshot", read)},
                    )
                if response.is_error:
                    raise _refused(response, response.content)

        await self._target.do(send)


def _of(name: str) -> str:
    return f"/collections/{quote(name, safe='')}/snapshots"


def _http(server: Server) -> httpx.AsyncClient:
    headers = {"api-key": server.key} if server.key else {}
    return httpx.AsyncClient(base_url=server.url, headers=headers, timeout=_TIMEOUT)


def _refused(response: httpx.Response, content: bytes) -> Exception:
    from qdrant_client.http.exceptions import UnexpectedResponse

    return UnexpectedResponse(response.status_code, response.reason_phrase, content, response.headers)

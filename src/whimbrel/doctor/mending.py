"""Mending through the app: as the owner, or through the one that there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from whimbrel.catalog import jobs
from whimbrel.config import Settings
from whimbrel.errors import Conflict, NotFound

if TYPE_CHECKING:
    from whimbrel.app import Whimbrel

PATIENCE_S = 3_600.0


class Mender:
    """Opens the home when the first thing is mended."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open: Whimbrel | None = None
        self._touched: set[str] = set()

    @property
    def whimbrel(self) -> Whimbrel:
        if self._open is None:
            from whimbrel.app import Whimbrel

            self._open = Whimbrel(settings=self._settings)
            self._open.own()
        return self._open

    def rebuilding(self, collection: str, view: int, reason: str) -> Callable[[], None]:
        """Build a view anew beside itself, unless the owner has seen to it already."""

        def mend() -> None:
            whimbrel = self.whimbrel
            self._touched.add(collection)
            try:
                whimbrel.finish(whimbrel.start_view_job("rebuild_view", view, reason=reason), timeout_s=PATIENCE_S)
            except (NotFound, Conflict):  # the owner, starting, has found the damage and replaced the view by itself
                return

        return mend

    def catching_up(self, collection: str) -> Callable[[], None]:
        """Let the owner do what it does, and wait."""

        def mend() -> None:
            _ = self.whimbrel
            self._touched.add(collection)

        return mend

    def deleting(self, collection_id: int, name: str) -> Callable[[], None]:
        """Start the job again that removes a deleted collection."""

        def mend() -> None:
            args = {"collection_id": collection_id}
            with self.whimbrel.catalog.write() as connection:
                job, _ = jobs.enqueue(
                    connection, "delete_collection", collection_id=collection_id, collection=name, args=args
                )
            self.whimbrel.finish(job, timeout_s=PATIENCE_S)

        return mend

    def settle(self) -> None:
        """Until the views of the collections that were mended hold everything."""
        for name in sorted(self._touched):
            self.whimbrel.wait_for_head(name, timeout_s=PATIENCE_S)
        self._touched.clear()

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

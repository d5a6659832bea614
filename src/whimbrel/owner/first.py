"""The views that a collection begins with: made as soon as its model is there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from whimbrel.catalog import collections
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.domain import ViewKind
from whimbrel.errors import ModelError, UserError
from whimbrel.owner.parts import Parts, Where
from whimbrel.owner.succession import add_first

logger = logging.getLogger("whimbrel.owner")

LONGEST_PAUSE_S = 60.0
"""Between two attempts to make a view whose model does not answer, or refuses the key."""


class FirstViews:
    """Lives on the owner's loop."""

    def __init__(self, parts: Parts, fence: int) -> None:
        self._parts = parts
        self._fence = fence
        self._cannot_make: dict[tuple[int, ViewKind], str] = {}
        self._make_again: dict[tuple[int, ViewKind], tuple[float, float]] = {}
        """When (by the monotonic clock), and how long to wait should that fail too."""

    async def ensure(self, collection: Collection, views: Sequence[ViewRow]) -> None:
        """Each collection has a live store view and lexicon, or one being built."""
        for kind, live in ((ViewKind.LEXICON, collection.lexicon_view_id), (ViewKind.STORE, collection.store_view_id)):
            if live is not None or any(row.view.kind is kind for row in collections.fed(views)):
                continue
            due, pause = self._make_again.get((collection.id, kind), (0.0, 1.0))
            if time.monotonic() < due:
                continue
            try:
                made = await asyncio.to_thread(self._parts.default_view, collection, kind)
            except (UserError, ModelError) as error:  # the model is not there, or its name is wrong
                self._make_again[collection.id, kind] = time.monotonic() + pause, min(2 * pause, LONGEST_PAUSE_S)
                if self._cannot_make.get((collection.id, kind)) != error.message:
                    self._cannot_make[collection.id, kind] = error.message
                    logger.warning("no %s view of %s can be made: %s", kind, collection.name, error.message)
                continue
            if made is not None:
                await asyncio.to_thread(add_first, self._parts.catalog, self._fence, collection, kind, made)

    async def place_today(self, collection: Collection, row: ViewRow) -> Where | None:
        """Where the collection's first view of that kind goes today. None where that cannot be told."""
        try:
            return await asyncio.to_thread(self._parts.default_view, collection, row.view.kind)
        except (UserError, ModelError) as error:  # the model is not there, or its name is wrong
            logger.warning("view %s is built anew as it was: %s", row.id, error.message)
            return None

"""Texts of one space that a model has been given, so that no two stages pay for the same one.

Stages of one space differ in collection or chunking, and the same text may be in both: while a collection is on its way
to another chunking, each new text that is one chunk in either comes to two of them at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

Made = npt.NDArray[np.float32] | str
"""float32[dimensions], or why the model refuses the text."""


class UnderWay:
    """For one space; used on the owner's loop alone."""

    def __init__(self) -> None:
        self._texts: dict[int, asyncio.Future[Made | None]] = {}

    def claim(self, text_ids: Iterable[int]) -> tuple[list[int], dict[int, asyncio.Future[Made | None]]]:
        """(those that nobody has under way: the caller's, from now until `release`; what will be made of the others).

        What is made is None where whoever had a text has given it up.
        """
        mine: list[int] = []
        theirs: dict[int, asyncio.Future[Made | None]] = {}
        for text in text_ids:
            found = self._texts.get(text)
            if found is None:
                self._texts[text] = asyncio.get_running_loop().create_future()
                mine.append(text)
            else:
                theirs[text] = found
        return mine, theirs

    def tell(self, made: Mapping[int, Made]) -> None:
        """What has been made of claimed texts; they stay claimed until they are stored."""
        for text, one in made.items():
            self._texts[text].set_result(one)

    def release(self, text_ids: Iterable[int]) -> None:
        """Claimed texts are stored, or given up: whoever waits for one claims it."""
        for text in text_ids:
            future = self._texts.pop(text)
            if not future.done():
                future.set_result(None)

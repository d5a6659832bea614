"""What programs, the CLI and the API ask of a home, beside searching: everything that only needs the catalog and jobs.

Writes of documents and changes of views are jobs: enqueued here, done by the owner, waited for if asked to.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whimbrel import __version__
from whimbrel.catalog import collections, conversations, listing
from whimbrel.catalog.conversations import Conversation, Turn
from whimbrel.owner import lock
from whimbrel.service.exchange import Exchange
from whimbrel.service.jobs import JobFailed

if TYPE_CHECKING:
    from whimbrel.catalog.backup import BackupReport, RestoreReport

__all__ = ["JobFailed", "Service"]

RowsDone = Callable[[str, int, int], None]
"""Called with a table's name, the rows done so far and the rows in all."""

RESTORE_LEASE_S = 3_600.0


class Service(Exchange):
    """The part of `Whimbrel` that works on rows."""

    def conversations(self, collection: str | None = None, *, limit: int = 100, offset: int = 0) -> list[Conversation]:
        """The last used first. Raises `CollectionNotFound`."""
        with self.catalog.read() as connection:
            key = collections.find(connection, collection).id if collection is not None else None
            return conversations.listing(connection, key, limit, offset)

    def conversation(self, conversation_id: str) -> tuple[Conversation, list[Turn]]:
        """A conversation and its turns, oldest first. Raises `ConversationNotFound`."""
        with self.catalog.read() as connection:
            return conversations.get(connection, conversation_id), conversations.turns(connection, conversation_id)

    def start_conversation(self, collection: str = "default") -> Conversation:
        """An empty one, to ask in. Raises `CollectionNotFound`."""
        with self.catalog.write() as connection:
            made = conversations.create(connection, collections.find(connection, collection).id)
            return conversations.get(connection, made)

    def delete_conversation(self, conversation_id: str) -> None:
        """With its turns and feedback. Raises `ConversationNotFound`."""
        with self.catalog.write() as connection:
            conversations.remove(connection, conversation_id)

    def add_feedback(self, turn_id: str, rating: int, comment: str = "") -> None:
        """What a user thinks of a stored answer: 1 is good, -1 bad. Raises `TurnNotFound`, `BadInput`."""
        with self.catalog.write() as connection:
            conversations.rate(connection, turn_id, rating, comment)

    # --- backup ------------------------------------------------------------------------------------------------------

    def backup(self, target: str | Path, *, overwrite: bool = False, progress: RowsDone | None = None) -> BackupReport:
        """Save the catalog to one file, as it is at one moment. Views are not in it: they follow from the catalog."""
        from whimbrel.catalog.backup import backup

        path = Path(target).expanduser().absolute()
        return backup(self.catalog, path, version=__version__, overwrite=overwrite, progress=progress)

    def restore(self, archive: str | Path, *, progress: RowsDone | None = None) -> RestoreReport:
        """Fill this home, which must be empty and without an owner. Its views are built when it has one (`own`).

        Raises `AlreadyOwned`, `Conflict`, `BackupError`.
        """
        from whimbrel.catalog.backup import restore

        # Nobody renews the lease meanwhile: the restore is one transaction, as long as it takes.
        ownership = lock.acquire(self.home, self.catalog, lease_s=RESTORE_LEASE_S)
        try:
            return restore(Path(archive).expanduser().absolute(), self.catalog, progress=progress)
        finally:
            ownership.release()

    # --- state -------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Collections, documents by state, views with their lag, jobs that are not done."""
        with self.catalog.read() as connection:
            found = listing.status(connection, self.settings, str(self.home.path))
            every = collections.every(connection)
        for one, analysed_as in zip(found["collections"], self.languages(every), strict=True):
            one["analysed_as"] = analysed_as
        owner = lock.lease_of(self.home, self.catalog)
        return {**found, "owner": {"holder": owner.holder, **owner.info} if owner is not None else None}

"""Jobs of a home: asked for here, done by the owner, waited for; and what else any part of the service needs."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from whimbrel.catalog import collections, compatible, jobs, listing, vectors
from whimbrel.catalog.collections import ViewRow
from whimbrel.catalog.engine import Catalog
from whimbrel.config import Settings
from whimbrel.domain import Job, JobState, ViewKind, ViewState
from whimbrel.errors import Conflict, ViewError, WaitTimeout, WhimbrelError
from whimbrel.home import Home
from whimbrel.models.embedders.unknown import UNKNOWN

if TYPE_CHECKING:
    from whimbrel.owner.owner import Owner

Progress = Callable[[Job], None]

OnLag = Callable[[listing.Lag], None]

OUTAGE_S = 6.0
"""A catalog that the owner could not write to for so long is not waited for any longer: it tries every 5 s at least."""

STALLED_S = 30.0
"""A view that has an error and has not moved for so long is not waited for any longer."""


class Jobs(ABC):
    """A home, its owner if that is here, and the jobs that it does."""

    def __init__(self, catalog: Catalog, settings: Settings, home: Home) -> None:
        self.catalog = catalog
        self.settings = settings
        self.home = home
        self.owner: Owner | None = None
        self._secrets: dict[str, Sequence[str]] = {}

    @abstractmethod
    def own(self) -> bool:
        """Become the owner, if nobody is. True when this process owns the home now."""

    @abstractmethod
    def run_here(self, job: Job) -> None:
        """Do a job that reads files of this machine, where the owner is on another one; else nothing."""

    def _wake(self) -> None:
        if self.owner is not None:
            self.owner.wake()

    def secrets_of(self, name: str) -> Sequence[str]:
        """What was given to this process under that name: after a restart, nothing."""
        return self._secrets.get(name, ())

    def forget_secrets(self, name: str) -> None:
        self._secrets.pop(name, None)

    def finish(
        self,
        job: Job,
        *,
        wait: str = "job",
        on_progress: Progress | None = None,
        on_lag: OnLag | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Wait for a job, becoming the owner if nobody is; then for the views. Returns the job's result.

        Raises the job's error; `WaitTimeout` after `timeout_s` (the job goes on); `DiskFull` or `CatalogUnavailable`
        where this process is the owner and cannot write down how the job goes (it goes on when that has passed).
        """
        began = time.monotonic()
        deadline = began + timeout_s if timeout_s is not None else None
        last_check = 0.0
        while job.state not in (JobState.DONE, JobState.FAILED, JobState.CANCELLED):
            if time.monotonic() - last_check > 1.0:
                if not self.own() and job.state is JobState.QUEUED:  # own: also when the owner that was there has died
                    self.run_here(job)
                last_check = time.monotonic()
            if time.monotonic() - began > OUTAGE_S and (outage := self._outage()) is not None:
                raise outage
            _past(deadline, f"Job {job.id} ({job.kind}) is {job.state} still.")
            if job.state is JobState.WAITING and wait != "end":
                break
            time.sleep(_pause(began))
            job = self.job(job.id)
            if on_progress is not None:
                on_progress(job)
        if job.state is not JobState.WAITING:
            self.forget_secrets(job.args.get("secrets", ""))
        if job.state is JobState.FAILED:
            raise JobFailed.of(job)
        if job.state is JobState.CANCELLED:
            raise Conflict(f"Job {job.id} was cancelled.", "What it had done stays; start it again to go on.")
        result = {"job_id": job.id, **job.result}
        if wait in ("all", "lexical") and job.collection is not None and "position" in result:
            self.wait_for(
                job.args["collection_id"], int(result["position"]), wait=wait, deadline=deadline, on_lag=on_lag
            )
        return result

    def _outage(self) -> WhimbrelError | None:
        return self.owner.outages.standing(OUTAGE_S) if self.owner is not None else None

    def wait_for(
        self,
        collection_id: int,
        position: int,
        *,
        wait: str = "all",
        deadline: float | None = None,
        on_lag: OnLag | None = None,
    ) -> None:
        """Until the live lexicon (`lexical`), or every live view (`all`), has passed a position of the log."""
        began = last_check = moved_at = time.monotonic()
        stood: tuple[list[tuple[int, int]], int] | None = None
        while True:
            with self.catalog.read() as connection:
                collection = collections.by_id(connection, collection_id)
                if collection is None or collection.deleting:
                    return
                live = collections.live_views(connection, collection)
                views = collections.fed(collections.views(connection, collection_id))
                lag = listing.lag(connection, views, position)
                waits_for_model = wait == "all" and _waits_for_model(connection, views)
            if on_lag is not None:
                on_lag(lag)
            wanted = [live[1]] if wait == "lexical" else list(live)
            # What is frozen does not follow: what comes new waits for a move, and is found by words until then.
            wanted = [row for row in wanted if row is None or row.view.state is not ViewState.FROZEN]
            if waits_for_model:
                wanted = [live[1]]
            if position <= 0 or all(row is not None and row.view.position >= position for row in wanted):
                return  # at 0 nothing was ever written: a view may wait for that too
            followed = [row for row in views if wait == "all" or row.view.kind is ViewKind.LEXICON]
            stand = [(row.view.position, row.build_after) for row in followed], lag.vectors
            if stand != stood:
                stood, moved_at = stand, time.monotonic()
            errors = " ".join(row.view.error for row in followed if row.view.error)
            said = f"The views have not reached position {position}. {errors}".strip()
            _past(deadline, said)
            if errors and time.monotonic() - moved_at > STALLED_S:
                raise ViewError(
                    f"{said} The documents are in the catalog: nothing is lost, and the view catches up when its "
                    "trouble is over.",
                    "Mend what the message names, then run `whimbrel serve`, or the command again.",
                )
            if time.monotonic() - last_check > 1.0:
                self.own()
                last_check = time.monotonic()
            time.sleep(_pause(began))

    def job(self, job_id: str) -> Job:
        with self.catalog.read() as connection:
            return jobs.get(connection, job_id)

    def jobs(self, *, active: bool = False, limit: int = 100) -> list[Job]:
        with self.catalog.read() as connection:
            return jobs.listing(connection, active=active, limit=limit)

    def cancel(self, job_id: str) -> Job:
        with self.catalog.write() as connection:
            return jobs.cancel(connection, job_id)

    # --- documents ---------------------------------------------------------------------------------------------------

    def wait_for_head(
        self, collection: str, *, wait: str = "all", on_lag: OnLag | None = None, timeout_s: float | None = None
    ) -> None:
        """Until the views of a collection hold everything that is in the catalog now."""
        with self.catalog.read() as connection:
            found = collections.find(connection, collection)
        deadline = time.monotonic() + timeout_s if timeout_s is not None else None
        self.own()
        self.wait_for(found.id, found.head, wait=wait, deadline=deadline, on_lag=on_lag)


class JobFailed(WhimbrelError):
    """A job ended with an error; `code` is the class name where it is known."""

    @classmethod
    def of(cls, job: Job) -> WhimbrelError:
        import whimbrel.errors as known

        kind = getattr(known, job.error_code, None) if job.error_code else None
        if isinstance(kind, type) and issubclass(kind, WhimbrelError):
            return kind(job.error, job.hint)
        return cls(job.error, job.hint)


def _waits_for_model(connection: Connection, views: Sequence[ViewRow]) -> bool:
    """Whether the store views stand still because the model that made their vectors is not here: no mishap, and nothing
    to wait for. They go on when another is declared to serve them."""
    stores = [row for row in views if row.view.kind is ViewKind.STORE]
    return bool(stores) and all(_lacks_model(connection, row) for row in stores)


def _lacks_model(connection: Connection, row: ViewRow) -> bool:
    space = row.view.space_id
    return (
        bool(row.view.error)
        and space is not None
        and vectors.read_space(connection, space)[1] == UNKNOWN
        and compatible.serving(connection, space) is None
        and vectors.are_missing(connection, space, row.view.collection_id, row.view.chunking_id)
    )


def _pause(began: float) -> float:
    """Seconds to the next look, a fiftieth of the wait so far: each takes 1 ms from the work that is waited for."""
    return min(max(0.02, (time.monotonic() - began) / 50), 0.25)


def _past(deadline: float | None, what: str) -> None:
    if deadline is not None and time.monotonic() > deadline:
        raise WaitTimeout(f"{what} Nothing is lost: it goes on.", "Wait longer, or look at `whimbrel status`.")

"""Errors, named by who must act. Each has an HTTP status, a code and a hint.

An error says what happened, what was not lost, and what to do. `str(error)` is the message; `hint` is the way out.
Document text and secrets never go into either.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self


class WhimbrelError(Exception):
    """Base of all errors that Whimbrel raises on purpose."""

    status: ClassVar[int] = 500
    """HTTP status that the API answers with."""
    exit_code: ClassVar[int] = 1
    """Exit status of the CLI."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def code(self) -> str:
        """A stable name for programs: the class name."""
        return type(self).__name__

    def as_dict(self) -> dict[str, object]:
        return {"error": self.code, "message": self.message, "hint": self.hint, "status": self.status}


# --- the caller must act ---------------------------------------------------------------------------------------------


class UserError(WhimbrelError):
    """The request is wrong; sending it again unchanged will fail again."""

    status = 400
    exit_code = 2


class ConfigError(UserError):
    """The configuration is wrong: unknown key, bad value, unset variable."""


class BadQuery(UserError):
    """An empty or oversized query, or a `top_k` out of range."""

    status = 422


class BadFilter(UserError):
    """A filter that is not in the grammar; the message names the place."""

    status = 422


class BadInput(UserError):
    """A document or metadata that cannot be taken as given."""

    status = 422


class NotFound(UserError):
    status = 404


class CollectionNotFound(NotFound):
    pass


class DocumentNotFound(NotFound):
    pass


class JobNotFound(NotFound):
    pass


class ViewNotFound(NotFound):
    pass


class MoveNotFound(NotFound):
    """There is no move of this id, or none of this collection."""


class ConversationNotFound(NotFound):
    pass


class TurnNotFound(NotFound):
    """No stored answer has this id: it was deleted, or erased with a document that it was made from."""


class CitationNotFound(NotFound):
    """The last answer has no citation of that number, or there is no last answer."""


class PathNotFound(NotFound):
    """A file or folder to ingest does not exist."""


class Conflict(UserError):
    """The thing exists already, or is in a state that forbids this."""

    status = 409


class TooLarge(UserError):
    """Over a configured limit; nothing of it was written."""

    status = 413


class RowRefused(TooLarge):
    """One row that a database does not take; the others of its batch are not lost by it."""

    row = ""
    """Its id."""

    @classmethod
    def of(cls, row: str, message: str, hint: str = "") -> Self:
        error = cls(message, hint)
        error.row = row
        return error


class MissingExtra(UserError):
    """An optional dependency is not installed; the hint names the extra."""

    status = 501


class Forbidden(UserError):
    status = 403


class Unauthorized(UserError):
    """No key came with the request, or one that is not known."""

    status = 401


class MalformedJSON(UserError):
    """The request's body is no JSON."""


class MalformedUpload(UserError):
    """A multipart body that breaks off, or has parts without a name."""


class MethodNotAllowed(UserError):
    """The address is known, but not with this method."""

    status = 405


class SlowRequest(UserError):
    """The head or the body of a request did not arrive in time."""

    status = 408


class HeadersTooLarge(UserError):
    """The address and headers of a request are larger than is read."""

    status = 431


class InvalidRequest(UserError):
    """A field or parameter that is unknown, missing, or of another type."""

    status = 422


# --- one file is bad; the others go on -------------------------------------------------------------------------------


class ExtractionFailed(WhimbrelError):
    """A file could not be turned into text. Recorded on its document; the others go on."""

    status = 422


class UnreadableFile(ExtractionFailed):
    """Permission denied, a looping link, or an I/O error."""


class CorruptFile(ExtractionFailed):
    """The content is not what its format says, or is binary junk."""


class EncryptedFile(ExtractionFailed):
    """A password is needed."""


class EmptyFile(ExtractionFailed):
    """There is no text in it."""


class UnsupportedFormat(ExtractionFailed):
    """Nothing here reads this format."""


class FileTooLarge(ExtractionFailed):
    """Over the size limit, before or after unpacking."""

    status = 413


class ExtractionTimeout(ExtractionFailed):
    """Took longer, or more memory, than a worker may."""


# --- the operator must act -------------------------------------------------------------------------------------------


class OperatorError(WhimbrelError):
    """The machine or the home needs attention."""

    status = 503


class HomeError(OperatorError):
    """The home cannot be used: read-only, not a home, damaged."""


class NewerHome(HomeError):
    """The home was written by a newer version of Whimbrel. Nothing was changed."""


class DiskFull(HomeError):
    """No space left. What was committed before is safe."""

    status = 507


class PortInUse(OperatorError):
    """Another program listens there, or this user may not."""

    status = 409


class AlreadyOwned(OperatorError):
    """Another process owns the home, or the folder of a database that allows one."""

    status = 409


class Fenced(OperatorError):
    """This process lost the ownership of the home; it must stop changing it."""

    status = 409


class CatalogUnavailable(OperatorError):
    """The catalog database cannot be reached, or refuses."""


class BackupError(OperatorError):
    """An archive that is damaged, incomplete, or cannot be written."""

    status = 422


class SuspiciousChange(OperatorError):
    """Too large a share of a source has vanished; nothing was removed."""

    status = 409


# --- a view or a model must recover ----------------------------------------------------------------------------------


class ViewError(WhimbrelError):
    """A view cannot serve. The catalog holds everything; the view can be rebuilt."""

    status = 503


class ViewDamaged(ViewError):
    """The view's data is missing, unreadable or not what was written; rebuild it."""


class StoreUnavailable(ViewError):
    """The database under a view does not answer now; it may come back."""


class StoreRefused(ViewError):
    """The database under a view refuses: its key, a right, its settings. It will until somebody changes them."""


class StoreUnsupported(StoreRefused):
    """The database under a view, or its extension, is missing, or of a version that cannot be used."""


class SpaceMismatch(ViewError):
    """Vectors of two spaces would have been compared. Refused: another model, or another place, must be named."""

    status = 409
    exit_code = 2


class ModelError(WhimbrelError):
    """A model cannot answer now."""

    status = 503


class TextRefused(ModelError):
    """The model refuses this one text; others go on."""

    status = 422

    def __init__(self, message: str, hint: str = "", *, positions: Sequence[int] = ()) -> None:
        super().__init__(message, hint)
        self.positions = tuple(positions)
        """Which texts of the call were refused, by their index in it; nothing was computed for the others."""


class ModelUnusable(ModelError):
    """A generator that will not answer until somebody changes its configuration."""

    exit_code = 2


class ModelKeyMissing(ModelUnusable):
    """The provider wants a key, and none is set; the message names the variable."""


class ModelKeyRefused(ModelUnusable):
    """The provider does not accept the key, or the key may not use the model."""


class ModelNotFound(ModelUnusable):
    """The provider has no model of that name, or its address is wrong."""


class BudgetSpent(ModelUnusable):
    """A budget does not allow the call. Nothing was sent."""

    status = 402


class ModelRefused(ModelError):
    """The provider refuses this request: too long, against its rules, or the account's credit is used up."""


class ModelDown(ModelError):
    """Nobody answers at the provider's address, or it answers that it cannot."""

    def __init__(self, message: str, hint: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s
        """Seconds that the provider asks to wait; None if it did not say."""


class ModelPaused(ModelDown):
    """The model failed several times in a row, and is not asked for a while: its breaker is open."""


class ModelSlow(ModelError):
    """The provider did not answer, or not go on, within the time that it has."""

    status = 504


class ModelBusy(ModelError):
    """The provider's rate limit is reached."""

    def __init__(self, message: str, hint: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s
        """Seconds that the provider asks to wait; None if it did not say."""


class ModelBroken(ModelError):
    """What the provider answers cannot be used."""

    status = 502


class ModelEndedEarly(ModelBroken):
    """The answer broke off before its end."""


class ModelMalformed(ModelBroken):
    """The answer is not what the provider's protocol says."""


class ModelEmpty(ModelBroken):
    """The answer has no text."""


class Busy(WhimbrelError):
    """A bounded queue is full or a wait ran out; try again later."""

    status = 503


class ModelQueueFull(Busy):
    """As many calls of models wait as may. Nothing was sent; try again shortly."""


class WaitTimeout(Busy):
    """The position waited for was not reached in time. The write itself is safe."""

    status = 504


class SlowAnswer(Busy):
    """The answer did not begin in time. What had been committed stays."""

    status = 504


class InternalError(WhimbrelError):
    """Something that nobody expected: a defect. The log has the place."""


# --- errors of others ------------------------------------------------------------------------------------------------


def place(error: BaseException) -> str:
    """The type of an error and where it was raised; not its message, which may quote a document."""
    frames = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    return f"{_type(error)}\n{frames}"


def spot(error: BaseException) -> str:
    """As `place`, in one line: the type, and the file and line where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{_type(error)} at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else _type(error)


def _type(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}"

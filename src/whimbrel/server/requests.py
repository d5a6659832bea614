"""What the API takes: one class for each body. An unknown field is refused, with the nearest one that there is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from whimbrel.domain import Mode
from whimbrel.errors import MalformedJSON

Wait = Literal["none", "job", "lexical", "all"]

B = TypeVar("B", bound="Body")


def _storable(value: Any) -> Any:
    """What a database can hold as text: no zero byte, no half of a surrogate pair. Looks into lists and objects."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, str):
            if "\0" in one:
                raise PydanticCustomError("zero_byte", "holds a zero byte (\\u0000)")
            if not one.isascii() and not _encodes(one):
                raise PydanticCustomError("surrogate", "holds half of a surrogate pair, which is no character")
        elif isinstance(one, dict):
            pending += one.keys()
            pending += one.values()
        elif isinstance(one, list):
            pending += one
    return value


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


Text = Annotated[StrictStr, AfterValidator(_storable)]
Value = Annotated[Any, AfterValidator(_storable)]


def parsed(raw: bytes, model: type[B]) -> B:
    """A body that the framework has not read. Raises as the framework would."""
    try:
        value = json.loads(raw) if raw else None
    except json.JSONDecodeError as error:
        found: list[Any] = [{"type": "json_invalid", "loc": ("body", error.pos), "msg": error.msg}]
        raise RequestValidationError(found) from None
    except (UnicodeDecodeError, RecursionError, ValueError):  # not UTF-8; nested too deep; a number of too many digits
        raise MalformedJSON("The body cannot be read as JSON in UTF-8.", "Send one JSON object.") from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found]) from None


def example(value: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for name in value:
                if name not in cls.model_fields:
                    raise PydanticCustomError("unknown_field", "{said}", {"said": unknown(name, cls.model_fields)})
        return value


def unknown(name: object, known: Iterable[str]) -> str:
    near = get_close_matches(str(name)[:50], list(known), n=1, cutoff=0.5)
    shown = str(name)[:50].encode("ascii", "replace").decode()
    guess = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"there is no field {shown!r}; {guess}"


class Searching(Body):
    query: Text = Field(description="A question or words.")
    collection: Text = "default"
    top_k: StrictInt | None = Field(None, description="Hits wanted; without it, `search.top_k`.")
    mode: Mode = Mode.HYBRID
    filter: Value = Field(None, description='On metadata: `{"site": "docs", "year": {"$gte": 2020}}`.')
    threshold: StrictFloat | StrictInt = Field(
        0.0, description="Hits that score less are left out, before they are reranked; 0 to 1."
    )
    queries: StrictInt | None = Field(
        None, description="Queries that the search is made of, 1 to 8; without it, `search.queries`."
    )


class SearchBody(Searching):
    model_config = example({"query": "birds that fly far", "top_k": 3, "filter": {"kind": "bird"}})

    min_position: StrictInt = Field(0, description="Wait until this position of the log can be found: one's own write.")


class QueryBody(Searching):
    model_config = example({"query": "How far does the whimbrel fly?", "stream": False})

    top_k: StrictInt | None = Field(None, description="Passages to answer from; without it, 8.")
    conversation_id: Text | None = Field(
        None, max_length=200, description="The conversation that it belongs to; `new` begins one."
    )
    fresh: StrictBool = Field(
        False, description="Not an answer that was given before to the same question, if nothing has changed since."
    )
    stream: StrictBool | None = Field(
        None, description="Answer with server-sent events; without it, where `Accept` asks for them."
    )


class Upload(Body):
    text: Text = Field(description="The document, as plain text or Markdown.")
    id: Text | None = Field(None, description="Your own id: the same id again replaces the document.")
    uri: Text | None = Field(None, description="Where it comes from; its identity where there is no id.")
    title: Text | None = None
    metadata: Value = Field(None, description="A JSON object. Left out, what the document had stays.")
    name: Text | None = Field(None, description="A file name: its ending says how the text is read.")


class DocumentsBody(Body):
    model_config = example(
        {"documents": [{"id": "note-1", "text": "The whimbrel flies thousands of kilometres."}], "wait": "job"}
    )

    documents: list[Upload]
    collection: Text = Field("default", description="Made if there is none.")
    wait: Wait = Field(
        "none", description="Answer at once, when the `job` is done, or when words (`lexical`) or `all` views find it."
    )


class FilesBody(BaseModel):
    """A form with files; only documents it: the body is read as it comes."""

    file: list[bytes] = Field(
        description="One part for each file, named `file`, with its file name.",
        json_schema_extra={"items": {"type": "string", "format": "binary"}, "minItems": 1},
    )
    collection: str = Field("default", description="Made if there is none.")
    id: list[str] = Field([], description="Your own ids: none, or one for each file, in their order.")
    metadata: str = Field("", description="A JSON object that each of the files gets.")
    password: list[str] = Field(
        [], description="Tried on encrypted PDFs; stored nowhere. Refused where another process owns the home."
    )
    wait: Wait = "none"


class CollectionBody(Body):
    model_config = example({"name": "notes", "language": "de"})

    name: Text = Field(description="1 to 63 letters, digits, dots, hyphens, underscores.")
    language: Text = Field(
        "auto",
        pattern=r"^[A-Za-z]{2,4}([-_+][A-Za-z0-9]{1,8}){0,4}$",
        description="What its words are analysed as, such as `de` or `ru+en`; `auto` finds it out from the documents.",
    )


class RenameBody(Body):
    model_config = example({"name": "old-notes"})

    name: Text = Field(description="The new name.")


class MoveBody(Body):
    model_config = example({"collection": "default", "to": "postgresql://whimbrel@db/app"})

    collection: Text = "default"
    to: Text | None = Field(None, description="The target store's URI, without credentials. Left out, the same store.")
    embedder: Text | None = Field(None, description="Another `provider:model`.")
    chunking: Text | None = Field(None, description="Another chunking, as `tokens=256,overlap=32`.")
    rate: StrictFloat | StrictInt = Field(0.0, ge=0, description="Rows copied per second, at most; 0 for no limit.")
    auto_switch: StrictBool = Field(False, description="Switch as soon as every row is verified.")


class ConversationBody(Body):
    model_config = example({"collection": "default"})

    collection: Text = "default"


class FeedbackBody(Body):
    model_config = example({"rating": 1, "comment": "Just what I looked for."})

    rating: StrictInt = Field(description="1 is good, -1 is bad.")
    comment: Text = Field("", max_length=10_000)

"""What the routes of models take. Fields that are not known here are left alone: clients of these protocols send more
than we have a use for, and nothing that is stored hangs on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from whimbrel.errors import InvalidRequest, MalformedJSON

MOST_TEXTS = 2_048
"""In one request, as with OpenAI."""

Text = Annotated[StrictStr, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]


class Asked(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


class Embed(Asked):
    """TEI's `/embed`."""

    inputs: Text | Texts
    normalize: StrictBool = True
    truncate: StrictBool | None = None
    truncation_direction: StrictStr = "right"
    prompt_name: Literal["query", "document", "passage"] | None = None


class Rerank(Asked):
    """TEI's `/rerank`."""

    query: Text
    texts: Annotated[list[StrictStr], Field(min_length=1, max_length=MOST_TEXTS)]
    raw_scores: StrictBool = False
    return_text: StrictBool = False
    truncate: StrictBool | None = None


class Embeddings(Asked):
    """OpenAI's `/v1/embeddings`; `input_type` is ours, and what others that speak this protocol call it."""

    input: Text | Texts
    model: StrictStr
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = None
    input_type: Literal["query", "document", "passage"] | None = None


A = TypeVar("A", bound=Asked)


def parsed(body: bytes, shape: type[A]) -> A:
    """Raises `MalformedJSON` and `InvalidRequest`, which repeat no value: it may be a document."""
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
    if any(one["type"] == "json_invalid" for one in found):
        raise MalformedJSON("The body cannot be read as JSON in UTF-8.", "Send one JSON object.")
    said = dict.fromkeys(f"{_where(one['loc'])}: {one['msg']}" for one in found[-3:])
    raise InvalidRequest(f"Not as documented: {'; '.join(said)}", "Texts are expected, not tokens; none may be empty.")


def _where(path: Sequence[int | str]) -> str:
    """Without the names of the alternatives that a text or a list of texts may be."""
    return ".".join(str(part) for part in path if not str(part).endswith(("-str", "]"))) or "the body"

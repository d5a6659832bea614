"""The description of the API that programs read, /openapi.json, where it says more than FastAPI finds by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import whimbrel.errors
from whimbrel.errors import WhimbrelError
from whimbrel.server.auth import OPEN
from whimbrel.server.described import PassagesShape, Problem, TextShape
from whimbrel.server.problems import PROBLEM, encoded, title
from whimbrel.server.requests import DocumentsBody, FilesBody

_REF = "#/components/schemas/{model}"
_BY_HAND: tuple[type[BaseModel], ...] = (Problem, PassagesShape, TextShape, DocumentsBody, FilesBody)
"""Classes that routes name by reference only."""

PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "What went wrong, and the way out",
        "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}
"""What every route may answer."""

_KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "The secret of one of WHIMBREL_API_KEYS. Where there are none, no key is needed over loopback, and "
    "any other address allows only reading.",
}


def events(description: str, kinds: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """A response that is a stream of server-sent events: what their data is, by name. The example has no `error`."""
    shown = "".join(f"event: {name}\ndata: {_example(model)}\n\n" for name, model in kinds.items() if name != "error")
    # `itemSchema`, as in OpenAPI 3.2: what each event must be.
    schema = {"oneOf": [_event(name, model) for name, model in kinds.items()]}
    return {"description": description, "content": {"text/event-stream": {"itemSchema": schema, "example": shown}}}


def _event(name: str, model: type[BaseModel]) -> dict[str, Any]:
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": _reference(model)}
    return {"type": "object", "properties": {"event": {"const": name}, "data": data}, "required": ["event", "data"]}


def _example(model: type[BaseModel]) -> str:
    return encoded(model.model_json_schema()["examples"][0]).decode()


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}


def bodies(*kinds: tuple[str, type[BaseModel]]) -> dict[str, Any]:
    """A request body of one of several content types, which the route reads itself."""
    content = {kind: {"schema": _reference(model)} for kind, model in kinds}
    return {"requestBody": {"required": True, "content": content}}


class Api(FastAPI):
    """FastAPI, with what it cannot find in the routes."""

    def openapi(self) -> dict[str, Any]:
        known = self.openapi_schema
        found = super().openapi()
        if found is not known:
            _complete(found)
        return found


def _complete(schema: dict[str, Any]) -> None:
    _, made = models_json_schema([(model, "validation") for model in _BY_HAND], ref_template=_REF)
    parts = schema.setdefault("components", {})
    parts["schemas"] = dict(sorted({**parts.get("schemas", {}), **made["$defs"]}.items()))
    parts["securitySchemes"] = {"apiKey": _KEY}
    schema["security"] = [{"apiKey": []}, {}]
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            if path in OPEN:
                operation["security"] = []
    schema["x-errors"] = list(_errors())


def _errors() -> Iterator[dict[str, Any]]:
    """Every class of error that the API may answer with; the `type` of a problem leads to its description."""
    for name, kind in sorted(vars(whimbrel.errors).items()):
        if isinstance(kind, type) and issubclass(kind, WhimbrelError):
            said = (vars(kind).get("__doc__") or "").strip().partition("\n\n")[0]
            yield {"error": name, "title": title(name), "status": kind.status, "description": " ".join(said.split())}

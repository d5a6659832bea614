"""What the form of an upload says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from whimbrel.errors import BadInput, InvalidRequest
from whimbrel.ingest.handed_in import HandedIn
from whimbrel.server.multipart import Upload
from whimbrel.server.requests import FilesBody, Wait, unknown


@dataclass(frozen=True, slots=True)
class FilesForm:
    files: list[HandedIn]
    collection: str
    wait: Wait
    passwords: Sequence[str] = field(default=(), repr=False)

    @classmethod
    def of(cls, upload: Upload) -> FilesForm:
        """Raises `InvalidRequest`, `BadInput`."""
        fields = upload.fields
        for name in fields:
            if name not in FilesBody.model_fields:
                raise InvalidRequest(f"Not as documented: {unknown(name, FilesBody.model_fields)}", _DESCRIBED)
        if "file" in fields:
            raise InvalidRequest("Not as documented: file: it has no file name", _DESCRIBED)
        for one in upload.files:
            _check_part(one.part)
        ids = fields.get("id", [])
        if ids and len(ids) != len(upload.files):
            raise BadInput(
                f"{len(upload.files)} files came with {len(ids)} ids. Nothing was written.",
                "Send an `id` for each file, in their order, or none at all.",
            )
        metadata = _metadata(_single(fields, "metadata", ""))
        files = [
            HandedIn(one.name, one.size, one.digest, one.read, ids[number] if ids else None, metadata)
            for number, one in enumerate(upload.files)
        ]
        collection, wait = _single(fields, "collection", "default"), _wait(_single(fields, "wait", "none"))
        return cls(files, collection, wait, _passwords(fields.get("password", ())))


MAX_PASSWORDS = 20
"""Each may take a second to be tried, on each encrypted file."""

_DESCRIBED = "/openapi.json describes every field."


def _check_part(name: str) -> None:
    """Of a part with a file name: what is meant to be said of the files must not become one of them."""
    if name != "file" and name in FilesBody.model_fields:
        hint = f"Send it without a file name: `curl -F '{name}=<PATH'`, not `{name}=@PATH`."
        raise InvalidRequest(f"Not as documented: {name}: it came as a file", hint)
    if name != "file":
        raise InvalidRequest(f"Not as documented: {unknown(name, FilesBody.model_fields)}", _DESCRIBED)


def _single(fields: Mapping[str, list[str]], name: str, default: str) -> str:
    found = fields.get(name, [default])
    if len(found) > 1:
        raise InvalidRequest(f"Not as documented: {name}: it was sent {len(found)} times", _DESCRIBED)
    return found[0]


def _wait(value: str) -> Wait:
    known = get_args(Wait)
    if value not in known:
        raise InvalidRequest(f"Not as documented: wait: one of {', '.join(known)}", _DESCRIBED)
    return cast(Wait, value)


def _passwords(sent: Sequence[str]) -> list[str]:
    found = list(dict.fromkeys(one for one in sent if one))
    if len(found) > MAX_PASSWORDS:
        raise BadInput(f"More than {MAX_PASSWORDS} passwords. Nothing was written.", "Send fewer.")
    return found


def _metadata(text: str) -> Mapping[str, Any] | None:
    if not text.strip():
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput("The metadata is no JSON. Nothing was written.", 'For example: {"year": 2024}.') from None
    if not isinstance(found, dict):
        raise BadInput("The metadata is no JSON object. Nothing was written.", 'For example: {"year": 2024}.')
    return found

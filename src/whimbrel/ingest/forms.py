"""What people have filled into the fields of a PDF form: Kreuzberg reads what is printed around them.

Read by pypdf, where it is installed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

MISSING = "the PDF has form fields; to read what was filled in: pip install 'whimbrel[forms]'"
UNREADABLE = "what was filled into the PDF's form fields could not be read"
_MOST_FIELDS = 5_000
_NO_VALUE = ("", "/Off", "Off")


def may_be_form(data: bytes) -> bool:
    """The catalog of a PDF, which names its form, may lie in a compressed object."""
    return b"/AcroForm" in data or b"/ObjStm" in data


def filled_in(data: bytes, passwords: Sequence[str]) -> dict[int, list[tuple[str, str]]]:
    """`{page: [(label, value), ...]}`, pages from 1, of the fields that hold something. Raises `ImportError` without
    pypdf, `ValueError` where it cannot read the file."""
    import pypdf

    try:
        reader = pypdf.PdfReader(io.BytesIO(data), strict=False)
        if reader.is_encrypted and not any(reader.decrypt(password) for password in ("", *passwords)):
            return {}
        if "/AcroForm" not in reader.root_object:
            return {}
        found = {number: list(_fields(page)) for number, page in enumerate(reader.pages, 1)}
    except Exception as error:  # pypdf raises all kinds on a damaged file, and for ciphers that it has no library for
        raise ValueError(type(error).__name__) from error
    return {number: fields for number, fields in found.items() if fields}


def _fields(page: Any) -> Iterator[tuple[str, str]]:
    for annotation in list(page.get("/Annots") or ())[:_MOST_FIELDS]:
        widget = annotation.get_object()
        if not hasattr(widget, "get") or widget.get("/Subtype") != "/Widget":
            continue
        value = _shown(_inherited(widget, "/V"))
        if value not in _NO_VALUE:
            label = _inherited(widget, "/TU") or _inherited(widget, "/T") or ""
            yield " ".join(str(label).split()), value.removeprefix("/")


def _inherited(widget: Any, key: str) -> Any:
    """A widget's entry, else that of the field that it belongs to."""
    for _ in range(32):
        if widget is None or key in widget:
            return widget.get(key) if widget is not None else None
        widget = widget["/Parent"].get_object() if "/Parent" in widget else None
    return None


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(one) for one in value)
    return "" if value is None else str(value)


def with_fields(
    text: str, pages: Sequence[tuple[int, int]], fields: dict[int, list[tuple[str, str]]]
) -> tuple[str, list[tuple[int, int]]]:
    """(text, pages) with the fields of each page as a list at its end; of a page without a place, at the end of all."""
    parts = [text[: pages[0][0]] if pages else text]
    moved: list[tuple[int, int]] = []
    size = len(parts[0])
    for (start, number), (end, _) in zip(pages, [*pages[1:], (len(text), 0)], strict=True):
        moved.append((size, number))
        body = text[start:end]
        if listed := _listed(fields.get(number, ())):
            body = f"{body.rstrip()}{listed}\n\n"
        parts.append(body)
        size += len(body)
    rest = [one for number in sorted(fields.keys() - {number for _, number in pages}) for one in fields[number]]
    return "".join(parts).rstrip("\n") + _listed(rest) + "\n", moved


def _listed(fields: Sequence[tuple[str, str]]) -> str:
    lines = [f"- {label}: {' '.join(value.split())}" if label else f"- {value}" for label, value in fields]
    return "".join(["\n\nFilled in:\n\n", "\n".join(lines)]) if lines else ""

"""HTML and SVG written by functions: what is no markup of ours is escaped, always."""

from __future__ import annotations

import html
import re

_VOID = frozenset({"meta", "br", "hr"})
_UNSAYABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What HTML may not hold, even escaped."""


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(_name: str, *children: str, **attributes: object) -> Markup:
    """An element. `class_` is written `class`, other underscores as hyphens; an attribute that is None is left out."""
    said = "".join(
        f' {_attribute(key)}="{escaped(str(value))}"' for key, value in attributes.items() if value is not None
    )
    if _name in _VOID:
        return Markup(f"<{_name}{said}>")
    return Markup(f"<{_name}{said}>{joined(*children)}</{_name}>")


def joined(*children: str) -> Markup:
    return Markup("".join(child if isinstance(child, Markup) else escaped(child) for child in children))


def escaped(text: str) -> Markup:
    return Markup(html.escape(_UNSAYABLE.sub("\ufffd", text), quote=True))


def _attribute(name: str) -> str:
    return name if name == "viewBox" else name.removesuffix("_").replace("_", "-")

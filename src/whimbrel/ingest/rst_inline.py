"""Roles, links and literals of reStructuredText as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping

_FENCED = re.compile(r"(?P<code>^[ ]*(?P<fence>`{3,}|~{3,})[^\n]*\n[\s\S]*?(?:^[ ]*(?P=fence)[ ]*$|\Z))", re.MULTILINE)
_INLINE = re.compile(
    r"``(?P<literal>[^`\n](?:[^`]|`(?!`))*?)``"
    r"|:(?P<role>[a-zA-Z][\w:+.-]*):`(?P<text>[^`]+)`"
    r"|`(?P<label>[^`<>]*?)\s*<(?P<target>[^`<>\s]+)>`__?"
    r"|`(?P<named>[^`]+)`__?(?!\w)"
    r"|\|(?P<substitution>[^|\s][^|\n]{0,60})\|_{0,2}(?!\w)"
    r"|\[(?P<note>[#*]?[\w-]*)\]_(?!\w)"
    r"|\\(?P<escaped>[ *`_|\\])"
)
_WITH_TARGET = re.compile(r"(?P<shown>[^<]*\S)\s*<[^<>]+>$", re.DOTALL)
_CODE_ROLES = frozenset(
    ["code", "file", "command", "option", "envvar", "program", "samp", "class", "func", "meth", "mod", "attr", "exc"]
) | {"data", "const", "obj", "type", "member", "macro", "literal"}


def inline(text: str, substitutions: Mapping[str, str]) -> str:
    """Outside of code blocks."""

    def plainly(found: re.Match[str]) -> str:
        return _one(found, substitutions)

    parts, last = [], 0
    for code in _FENCED.finditer(text):
        parts += [_INLINE.sub(plainly, text[last : code.start()]), code[0]]
        last = code.end()
    return "".join([*parts, _INLINE.sub(plainly, text[last:])])


def _one(found: re.Match[str], substitutions: Mapping[str, str]) -> str:
    if found["literal"] is not None:
        return f"`{found['literal']}`"
    if found["role"] is not None:
        return _role(found["role"].lower().rpartition(":")[2], found["text"])
    if found["target"] is not None:
        label = " ".join(found["label"].split())
        return f"[{label}]({found['target']})" if "://" in found["target"] else label or found["target"]
    if found["named"] is not None:
        return found["named"]
    if found["substitution"] is not None:
        return substitutions.get(found["substitution"], found[0])
    if found["note"] is not None:
        return f"[{found['note'].lstrip('#*')}]" if found["note"].strip("#*") else ""
    return "" if found["escaped"] == " " else found[0]


def _role(role: str, text: str) -> str:
    """What a reader sees of it: its own words, else the last part of where it leads."""
    if role == "math":
        return f"${text}$"
    if shown := _WITH_TARGET.match(text):
        text = shown["shown"]
    elif role in ("doc", "ref", "numref", "any", "download"):
        text = text.rpartition(":")[2].rstrip("/").rpartition("/")[2]
    elif text.startswith("~"):
        text = text.rpartition(".")[2]
    text = " ".join(text.lstrip("!").split())
    return f"`{text}`" if role in _CODE_ROLES else text

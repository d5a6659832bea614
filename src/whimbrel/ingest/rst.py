"""reStructuredText as Markdown, line by line.

Not docutils: that stops at Sphinx's directives, which most files are full of, and makes HTML. Not Kreuzberg's reader:
it drops tables under a directive and says admonitions twice. What is not known here stays as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from whimbrel.ingest.rst_inline import inline
from whimbrel.ingest.rst_tables import csv_table, grid_table, is_grid_border, is_simple_border, list_table, simple_table

_RUN = re.compile(r"([=\-`:.'\"~^_*+#<>])\1{2,}\s*$")
_DIRECTIVE = re.compile(r"([\w][\w:+.-]*?)::(?:\s+(.*))?$")
_SUBSTITUTION = re.compile(r"\|([^|]+)\|\s+(\w+)::\s*(.*)$")
_OPTION = re.compile(r":([\w-]+):(?:\s+(.*))?$")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_FIELD = re.compile(r":([A-Za-z][\w -]{0,40}):\s+(\S.*)$")

_DEEPEST = 40
"""Directives within directives; what is deeper stays as it is."""
_CODE = frozenset(["code", "code-block", "sourcecode", "parsed-literal", "prompt", "ipython", "testcode", "doctest"])
_PLAIN = frozenset(
    ["only", "container", "compound", "tabs", "tab-set", "tab-set-code", "grid", "glossary", "rst-class"]
)
_SILENT = frozenset(
    ["toctree", "contents", "raw", "meta", "index", "include", "literalinclude", "highlight", "default-role", "role"]
) | {"currentmodule", "module", "automodule", "autosummary", "sectnum", "unicode", "testsetup", "testcleanup"}
_DATED = {"versionadded": "Added in", "versionchanged": "Changed in", "deprecated": "Deprecated since"}


def to_markdown(text: str) -> str:
    lines = text.expandtabs(8).split("\n")
    substitutions: dict[str, str] = {}
    converted = "\n".join(_Converter(substitutions).blocks(lines))
    return re.sub(r"\n{3,}", "\n\n", inline(converted, substitutions)).strip("\n") + "\n"


class _Converter:
    def __init__(self, substitutions: dict[str, str]) -> None:
        self._substitutions = substitutions
        self._levels: list[str] = []
        """Underlines in the order in which they were met: each is a level of headings."""
        self._depth = 0

    def blocks(self, lines: list[str]) -> list[str]:
        if self._depth >= _DEEPEST:
            return lines
        self._depth += 1
        made: list[str] = []
        place = 0
        while place < len(lines):
            place = self._block(lines, place, made)
        self._depth -= 1
        return made

    def _block(self, lines: list[str], place: int, made: list[str]) -> int:
        """Adds the Markdown of what begins at a line; returns the line after it."""
        line = lines[place]
        body = line.lstrip()
        indent = line[: len(line) - len(body)]
        if body.startswith(".. ") or body == "..":
            block, after = _indented(lines, place + 1, len(indent))
            made += [indent + one if one else "" for one in self._explicit(body[3:], block)]
            return after
        if heading := self._heading(lines, place):
            made += ["", heading[0], ""]
            return heading[1]
        reader = simple_table if is_simple_border(body) else grid_table if is_grid_border(body) else None
        if reader and (table := reader(lines, place)):
            made += ["", *table[0], ""]
            return table[1]
        if (fence := _FENCE.match(line)) or body.startswith(">>> "):
            closing = fence[1] if fence else ""
            stops = (n for n in range(place + 1, len(lines)) if lines[n].strip() == closing)
            after = next(stops, len(lines) - 1) + 1
            made += lines[place:after] if fence else [*_fenced("python", lines[place:after], indent), ""]
            return after
        if body.endswith("::"):
            block, after = _indented(lines, place + 1, len(indent))
            if any(map(str.strip, block)):
                said = body[:-2]
                made += [indent + (f"{said}:" if said and not said.endswith(" ") else said.strip()), ""]
                made += [*_fenced("", block, indent), ""]
                return after
        made.append(_line(indent, body))
        return place + 1

    def _heading(self, lines: list[str], place: int) -> tuple[str, int] | None:
        """A title with a line under it, or between two lines; or a line by itself, which parts."""
        line = lines[place]
        above = _RUN.match(line)
        following = lines[place + 1 : place + 3]
        first = place == 0 or not lines[place - 1].strip() or lines[place - 1].lstrip().startswith(".. ")
        if above and len(following) == 2 and following[0].strip() and following[1].rstrip() == line.rstrip():
            return self._titled(above[1] * 2, following[0].strip()), place + 3
        if above and first and not any(following[:1]):
            return "---", place + 1
        under = _RUN.match(following[0]) if following and line.strip() and not line[0].isspace() else None
        if under and first and not above and len(following[0].rstrip()) >= min(len(line.rstrip()), 4):
            return self._titled(under[1], line.strip()), place + 2
        return None

    def _titled(self, style: str, title: str) -> str:
        if style not in self._levels:
            self._levels.append(style)
        return f"{'#' * min(self._levels.index(style) + 1, 6)} {title}"

    def _explicit(self, head: str, block: list[str]) -> Iterator[str]:
        """What begins with two dots: a directive, a substitution, a footnote; targets and comments say nothing."""
        if found := _SUBSTITUTION.match(head):
            self._substitutions[found[1].strip()] = found[3] if found[2] in ("replace", "unicode") else ""
        elif found := _DIRECTIVE.match(head):
            yield from self._directive(found[1].lower().rpartition(":")[2], (found[2] or "").strip(), block)
        elif head.startswith("["):
            yield from ["", head, *self.blocks(block), ""]

    def _directive(self, name: str, argument: str, block: list[str]) -> Iterator[str]:
        more, options, content = _parted(block)
        argument = " ".join(filter(None, [argument, *more]))
        if name in _CODE:
            yield from ["", *_fenced(argument.split(" ")[0], content, ""), ""]
        elif name == "math":
            yield from ["", "$$", *filter(None, [argument, *content]), "$$", ""]
        elif name in ("image", "figure"):
            yield from ["", f"![{options.get('alt', '')}]({argument})", "", *self.blocks(content), ""]
        elif name == "list-table":
            yield from ["", argument, "", *list_table(content, int(options.get("header-rows", "0") or 0)), ""]
        elif name == "csv-table":
            yield from ["", argument, "", *csv_table(content, options.get("header", ""), options.get("delim", ",")), ""]
        elif name in _DATED:
            yield from ["", f"**{_DATED[name]} {argument}**", "", *self.blocks(content), ""]
        elif name not in _SILENT:
            yield from self._other(name, argument, content)

    def _other(self, name: str, argument: str, content: list[str]) -> Iterator[str]:
        """An admonition, a tab, a function of an API, or what nobody here has heard of."""
        title = argument if name in _TITLED or name not in _ADMONITIONS else ""
        inner = list(self.blocks([argument, "", *content] if name in _ADMONITIONS and not title else content))
        label = title or _ADMONITIONS.get(name, "")
        if not any(map(str.strip, inner)) and name not in _TITLED and name not in _ADMONITIONS:
            return  # `.. something:: path`: an instruction to the program that builds the pages
        if label and name not in _PLAIN:
            first = next((n for n, line in enumerate(inner) if line.strip()), len(inner))
            inner = inner[first:]
            if name in _ADMONITIONS and inner and not _STRUCTURE.match(inner[0]):
                inner[0] = f"**{label}:** {inner[0]}"
            else:
                inner = [f"**{label}**", "", *inner]
        yield from ["", *inner, ""]


_ADMONITIONS = {
    **{name: name.capitalize() for name in ("note", "warning", "important", "tip", "hint", "danger", "caution")},
    **{"attention": "Attention", "error": "Error", "seealso": "See also", "todo": "To do", "admonition": ""},
}
_TITLED = frozenset(["admonition", "topic", "sidebar", "rubric", "table", "figure"])
_STRUCTURE = re.compile(r"\s*(?:[#|>]|```|[-*+] |\d+[.)] |!\[|\$\$)")


def _line(indent: str, body: str) -> str:
    if body.startswith("| "):  # a line of verse; in Markdown it would be a table
        return f"{indent}{body[2:]}  "
    if body.startswith("#. "):
        return f"{indent}1. {body[3:]}"
    if not indent and (field := _FIELD.match(body)):
        return f"**{field[1]}:** {field[2]}  "
    return indent + body


def _indented(lines: list[str], place: int, indent: int) -> tuple[list[str], int]:
    """(lines, where they end) from `place` on that stand further in than `indent`, moved out as far as they go."""
    end = place
    for number in range(place, len(lines)):
        line = lines[number]
        if line.strip():
            if len(line) - len(line.lstrip()) <= indent:
                break
            end = number + 1
    block = lines[place:end]
    margin = min((len(line) - len(line.lstrip()) for line in block if line.strip()), default=0)
    return [line[margin:] for line in block], end


def _parted(block: list[str]) -> tuple[list[str], dict[str, str], list[str]]:
    """(the rest of the argument, options, content) of a directive's block."""
    place = 0
    more: list[str] = []
    options: dict[str, str] = {}
    while place < len(block) and block[place].strip():
        if found := _OPTION.match(block[place]):
            options[found[1].lower()] = (found[2] or "").strip()
        elif options and block[place].startswith(" "):
            last = next(reversed(options))
            options[last] = f"{options[last]} {block[place].strip()}".strip()
        else:
            break
        place += 1
    if not options:
        return more, options, block
    return more, options, block[place:]


def _fenced(language: str, lines: Iterable[str], indent: str) -> list[str]:
    content = list(lines)
    while content and not content[0].strip():
        content.pop(0)
    while content and not content[-1].strip():
        content.pop()
    if not content:
        return []
    longest = max((len(found[1]) for line in content if (found := _FENCE.match(line))), default=2)
    fence = "`" * max(3, longest + 1)
    return [f"{indent}{fence}{language}", *(indent + line if line else "" for line in content), indent + fence]

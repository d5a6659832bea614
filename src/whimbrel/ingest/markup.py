"""Markdown as readers of other formats write it, made plain: it is quoted in citations and read by the embedder."""

from __future__ import annotations

import re

_FENCED = re.compile(r"^(?P<fence>`{3,}|~{3,})[^\n]*\n[\s\S]*?(?:^(?P=fence)[^\n]*$|\Z)", re.MULTILINE)
_ESCAPED = re.compile(r"`[^`\n]*`|\\(?P<mark>[!-\",./:-@$-+\[\]^_{}~]|-(?!-)|(?<!\n\\)#)")
_PICTURE = re.compile(r"!\[(?P<alt>[^\]\n]*)\]\((?P<target>[^()\s]*)(?:\s+\"[^\"\n]*\")?\)")
_EMPTY_ROW = re.compile(r"^\|(?:[ \t]*\|)+[ \t]*\n", re.MULTILINE)
_SIGNS = re.compile(r"[^\s|:*_#>=.`\\-]")


def unescaped(text: str) -> str:
    """Without the backslashes before marks that would be read as themselves anyway ("Hello\\!"), but for those that
    part table cells, quote code, or keep a line from being a heading."""
    if "\\" not in text:
        return text
    parts: list[str] = []
    last = 0
    for code in _FENCED.finditer(text) if "```" in text or "~~~" in text else ():
        parts += [_ESCAPED.sub(_mark, text[last : code.start()]), code[0]]
        last = code.end()
    return "".join([*parts, _ESCAPED.sub(_mark, text[last:])])


def _mark(found: re.Match[str]) -> str:
    return found["mark"] or found[0]


def without_pictures(text: str) -> str:
    """Of pictures that lie inside the file, to which no path leads, only the description, if they have one."""
    return _PICTURE.sub(_described, text) if "![" in text else text


def _described(found: re.Match[str]) -> str:
    if found["target"].startswith(("http://", "https://")):
        return found[0]
    alt = found["alt"].strip()
    return f"[image: {alt}]" if alt and not _FILE_NAME.fullmatch(alt) else ""


_FILE_NAME = re.compile(
    r"(?:image|picture|img|grafik|bild)?[\s_-]*\d*|[\w.-]+\.(?:png|jpe?g|gif|bmp|emf|wmf|svg|tiff?)", re.I
)


def without_empty_rows(text: str) -> str:
    """Tables without the rows in which no cell has anything: sheets have hundreds."""
    return _EMPTY_ROW.sub("", text) if "|" in text else text


def says_something(text: str) -> bool:
    """Whether there is anything but blanks and the marks of Markdown."""
    return _SIGNS.search(text) is not None


_HEADING = re.compile(r"^(?: {0,3}(?P<fence>`{3,}|~{3,})[^\n]*| {0,3}(?P<hashes>#{1,6})(?=[ \t]|$))", re.MULTILINE)


def lowered(text: str) -> str:
    """With each heading one level lower (of six), for a document that goes into another under a heading of its own."""
    parts: list[str] = []
    last, fence = 0, ""
    for found in _HEADING.finditer(text):
        if found["fence"]:
            mark = found["fence"]
            if not fence:
                fence = mark
            elif mark.startswith(fence) and not found[0].strip().strip(mark[0]):
                fence = ""
        elif not fence and len(found["hashes"]) < 6:
            parts += [text[last : found.start("hashes")], "#"]
            last = found.start("hashes")
    return "".join([*parts, text[last:]])


_BULLET = re.compile(r"^(?P<indent>[ \t]*)[•●▪■◦‣∙](?:[ \t]+|(?=\w))", re.MULTILINE)
_INNER_BULLET = re.compile(r"(?<=\S)[ \t]+[•●▪‣][ \t]+(?=\S)")


def bulleted(text: str, *, within: bool) -> str:
    """Lines that begin with a printed bullet as list items; with `within`, also what follows one inside a line, where
    a reader has joined the items of a list into a paragraph."""
    if not _ANY_BULLET.search(text):
        return text
    if within:
        lines = text.split("\n")
        text = "\n".join(line if line.startswith("|") else _INNER_BULLET.sub("\n- ", line) for line in lines)
    return _BULLET.sub(lambda found: f"{found['indent']}- ", text)


_ANY_BULLET = re.compile("[•●▪■◦‣∙]")

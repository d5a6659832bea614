"""What a file is: its media type, by content before extension."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import PurePath

from whimbrel.ingest.archives import Contents

OFFICE = {
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
}
OUTLOOK = "application/vnd.ms-outlook"
_OLE = {
    "doc": "application/msword",
    "xls": "application/vnd.ms-excel",
    "ppt": "application/vnd.ms-powerpoint",
    "msg": OUTLOOK,
}
_OLE_FILE = "application/x-ole-storage"
_TEXT = {
    **dict.fromkeys(("md", "markdown", "mdown", "mkd", "mdx", "qmd", "rmd"), "text/markdown"),
    **dict.fromkeys(("txt", "text", "log", "asc", "srt", "vtt", "me"), "text/plain"),
    "rst": "text/x-rst",
    "org": "text/x-org",
    **dict.fromkeys(("adoc", "asciidoc"), "text/asciidoc"),
    "csv": "text/csv",
    "tsv": "text/tab-separated-values",
}
_CODE = {
    **{
        name: name
        for name in ("c", "go", "java", "lua", "php", "r", "sql", "swift", "css", "scss", "toml", "ini", "json")
    },
    **dict.fromkeys(("py", "pyi", "pyw"), "python"),
    **dict.fromkeys(("js", "mjs", "cjs", "jsx"), "javascript"),
    **dict.fromkeys(("ts", "tsx"), "typescript"),
    **dict.fromkeys(("h", "hpp", "hh", "cc", "cpp", "cxx", "ino"), "cpp"),
    **dict.fromkeys(("sh", "bash", "zsh", "fish"), "bash"),
    **dict.fromkeys(("yml", "yaml"), "yaml"),
    **dict.fromkeys(("jsonl", "ndjson", "geojson", "json5"), "json"),
    **dict.fromkeys(("cfg", "conf", "properties", "env"), "ini"),
    **dict.fromkeys(("kt", "kts"), "kotlin"),
    **{"cs": "csharp", "rs": "rust", "rb": "ruby", "pl": "perl", "scala": "scala", "ps1": "powershell", "bat": "batch"},
    **{"ex": "elixir", "erl": "erlang", "hs": "haskell", "clj": "clojure", "jl": "julia", "m": "matlab", "vim": "vim"},
    **{"gradle": "groovy", "groovy": "groovy", "proto": "protobuf", "graphql": "graphql", "tf": "hcl", "vue": "vue"},
}
_CODE_NAMES = {"makefile": "makefile", "dockerfile": "dockerfile", "jenkinsfile": "groovy", "cmakelists.txt": "cmake"}
_OTHER = {
    **dict.fromkeys(("docx", "docm", "dotx"), OFFICE["docx"]),
    **dict.fromkeys(("xlsx", "xlsm", "xltx", "xltm"), OFFICE["xlsx"]),
    **dict.fromkeys(("pptx", "pptm", "ppsx", "potx"), OFFICE["pptx"]),
    **dict.fromkeys(("doc", "dot"), _OLE["doc"]),
    **dict.fromkeys(("xls", "xlt"), _OLE["xls"]),
    **dict.fromkeys(("ppt", "pps", "pot"), _OLE["ppt"]),
    "msg": _OLE["msg"],
    "hwp": "application/x-hwp",
    "xlsb": "application/vnd.ms-excel.sheet.binary.macroEnabled.12",
    "odt": "application/vnd.oasis.opendocument.text",
    "ods": "application/vnd.oasis.opendocument.spreadsheet",
    "odp": "application/vnd.oasis.opendocument.presentation",
    "epub": "application/epub+zip",
    "key": "application/x-iwork-keynote-sffkey",
    "numbers": "application/x-iwork-numbers-sffnumbers",
    "pages": "application/x-iwork-pages-sffpages",
    "pdf": "application/pdf",
    "pst": "application/vnd.ms-outlook-pst",
    "dbf": "application/x-dbf",
    "zip": "application/zip",
    "tar": "application/x-tar",
    **dict.fromkeys(("gz", "tgz"), "application/gzip"),
    "7z": "application/x-7z-compressed",
    **dict.fromkeys(("jpg", "jpeg"), "image/jpeg"),
    **dict.fromkeys(("tif", "tiff"), "image/tiff"),
    **dict.fromkeys(("jp2", "j2k"), "image/jp2"),
    **{name: f"image/{name}" for name in ("png", "gif", "bmp", "webp", "heic")},
}
_MARKUP = {
    **dict.fromkeys(("htm", "html", "xhtml"), "text/html"),
    **dict.fromkeys(("tex", "latex", "ltx"), "application/x-latex"),
    **dict.fromkeys(("typ", "typst"), "application/x-typst"),
    **dict.fromkeys(("dbk", "docbook"), "application/docbook+xml"),
    "xml": "application/xml",
    "svg": "image/svg+xml",
    "fb2": "application/x-fictionbook+xml",
    "jats": "application/x-jats+xml",
    "opml": "application/xml+opml",
    "rtf": "application/rtf",
    "eml": "message/rfc822",
    "ipynb": "application/x-ipynb+json",
    "djot": "text/x-djot",
    "bib": "application/x-bibtex",
    "ris": "application/x-research-info-systems",
    "nbib": "application/x-pubmed",
    "enw": "application/x-endnote+xml",
}
BINARY = frozenset(_OTHER.values())
"""Types of which no file is text."""
_ZIPPED = frozenset(_OTHER[name] for name in ("xlsb", "odt", "ods", "odp", "epub", "key", "numbers", "pages"))
_HTML_WITHIN = {"text/markdown", *(_MARKUP[name] for name in ("xml", "jats", "svg", "eml"))}

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"{\\rtf", "application/rtf"),
    (b"\x1f\x8b", "application/gzip"),
    (b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (b"Rar!\x1a\x07", "application/vnd.rar"),
    (b"BZh", "application/x-bzip2"),
    (b"\xfd7zXZ\x00", "application/x-xz"),
    (b"\x28\xb5\x2f\xfd", "application/zstd"),
    (b"\x7fELF", "application/x-elf"),
    (b"MZ\x90\x00", "application/x-msdownload"),
    (b"SQLite format 3\x00", "application/vnd.sqlite3"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
    (b"PAR1", "application/vnd.apache.parquet"),
    (b"\xca\xfe\xba\xbe", "application/java-vm"),
    (b"\x00asm", "application/wasm"),
    (b"wOF2", "font/woff2"),
)
_WRITTEN = frozenset({"application/pdf", "application/rtf", "text/html"})
"""Types found by their content whose files may be text throughout."""
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


@dataclass(frozen=True, slots=True)
class Format:
    media_type: str
    """Empty where neither content nor extension says."""
    language: str = ""
    """Of source code and of data in text form: what its fence is marked with."""
    warning: str = ""
    """That the extension says otherwise."""
    in_content: bool = False
    """The content has the marks of a format, be it this or another."""


def format_of(name: str, data: bytes, contents: Contents | None = None) -> Format:
    """The format of a file by its first bytes, its inner structure, and its name, in this order of trust. `contents`
    are those of a zip-based file, where they are known already."""
    named = by_name(name)
    found = _by_content(data, contents)
    if not found or (found not in _WRITTEN and _is_text(data[:1_024])):
        return named
    return replace(_trusted(found, named, name), in_content=True)


def _trusted(found: str, named: Format, name: str) -> Format:
    if found == named.media_type:
        return named
    if found == "text/html" and (named.language or named.media_type in _HTML_WITHIN):
        return named  # a template, or Markdown that begins with HTML
    if found == _OLE_FILE:
        return named if named.media_type in BINARY else Format(_OLE_FILE)
    if named.media_type in _ZIPPED and found in {"application/zip", OFFICE["xlsx"]}:
        return named
    if not named.media_type or not PurePath(name).suffix:
        return Format(found)
    return Format(found, warning=f"the content is {found}, though the name says {named.media_type}")


def _is_text(head: bytes) -> bool:
    """Whether there is no control character in it, as there is in every binary format: a text may begin with "ID3" or
    hold "mustard" where an archive has its mark."""
    return not _CONTROL.search(head)


def by_name(name: str) -> Format:
    base = PurePath(name).name.lower()
    suffix = PurePath(base).suffix.removeprefix(".")
    if base in _CODE_NAMES:
        return Format("text/x-source-code", _CODE_NAMES[base])
    if suffix in _CODE:
        return Format("application/json" if _CODE[suffix] == "json" else "text/x-source-code", _CODE[suffix])
    return Format(_TEXT.get(suffix) or _MARKUP.get(suffix) or _OTHER.get(suffix) or "")


def _by_content(data: bytes, contents: Contents | None) -> str:
    head = data[:1_024]
    for magic, media_type in _MAGIC:
        if head.startswith(magic):
            return media_type
    if head.startswith(b"%PDF-"):
        return "application/pdf"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_type(contents or _contents(data))
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return _ole_type(data)
    if head[4:8] == b"ftyp":
        return "image/heic" if head[8:12] in (b"heic", b"heix", b"mif1", b"msf1") else "video/mp4"
    if head.startswith(b"RIFF"):
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(head[8:12], "video/x-msvideo")
    if head.startswith(b"BM") and len(data) > 26 and data[6:10] == b"\0\0\0\0":
        return "image/bmp"
    if data[257:262] == b"ustar":
        return "application/x-tar"
    if b"%PDF-" in head and b"startxref" in data:  # after some junk; a text may speak of PDF, and an archive hold one
        return "application/pdf"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:15].lower()
    return "text/html" if start.startswith((b"<!doctype html", b"<html")) else ""


def _contents(data: bytes) -> Contents | None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return Contents.of(archive, 0)
    except (zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, NotImplementedError, EOFError, OSError):
        return None  # damaged: the check of archives says how


def _zip_type(contents: Contents | None) -> str:
    if contents is None:
        return "application/zip"
    if contents.mimetype:
        return contents.mimetype
    if "[Content_Types].xml" in contents.names:
        for folder, kind in (("word/", "docx"), ("xl/", "xlsx"), ("ppt/", "pptx")):
            if any(name.startswith(folder) for name in contents.names):
                return OFFICE[kind]
    return "application/zip"


def _ole_type(data: bytes) -> str:
    """By the names of streams, which an OLE file's directory holds in UTF-16."""
    streams = (
        ("EncryptedPackage", "application/encrypted"),
        ("WordDocument", _OLE["doc"]),
        ("Workbook", _OLE["xls"]),
        ("PowerPoint Document", _OLE["ppt"]),
        ("__properties_version1.0", _OLE["msg"]),
    )
    for stream, media_type in streams:
        if stream.encode("utf-16-le") in data:
            return media_type
    return _OLE_FILE

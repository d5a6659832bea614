"""The lexical index: BM25 over chunks, one folder per view."""

from whimbrel.lexicon.base import LexicalRows
from whimbrel.lexicon.tantivy import TantivyLexicon

__all__ = ["LexicalRows", "TantivyLexicon"]

from whimbrel.stores.chroma.store import ChromaStore

__all__ = ["ChromaStore"]

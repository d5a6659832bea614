from whimbrel.stores.qdrant.store import QdrantStore

__all__ = ["QdrantStore"]

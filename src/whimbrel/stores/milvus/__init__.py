from whimbrel.stores.milvus.store import MilvusStore

__all__ = ["MilvusStore"]

from whimbrel.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]

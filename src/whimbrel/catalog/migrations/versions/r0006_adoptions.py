"""Databases of other programs, taken in as frozen views; chunks know the row that they come from."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.add_column("chunks", sa.Column("source_id", sa.Text(), nullable=True))
    op.create_table(
        "adoptions",
        sa.Column("view_id", KEY, autoincrement=False, nullable=False),
        sa.Column("collection_id", KEY, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("source", JSON, nullable=False),
        sa.Column("fields", JSON, nullable=False),
        sa.Column("checks", JSON, nullable=False),
        sa.Column("counts", JSON, nullable=False),
        sa.Column("drift", JSON, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["collection_id"], ["collections.id"], name=op.f("fk_adoptions_collection_id")),
        sa.PrimaryKeyConstraint("view_id", name=op.f("pk_adoptions")),
    )
    op.create_index("ix_adoptions_collection_id", "adoptions", ["collection_id"], unique=False)


def downgrade() -> None:
    raise RuntimeError("There is no way down: restore the copy that was saved before the upgrade.")

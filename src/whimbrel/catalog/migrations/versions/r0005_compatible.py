"""Embedders that were declared compatible with a space."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "compatible",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("space_id", KEY, nullable=False),
        sa.Column("collection", sa.Text(), nullable=False),
        sa.Column("embedder", sa.Text(), nullable=False),
        sa.Column("definition", JSON, nullable=False),
        sa.Column("checks", JSON, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["space_id"], ["spaces.id"], name=op.f("fk_compatible_space_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_compatible")),
    )
    op.create_index("ix_compatible_space_id", "compatible", ["space_id"], unique=False)


def downgrade() -> None:
    raise RuntimeError("There is no way down: restore the copy that was saved before the upgrade.")

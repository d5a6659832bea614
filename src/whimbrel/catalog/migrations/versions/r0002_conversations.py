"""Conversations: their turns, what those were made from, and what users think of them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "conversations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("collection_id", KEY, nullable=False),
        sa.Column("erased", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["collection_id"], ["collections.id"], name=op.f("fk_conversations_collection_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_conversations")),
    )
    op.create_index(
        "ix_conversations_collection_id_updated_at", "conversations", ["collection_id", "updated_at"], unique=False
    )
    op.create_table(
        "turns",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("conversation_id", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("asked", sa.Text(), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("citations", JSON, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("abstained", sa.Boolean(), nullable=False),
        sa.Column("degraded", JSON, nullable=False),
        sa.Column("usage", JSON, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["conversation_id"], ["conversations.id"], name=op.f("fk_turns_conversation_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_turns")),
        sa.UniqueConstraint("conversation_id", "ordinal", name=op.f("uq_turns_conversation_id_ordinal")),
    )
    op.create_table(
        "turn_documents",
        sa.Column("turn_id", sa.Text(), nullable=False),
        sa.Column("document", sa.LargeBinary(length=16), nullable=False),
        sa.ForeignKeyConstraint(["turn_id"], ["turns.id"], name=op.f("fk_turn_documents_turn_id")),
        sa.PrimaryKeyConstraint("turn_id", "document", name=op.f("pk_turn_documents")),
    )
    op.create_index("ix_turn_documents_document", "turn_documents", ["document"], unique=False)
    op.create_table(
        "feedback",
        sa.Column("turn_id", sa.Text(), nullable=False),
        sa.Column("rating", sa.Integer(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["turn_id"], ["turns.id"], name=op.f("fk_feedback_turn_id")),
        sa.PrimaryKeyConstraint("turn_id", name=op.f("pk_feedback")),
    )


def downgrade() -> None:
    raise RuntimeError("There is no way down: restore the copy that was saved before the upgrade.")

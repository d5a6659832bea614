"""An index of the texts that a model refused: to count them, every vector was looked at."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    refused = sa.text("data IS NULL")
    op.create_index("ix_vectors_refused", "vectors", ["space_id"], sqlite_where=refused, postgresql_where=refused)


def downgrade() -> None:
    raise RuntimeError("There is no way down: restore the copy that was saved before the upgrade.")

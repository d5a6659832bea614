"""What a document needs to be cut again, in another chunking: the title over its chunks. Its chunks are counted when
they are asked for, in the chunking that is live then; and what names how its text was read says no more how it was cut.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("documents", sa.Column("cut_title", sa.Text(), nullable=True))
    op.drop_column("documents", "chunk_count")
    place = "instr(recipe, ';')" if op.get_bind().dialect.name == "sqlite" else "strpos(recipe, ';')"
    op.execute(f"UPDATE documents SET recipe = substr(recipe, 1, {place} - 1) WHERE {place} > 0")


def downgrade() -> None:
    raise RuntimeError("There is no way down: restore the copy that was saved before the upgrade.")

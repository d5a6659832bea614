"""Whimbrel: the self-hosted RAG server that moves.

`from whimbrel import Whimbrel` is the whole of it as a library; see `whimbrel.app`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whimbrel.app import Whimbrel

__version__ = "0.1.0"
__all__ = ["Whimbrel", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the command line must not pay for it.
    if name == "Whimbrel":
        from whimbrel.app import Whimbrel

        return Whimbrel
    raise AttributeError(f"module 'whimbrel' has no attribute {name!r}")

"""The plan of a move as a page for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whimbrel.cli import out

if TYPE_CHECKING:
    from whimbrel.move.plan import End, Plan

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def show(plan: Plan) -> None:
    about = "" if plan.cut is None or plan.cut.exact else "about "
    out.styled(out.bold(f"{plan.collection}: {about}{plan.rows:,} rows of {plan.documents:,} documents"))
    _ends(plan.source, plan.target)
    weight = plan.bytes
    out.line(f"  {size(weight.vectors)} of vectors, {size(weight.texts)} of texts, {size(weight.metadata)} of metadata")
    _embedding(plan)
    _losses(plan)
    _seconds(plan)
    out.line()
    for room in plan.room:
        free = "free space unknown" if room.free is None else f"{size(room.free)} free"
        out.line(f"  disk, {room.what}: {size(room.needed)} needed, {free}")


def _ends(source: End, target: End) -> None:
    for name, end in (("from", source), ("to", target)):
        out.line(f"  {name:<4}  {end.uri}  ({end.embedder}, {end.dimensions:,} dimensions; {end.chunking})")


def _embedding(plan: Plan) -> None:
    found = plan.embedding
    if found is None:
        out.line("  Every vector is taken as it is: nothing is embedded.")
        return
    kept = f"{found.of_record:,} have a vector of record already" if found.of_record else "none has a vector yet"
    cost = "" if found.usd == 0 else ", " + usd(found.usd)
    out.line(f"  To be embedded: {found.texts:,} texts, about {found.tokens:,} tokens{cost}; {kept}.")
    if found.usd is None:
        out.line("    `guards.prices` sets the price of a model.")


def _losses(plan: Plan) -> None:
    out.line()
    if not plan.losses:
        out.line("  Nothing is lost or done otherwise.")
        return
    out.styled(out.bold("  What is lost, or done otherwise"))
    for loss in sorted(plan.losses, key=lambda one: not one.stops):
        out.line(f"    {'STOPS THE MOVE: ' if loss.stops else '- '}{loss.said}")


def _seconds(plan: Plan) -> None:
    found = plan.seconds
    out.line()
    basis = f"by {plan.sampled:,} rows that were written to a scratch table and read again" if plan.sampled else ""
    out.styled(out.bold(f"  How long{', ' if basis else ''}{basis}"))
    for name in ("cutting", "embedding", "reading", "writing", "indexing", "verifying"):
        took = getattr(found, name)
        if took is None or took > 0:
            out.line(f"    {name:<10} {duration(took):>12}")
    out.line(f"    {'in all':<10} {duration(found.total):>12}")
    if found.indexing is not None and plan.rows > 10 * max(plan.sampled, 1):
        out.line("    An index that the target makes of many rows alone is not in it.")


def usd(cost: float | None) -> str:
    """Dollars for people: `about 0.0042 USD`, `about 1,250.00 USD`."""
    if cost is None:
        return "at a price that is not known"
    return f"about {cost:,.2f} USD" if cost >= 1 else f"about {cost:.2g} USD"


def size(count: int) -> str:
    """Bytes for people: `18.9 MB`."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count:,} bytes"


def duration(seconds: float | None) -> str:
    """Seconds for people: `1.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None:
        return "unknown"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 90 else f"{minutes // 60:,} h {minutes % 60} min"

"""`whimbrel usage`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from whimbrel.cli import out
from whimbrel.cli.opening import opened
from whimbrel.cli.options import AsJson

_HEADERS = ("calls", "failed", "stood in", "input", "output", "USD", "mean s", "slowest s")


def usage(
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="24h, 7d, or a date (UTC). Without it: this month.")
    ] = None,
    by: Annotated[str, typer.Option(metavar="WHAT", help="Sum by model, key or day.")] = "model",
    as_json: AsJson = False,
) -> None:
    """Show what models took: calls, tokens, price and time; budgets; and models that are not asked now."""
    with opened() as whimbrel:
        found = whimbrel.usage(since, by)
    if as_json:
        out.data(found)
        return
    if not found["rows"]:
        out.line(f"No model beyond this machine was asked since {found['since']}.")
    else:
        names = ("model", "kind") if by == "model" else (by,)
        rows = [[row[name] or "(none)" for name in names] + _figures(row) for row in found["rows"]]
        out.table([*names, *_HEADERS], rows)
    if unpriced := found["total"]["unpriced"]:
        out.note(f"The price of {unpriced:,} calls is not known; they are in with 0 USD. `guards.prices` sets one.")
    for one in found["budgets"]:
        unit = "USD" if one["unit"] == "usd" else "tokens"
        warns = ", which refuses nothing" if one["warns"] else ""
        out.line(f"budget: {one['spent']:,.10g} of {one['limit']:,.10g} {unit}/{one['per']} for {one['scope']}{warns}")
    for one in found["paused"]:
        out.line(f"not asked now: {one['model']}, after {one['failures']} failures in a row ({one['reason']})")


def _figures(row: dict[str, Any]) -> list[object]:
    usd = f"{row['usd']:.4f}" + (" + ?" if row["unpriced"] else "")
    counts = [row[name] for name in ("calls", "failed", "stood_in", "input_tokens", "output_tokens")]
    return [*counts, usd, f"{row['mean_s']:.2f}", f"{row['slowest_s']:.2f}"]

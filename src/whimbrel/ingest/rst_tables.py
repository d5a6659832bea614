"""Tables of reStructuredText as Markdown tables."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

_SIMPLE = re.compile(r"=+(?: +=+)+\s*$")
_GRID = re.compile(r"\+(?:[-=]+\+)+\s*$")
Rows = list[list[str]]


def is_simple_border(body: str) -> bool:
    return body.startswith("=") and _SIMPLE.match(body) is not None


def is_grid_border(body: str) -> bool:
    return body.startswith("+") and _GRID.match(body) is not None


def simple_table(lines: Sequence[str], place: int) -> tuple[list[str], int] | None:
    """(Markdown, where it ends) of a table between lines of `=====  ===`; None where it has no end."""
    end = place
    for number in range(place + 1, len(lines)):
        if is_simple_border(lines[number].strip()):
            end = number
            if number + 1 >= len(lines) or not lines[number + 1].strip():
                break
        elif not lines[number].strip() and end > place and number > end + 1:
            break
    if end == place:
        return None
    columns = [found.span() for found in re.finditer("=+", lines[place])]
    spans = [(start, columns[n + 1][0] if n + 1 < len(columns) else None) for n, (start, _) in enumerate(columns)]
    rows: Rows = []
    headed = 0
    for line in lines[place + 1 : end]:
        if is_simple_border(line.strip()):
            headed = len(rows)
        elif line.strip() and set(line.strip()) - {"-", " "}:
            cells = [line[start:stop].strip() for start, stop in spans]
            if rows and not cells[0] and len(rows) > headed:
                rows[-1] = [f"{before} {after}".strip() for before, after in zip(rows[-1], cells, strict=True)]
            else:
                rows.append(cells)
    if headed > 1:  # a header of several lines
        rows[:headed] = [[" ".join(filter(None, parts)) for parts in zip(*rows[:headed], strict=True)]]
    return markdown(rows, headed=headed > 0), end + 1


def grid_table(lines: Sequence[str], place: int) -> tuple[list[str], int] | None:
    """(Markdown, where it ends) of a table drawn with `+---+` and `|`; cells over several columns are in the first."""
    end = place
    while end < len(lines) and lines[end].lstrip().startswith(("+", "|")):
        end += 1
    drawn = [line.strip() for line in lines[place:end]]
    bounds = sorted({at for line in drawn if is_grid_border(line) for at, char in enumerate(line) if char == "+"})
    rows: Rows = []
    headed = 0
    fresh = True
    for line in drawn[1:]:
        if line.startswith("+"):
            fresh = True
            headed = len(rows) if "=" in line and not headed else headed
            continue
        cells = _grid_cells(line, bounds)
        if fresh:
            rows.append(cells)
        else:
            rows[-1] = [f"{before} {after}".strip() for before, after in zip(rows[-1], cells, strict=True)]
        fresh = False
    return (markdown(rows, headed=headed > 0), end) if rows else None


def _grid_cells(line: str, bounds: Sequence[int]) -> list[str]:
    cells = [""] * (len(bounds) - 1)
    start = 0
    for number, bound in enumerate(bounds[1:]):
        if bound >= len(line) or line[bound] in "|+":
            cells[start] = line[bounds[start] + 1 : bound].strip()
            start = number + 1
    return cells


def list_table(content: Sequence[str], headers: int) -> list[str]:
    """Of `* - cell` and `  - cell`."""
    rows: Rows = []
    for line in content:
        if found := re.match(r"\s*\*\s+-(?:\s+(.*))?$", line):
            rows.append([found[1] or ""])
        elif rows and (found := re.match(r"\s+-(?:\s+(.*))?$", line)):
            rows[-1].append(found[1] or "")
        elif rows and line.strip():
            rows[-1][-1] = f"{rows[-1][-1]} {line.strip()}".strip()
    return markdown(rows, headed=headers > 0)


def csv_table(content: Sequence[str], header: str, delimiter: str) -> list[str]:
    mark = {"tab": "\t", "space": " "}.get(delimiter, delimiter[:1] or ",")
    wanted = [header] if header else []
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(io.StringIO("\n".join([*wanted, *content])), delimiter=mark, skipinitialspace=True)
        if any(cell.strip() for cell in row)
    ]
    return markdown(rows, headed=bool(header))


def markdown(rows: Rows, *, headed: bool) -> list[str]:
    """Without a header of its own, a table gets an empty one: Markdown has no table without."""
    if not rows:
        return []
    width = max(map(len, rows))
    full = [[cell.replace("|", "\\|") for cell in row] + [""] * (width - len(row)) for row in rows]
    if not headed:
        full.insert(0, [""] * width)
    made = [f"| {' | '.join(row)} |" for row in full]
    return [made[0], "|" + " --- |" * width, *made[1:]]

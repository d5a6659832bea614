"""Plots as inline SVG. Colours are the page's, by class; a mark says its value when pointed at, without a script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from whimbrel.move.markup import Markup, joined, tag

WIDTH = 720
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 14, 30
MOST_POINTS = 120
"""Of a line; more are brought together."""


def line(points: Sequence[tuple[float, float]], *, label: str, unit: str) -> Markup:
    """A line over time: (seconds since the beginning, value). The ground below it is filled."""
    points = _thinned(points)
    height = 200
    last = max(at for at, _ in points) or 1.0
    top = _round_up(max(value for _, value in points))

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * at / last

    def y(value: float) -> float:
        return TOP + (height - TOP - BOTTOM) * (1 - value / top)

    path = " ".join(f"{'L' if at else 'M'}{x(when):.1f},{y(value):.1f}" for at, (when, value) in enumerate(points))
    floor = y(0)
    ground = f"{path} L{x(points[-1][0]):.1f},{floor:.1f} L{x(points[0][0]):.1f},{floor:.1f} Z"
    marks = [
        tag(
            "circle",
            tag("title", f"{value:,.0f} {unit} after {_clock(when)}"),
            class_="mark",
            cx=f"{x(when):.1f}",
            cy=f"{y(value):.1f}",
            r=6,
        )
        for when, value in points
    ]
    return _picture(
        height,
        f"{label}: at most {max(value for _, value in points):,.0f} {unit}",
        *[_rule(y(value), f"{value:,.0f}") for value in (0, top / 2, top)],
        *[_tick(x(at), height, _clock(at)) for at in (0, last / 2, last)],
        tag("path", class_="ground", d=ground),
        tag("path", class_="line", d=path),
        *marks,
    )


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    value: float
    said: str
    source: bool
    """Of the side that the collection comes from."""


def bars(found: Sequence[Bar], *, label: str, top: float | None = None) -> Markup:
    """Lying bars, one under the other, each with its value at its end. `top`: the value of the full width."""
    full = top if top is not None else max((one.value for one in found), default=0.0) or 1.0
    row, begin = 30, 120
    room = WIDTH - begin - 90
    drawn = []
    for place, one in enumerate(found):
        y = 6 + place * row
        width = max(room * min(one.value / full, 1.0), 1.0)
        side = "source" if one.source else "target"
        drawn += [
            tag("text", one.label, class_="name", x=begin - 10, y=y + 14, text_anchor="end"),
            tag("rect", class_="rail", x=begin, y=y, width=room, height=20, rx=4),
            tag("rect", class_=side, x=begin, y=y, width=f"{width:.1f}", height=20, rx=4),
            tag("text", one.said, class_="value", x=begin + room + 10, y=y + 14),
        ]
    return _picture(12 + row * len(found), f"{label}: {'; '.join(f'{b.label} {b.said}' for b in found)}", *drawn)


def timeline(spans: Sequence[tuple[str, float]]) -> Markup:
    """The states as a band and its legend: (state, seconds), in order. Short ones are as wide as can be seen."""
    least, room, height = 4.0, float(WIDTH), 26
    whole = sum(seconds for _, seconds in spans) or 1.0
    wide = [max(least, seconds / whole * room) for _, seconds in spans]
    scale = room / sum(wide) if wide else 1.0
    drawn, x = [], 0.0
    for (state, seconds), width in zip(spans, wide, strict=True):
        drawn.append(
            tag(
                "rect",
                tag("title", _lasted(state, seconds)),
                class_=f"state {state}",
                x=f"{x:.1f}",
                y=0,
                width=f"{max(width * scale - 2, 1.0):.1f}",
                height=height,
                rx=3,
            )
        )
        x += width * scale
    legend = [tag("li", tag("i", class_=state), _lasted(state, seconds)) for state, seconds in spans]
    band = _picture(height, "; ".join(_lasted(*span) for span in spans), *drawn)
    return joined(band, tag("ul", *legend, class_="legend"))


def _lasted(state: str, seconds: float) -> str:
    return f"{state.replace('_', ' ')} {_clock(seconds)}"


def _picture(height: int, label: str, *children: Markup) -> Markup:
    return tag("svg", joined(*children), viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=label)


def _rule(y: float, label: str) -> Markup:
    return joined(
        tag("line", class_="rule", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}"),
        tag("text", label, class_="tick", x=LEFT - 8, y=f"{y + 4:.1f}", text_anchor="end"),
    )


def _tick(x: float, height: int, label: str) -> Markup:
    anchor = "start" if x <= LEFT else "end" if x >= WIDTH - RIGHT else "middle"
    return tag("text", label, class_="tick", x=f"{x:.1f}", y=height - 8, text_anchor=anchor)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Runs of points as their means."""
    size = math.ceil(len(points) / MOST_POINTS)
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(at for at, _ in run) / len(run), sum(value for _, value in run) / len(run)) for run in runs]


def _round_up(value: float) -> float:
    """To a round number; 1 for what is too small to be told from nothing."""
    if value < 1e-9:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return float(
        next(step * power for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10) if step * power >= value * 0.999)
    )


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"

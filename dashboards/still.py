"""A page as it stands, in plain HTML: what a browser shows while Dash and Plotly start, or where no script may run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import groupby
from typing import Any

import numpy as np
from dash import dcc
from dash.development.base_component import Component

from .figures import Figure

_NAMES = {"className": "class", "htmlFor": "for"}
_KEPT = frozenset({"class", "for", "href", "title", "value", "max", "scope", "role"})
_WIDTH = 1000  # of a picture, in its own units; the page stretches it


def still(shown: Any) -> str:
    """Components as HTML: text is escaped, lines are drawn, and what only a script can show is left out."""
    if shown is None:
        return ""
    if isinstance(shown, list | tuple):
        return "".join(map(still, shown))
    if not isinstance(shown, Component):
        return escape(str(shown))
    inside = still(getattr(shown, "children", None))
    if isinstance(shown, dcc.Graph):
        figure = getattr(shown, "figure", None)
        return picture(figure) if figure else ""
    if isinstance(shown, dcc.Link):
        return f"<a{_attributes(shown)}>{inside}</a>"
    if shown._namespace != "dash_html_components":
        return inside
    tag = shown._type.lower()
    return f"<{tag}{_attributes(shown)}>{inside}</{tag}>"


def picture(figure: Figure) -> str:
    """The lines of a figure as an SVG picture without axes; what is no line leaves its place empty."""
    layout = figure["layout"]
    margin = layout["margin"]
    height = max(1, layout["height"] - margin["t"] - margin["b"])
    lines = [t for t in figure["data"] if t["type"] == "scatter" and t.get("yaxis", "y") == "y" and t["x"]]
    drawn = "".join(_paths(lines, layout.get("yaxis", {}), height))
    pad = " ".join(f"{margin[side]}px" for side in "trbl")
    return (
        f'<div class="cw-picture" style="padding:{pad}"><svg viewBox="0 0 {_WIDTH} {height}" height="{height}"'
        f' preserveAspectRatio="none" aria-hidden="true">{drawn}</svg></div>'
    )


def _paths(lines: Sequence[dict[str, Any]], axis: dict[str, Any], height: int) -> Iterable[str]:
    """One path a line, over the range of all; stacked ones as areas."""
    rise: Callable[[float], float] = np.log10 if axis.get("type") == "log" else float
    read: list[list[tuple[Any, Any]]] = [
        [(x, None if y is None else rise(y)) for x, y in zip(t["x"], t["y"], strict=True)] for t in lines
    ]
    steps = [x for points in read for x, _ in points]
    levels = [y for points in read for _, y in points if y is not None]
    if not levels:
        return
    first, last = min(steps), max(steps)
    low, high = axis.get("range") or (min(levels), max(levels))

    def path(x: Sequence[float], y: Sequence[float]) -> str:
        across = _WIDTH * (np.array(x) - first) / max(last - first, 1)
        down = height * (1 - (np.clip(y, low, high) - low) / ((high - low) or 1))
        return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(across.tolist(), down.tolist(), strict=True))

    foot = np.zeros(len(grid := sorted(set(steps))))
    for line, points in zip(lines, read, strict=True):
        colour = escape(line["line"]["color"])
        known = [(x, y) for x, y in points if y is not None]
        if "stackgroup" in line and known:
            top = foot + np.interp(grid, *zip(*known, strict=True))
            around = path([*grid, *reversed(grid)], [*top, *reversed(foot)])
            yield f'<path d="{around}Z" fill="{colour}"/>'
            foot = top
        elif known:
            dash = "" if line["line"].get("dash", "solid") == "solid" else ' stroke-dasharray="4"'
            whole = (part for there, part in groupby(points, lambda p: p[1] is not None) if there)
            d = "".join(path(*zip(*part, strict=True)) for part in whole)
            yield f'<path d="{d}" stroke="{colour}" stroke-width="{line["line"]["width"]}" fill="none"{dash}/>'


def _attributes(shown: Component) -> str:
    told = []
    for prop, value in shown.to_plotly_json()["props"].items():
        name = _NAMES.get(prop, prop)
        if prop == "style":
            value = ";".join(f"{_css(key)}:{text}" for key, text in value.items())
        elif name not in _KEPT and not name.startswith("aria-"):
            continue
        told.append(f' {name}="{escape(str(value))}"')
    return "".join(told)


def _css(key: str) -> str:
    """A style's name as CSS spells it.

    >>> _css("minHeight")
    'min-height'
    """
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in key)

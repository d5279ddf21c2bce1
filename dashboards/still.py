"""A page as it stands, in plain HTML: what a browser shows while Dash and Plotly start, or where no script may run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import groupby
from typing import Any

import numpy as np
from dash import dcc
from dash.development.base_component import Component
from plotly.colors import sample_colorscale

from .figures import Figure

_NAMES = {"className": "class", "htmlFor": "for"}
_KEPT = frozenset({"class", "for", "href", "title", "value", "max", "scope", "role"})
_SHADES = 32  # of a heat map
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
    """The lines and cells of a figure as an SVG picture without axes; what is neither leaves its place empty."""
    layout = figure["layout"]
    margin = layout["margin"]
    height = max(1, layout["height"] - margin["t"] - margin["b"])
    lines = [t for t in figure["data"] if t["type"] == "scatter" and t.get("yaxis", "y") == "y" and t["x"]]
    cells = [t for t in figure["data"] if t["type"] == "heatmap" and t.get("transpose") and t["x"]]
    drawn = "".join([*(_cells(t, height) for t in cells), *_paths(lines, layout.get("yaxis", {}), height)])
    pad = " ".join(f"{margin[side]}px" for side in "trbl")
    return (
        f'<div class="cw-picture" style="padding:{pad}"><svg viewBox="0 0 {_WIDTH} {height}" height="{height}"'
        f' preserveAspectRatio="none" aria-hidden="true">{drawn}</svg></div>'
    )


def _cells(heat: dict[str, Any], height: int) -> str:
    """A heat map over steps, one path a shade; a cell reaches from its step to the next, like neighbours are one."""
    steps, rows = heat["x"], len(heat["z"][0])
    edges = [*steps, steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1)]
    across = [_WIDTH * (edge - edges[0]) / (edges[-1] - edges[0]) for edge in edges]
    low, high = heat["zmin"], heat["zmax"]
    z = np.array(heat["z"], float)  # (columns, rows), None as NaN
    shades = np.where(np.isnan(z), -1, np.rint((_SHADES - 1) * (np.clip(z, low, high) - low) / (high - low)))
    drawn: dict[int, str] = defaultdict(str)
    for row in range(rows):
        top, tall = height * row / rows, height / rows - heat.get("ygap", 0)
        for shade, run in groupby(range(len(steps)), shades[:, row].astype(int).tolist().__getitem__):
            first, *more = run
            begin, end = across[first], across[(more or [first])[-1] + 1]
            drawn[shade] += f"M{begin:.1f} {top:.1f}h{end - begin:.1f}v{tall:.1f}h{begin - end:.1f}z"
    drawn.pop(-1, None)
    colours = sample_colorscale(heat["colorscale"], [shade / (_SHADES - 1) for shade in drawn])
    return "".join(f'<path d="{d}" fill="{escape(c)}"/>' for d, c in zip(drawn.values(), colours, strict=True))


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

"""How the lines of a run become figures: the whole figure when a page is built, and the points a tick adds.

A panel's `curves` decide which line stands where in a figure; drawing and extending both follow them, so that an
extension always meets its trace. Points are Python lists: numpy columns reach the browser as typed arrays, which
Plotly cannot extend. Every trace carries x, y and text, because one extension must name the same arrays for all
traces it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from collapsewatch.theme import ALARM, GREEN, GREY, base_layout
from collapsewatch.words import escape

from .lines import MARKS, Dot
from .run_feed import Dots
from .views import View

LIVE_POINTS = 4000
"""Points of one trace that a tick may let grow before the oldest leave the panel; a reload thins them anew."""

Figure = dict[str, Any]


class Curve(NamedTuple):
    """One trace of a figure: whose line it draws, what it is called, and Plotly's attributes."""

    run: str
    line: str
    name: str
    style: dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One kind of figure, of lines; `needs` says what a run must hold for it, and `curves` is empty without it.

    Values are drawn within `clip`; the hover text says the true ones. `aloud` panels name their lines in a legend.
    """

    name: str
    title: str
    hint: str
    needs: str
    height: int
    curves: Callable[[str, View], list[Curve]]
    yaxis: dict[str, Any] = field(default_factory=dict)
    clip: tuple[float, float] | None = None
    aloud: bool = False
    marked: bool = True

    def draw(self, key: str, view: View) -> Figure | None:
        """The panel as a Plotly figure; None when the run lacks what it needs."""
        traces = self._traces(key, view)
        if not traces:
            return None
        dots = {curve.run: view.lines(curve.run) for curve in traces}
        layout = base_layout(self.height)
        layout["yaxis"] = {**layout["yaxis"], **self.yaxis}
        layout["xaxis"] = {**layout["xaxis"], **x_range(view)}
        return {
            "data": [
                {"type": "scatter", "name": escape(c.name), **self._arrays(c, dots[c.run].get(c.line, ())), **c.style}
                for c in traces
            ],
            "layout": layout,
        }

    def extend(self, key: str, view: View, fresh: Mapping[str, Dots]) -> list[Any] | None:
        """What `dcc.Graph.extendData` adds for fresh dots, by run; None when none of them is in this panel."""
        touched, arrays = [], []
        for index, curve in enumerate(self._traces(key, view)):
            dots = fresh.get(curve.run, {}).get(curve.line)
            if dots:
                touched.append(index)
                arrays.append(self._arrays(curve, dots))
        if not touched:
            return None
        return [{name: [a[name] for a in arrays] for name in ("x", "y", "text")}, touched, LIVE_POINTS]

    def legend(self, key: str, view: View) -> list[tuple[str, str, bool]]:
        """Name, colour and whether dashed of each line of a panel that needs telling apart."""
        if not self.aloud:
            return []
        lines = [(c.name, c.style["line"]) for c in self.curves(key, view)]
        return [(name, line["color"], line.get("dash", "solid") != "solid") for name, line in lines]

    def _traces(self, key: str, view: View) -> list[Curve]:
        curves = self.curves(key, view)
        return [*curves, *marks(key)] if curves and self.marked else curves

    def _arrays(self, curve: Curve, dots: Sequence[Dot]) -> dict[str, list[Any]]:
        y = [dot.y for dot in dots]
        if self.clip and curve.line not in MARKS:
            low, high = self.clip
            y = [None if value is None else min(max(value, low), high) for value in y]
        return {"x": [dot.x for dot in dots], "y": y, "text": [escape(dot.said) for dot in dots]}


def x_range(view: View) -> dict[str, list[int]]:
    """The axis of a place that asks for a part of the steps; one that has no end follows the run."""
    if view.place.last is None:
        return {}
    first = view.place.first or 0
    return {"range": [first, max(view.place.last, first + 1)]}


def line(run: str, name: str, label: str, **style: Any) -> Curve:
    """A line in a panel."""
    shown = {
        "mode": "lines",
        "line": {"width": 2, **style},
        "hovertemplate": f"{escape(label)}: %{{text}}<extra></extra>",
    }
    return Curve(run, name, label, shown)


def compared(name: str, colour: str) -> Callable[[str, View], list[Curve]]:
    """The run's own line over the other runs' in grey: columns share what they are compared with, and the scale."""

    def curves(key: str, view: View) -> list[Curve]:
        if not view.has(key, name):
            return []
        others = [other for other in view.runs if other != key and view.has(other, name)]
        ghosts = [line(other, name, other, color=GREY, width=1) for other in others]
        return [*ghosts, line(key, name, key, color=colour)]

    return curves


_MARKERS = {
    "alarm": (ALARM, "triangle-down"),
    "cleared": (GREY, "circle"),
    "intervention": (GREEN, "diamond"),
}
_BAND = {
    "mode": "lines",
    "yaxis": "y2",
    "fill": "tozeroy",
    "fillcolor": "rgba(0,158,115,.16)",
    "line": {"width": 0, "color": GREEN},
    "hoverinfo": "skip",
}


def marks(key: str) -> list[Curve]:
    """Interventions as bands; alarms and their ends as points at the top of the panel with a line down to its foot."""
    drawn = [Curve(key, "band", "intervention band", _BAND)]
    for name, (colour, symbol) in _MARKERS.items():
        foot = 0 if name == "intervention" else MARKS[name]  # a series of them has its band
        stem = {"type": "constant", "symmetric": False, "value": 0, "valueminus": foot, "width": 0}
        style = {
            "mode": "markers",
            "yaxis": "y2",
            "cliponaxis": False,
            "marker": {"symbol": symbol, "size": 10 if stem["valueminus"] else 7, "color": colour},
            "error_y": {**stem, "thickness": 2, "color": colour},
            "hovertemplate": "<b>%{text}</b><extra></extra>",
        }
        drawn.append(Curve(key, name, name, style))
    return drawn

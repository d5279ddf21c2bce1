"""A picture of many lines at once: a row each, steps across, the value as colour; it grows by columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

from collapsewatch.theme import ALARM, GREY, base_layout
from collapsewatch.words import escape

from .figures import LIVE_POINTS, Figure, x_range
from .lines import Dot
from .run_feed import Dots
from .views import View

ROW_PX, FOOT_PX = 20, 40
_CHAR_PX, _WIDEST = 6.3, 22


@dataclass(frozen=True)
class Heat:
    """One kind of picture: `rows` gives the lines of a run and their labels, from the top; none without what it needs.

    With `floor`, colours are logarithmic from there to 1 (a hazard may be above it), else linear from 0 to 1.
    """

    name: str
    title: str
    hint: str
    needs: str
    rows: Callable[[str, View], list[tuple[str, str]]]
    colours: Sequence[tuple[float, str]]
    unit: str
    floor: float | None = None

    def draw(self, key: str, view: View) -> Figure | None:
        """The picture as a Plotly figure; None when the run lacks what it needs."""
        rows = self.rows(key, view)
        if not rows:
            return None
        dots = view.lines(key)
        columns = self._columns([name for name, _ in rows], dots)
        labels = [escape(label) for _, label in rows]
        trace = {
            "type": "heatmap",
            "transpose": True,  # z is kept by columns, so that a step can be added to it
            **columns,
            "y": labels,
            "colorscale": [list(stop) for stop in self.colours],
            **self._scale(),
            "ygap": 2,
            "hoverongaps": False,
        }
        height = ROW_PX * len(rows) + FOOT_PX
        layout = base_layout(height)
        layout["margin"] = {
            **layout["margin"],
            "l": 16 + int(_CHAR_PX * max(len(label) for _, label in rows)),
        }
        layout["yaxis"] = {"autorange": "reversed", "showgrid": False, "fixedrange": True, "ticks": "", "dtick": 1}
        layout["hovermode"] = "closest"
        layout["shapes"] = [_upright(dot.x, ALARM) for dot in dots.get("alarm", ())][-20:]
        layout["shapes"] += [_upright(dot.x, GREY) for dot in dots.get("cleared", ())][-20:]
        layout["xaxis"] = {**layout["xaxis"], **x_range(view)}
        return {"data": [trace], "layout": layout}

    def extend(self, key: str, view: View, fresh: Mapping[str, Dots]) -> list[Any] | None:
        """What `dcc.Graph.extendData` adds for fresh dots; None when none of them is in this picture."""
        columns = self._columns([name for name, _ in self.rows(key, view)], fresh.get(key, {}))
        if not columns["x"]:
            return None
        return [{name: [values] for name, values in columns.items()}, [0], LIVE_POINTS]

    def legend(self, key: str, view: View) -> list[tuple[str, str, bool]]:
        """A picture's rows are labelled."""
        return []

    @property
    def height(self) -> int:
        """What is kept free for a picture that is not there yet."""
        return 6 * ROW_PX + FOOT_PX

    def _columns(self, names: Sequence[str], dots: Dots) -> dict[str, list[Any]]:
        found: dict[int, list[float | None]] = {}
        for row, name in enumerate(names):
            for dot in dots.get(name, ()):
                found.setdefault(dot.x, [None] * len(names))[row] = self._value(dot)
        steps = sorted(found)
        return {"x": steps, "z": [found[step] for step in steps]}

    def _value(self, dot: Dot) -> float | None:
        if dot.y is None:
            return None
        return round(log10(max(dot.y, self.floor)), 3) if self.floor else round(dot.y, 4)

    def _scale(self) -> dict[str, Any]:
        bar = {"thickness": 10, "outlinewidth": 0, "len": 1, "ypad": 0, "xpad": 8, "tickfont": {"size": 10}}
        if not self.floor:
            hover = f"%{{y}}<br>step %{{x}}: {self.unit} %{{z:.3f}}<extra></extra>"
            return {"zmin": 0, "zmax": 1, "colorbar": {**bar, "tickvals": [0, 0.5, 1]}, "hovertemplate": hover}
        low = round(log10(self.floor))
        ticks = {"tickvals": list(range(low, 1, 2)), "ticktext": [_power(n) for n in range(low, 1, 2)]}
        hover = f"%{{y}}<br>step %{{x}}: {self.unit} 10^%{{z:.1f}}<extra></extra>"
        return {"zmin": low, "zmax": 0, "colorbar": {**bar, **ticks}, "hovertemplate": hover}


def shortened(token: str) -> str:
    """A token as the label of a row."""
    return token if len(token) <= _WIDEST else token[: _WIDEST - 1] + "…"


def _power(n: int) -> str:
    return f"1e{n}" if n < -2 else f"{10.0**n:g}"


def _upright(step: int, colour: str) -> dict[str, Any]:
    stroke = {"color": colour, "width": 2, "dash": "dot"}
    return {"type": "line", "x0": step, "x1": step, "y0": 0, "y1": 1, "yref": "paper", "line": stroke}

"""The panels of a run: which traces each shows, the whole figure on page load, and the points a tick adds.

`curves` decides which trace stands where in a figure; `figure` and `extension` both follow it, so that an
extension always meets its trace. Points are Python lists: numpy columns reach the browser as typed arrays,
which Plotly cannot extend. Every trace carries x, y and text, because one extension must name the same arrays
for all traces it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from collapsewatch.theme import (
    ALARM,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    STRUCTURE_COLOURS,
    base_layout,
    line_styles,
)
from collapsewatch.words import escape, token_of

from .feed import EXCESS_RANGE, HAZARD_FLOOR, MARKS, Point, RunFeed

LOAD_POINTS = 2000
"""Points of one trace on page load: beyond it drawing gets slow, and a panel has about half as many pixels.
"""

LIVE_POINTS = 4000
"""Points of one trace that a tick may let grow before the oldest leave the panel; a reload thins them anew.
"""


class Curve(NamedTuple):
    """One trace of a figure: whose points it draws, its name, and Plotly's attributes."""

    run: str
    trace: str
    name: str
    style: dict[str, Any]


Runs = Mapping[str, RunFeed]


@dataclass(frozen=True)
class Panel:
    """One kind of figure; `needs` says what a run must hold for it, and `curves` is empty without it."""

    name: str
    title: str
    hint: str
    needs: str
    height: int
    curves: Callable[[str, Runs], list[Curve]]
    yaxis: dict[str, Any] = field(default_factory=dict)


def _line(run: str, trace: str, name: str, **line: Any) -> Curve:
    label = escape(name)
    return Curve(
        run,
        trace,
        name,
        {
            "mode": "lines",
            "line": {"width": 2, **line},
            "hovertemplate": f"{label}: %{{text}}<extra></extra>",
        },
    )


def _compared(trace: str, colour: str) -> Callable[[str, Runs], list[Curve]]:
    """The run's own line over the other runs' in grey: the columns share what they are compared with, and the
    scale.
    """

    def curves(run: str, runs: Runs) -> list[Curve]:
        if trace not in runs[run].traces:
            return []
        others = [key for key, other in runs.items() if key != run and trace in other.traces]
        ghosts = [_line(key, trace, key, color=GREY, width=1) for key in others]
        return [*ghosts, _line(run, trace, run, color=colour)]

    return curves


def _structure(run: str, runs: Runs) -> list[Curve]:
    area = {"mode": "lines", "stackgroup": "turns", "stackgaps": "interpolate"}
    return [
        Curve(
            run,
            state,
            state,
            {
                **area,
                "line": {"width": 0.5, "color": colour},
                "fillcolor": colour,
                "hovertemplate": f"{state}: %{{text}}<extra></extra>",
            },
        )
        for state, colour in STRUCTURE_COLOURS.items()
        if state in runs[run].traces
    ]


def _hazard(run: str, runs: Runs) -> list[Curve]:
    styles = line_styles(token_of(t) for r in runs.values() for t in r.traces if token_of(t))
    tokens = sorted(token_of(trace) for trace in runs[run].traces if token_of(trace))
    total = [_line(run, "hazard", "all", color=GREY, width=1)] if "hazard" in runs[run].traces else []
    return total + [_line(run, f"hazard:{token}", token, **styles[token]) for token in tokens]


def _evidence(run: str, runs: Runs) -> list[Curve]:
    detectors = sorted(t.partition(":")[2] for t in runs[run].traces if t.startswith("evidence:"))
    curves = []
    for index, detector in enumerate(detectors):
        colour = (PURPLE, BLUE, GREEN, ORANGE)[index % 4]
        curves.append(_line(run, f"evidence:{detector}", detector, color=colour))
    return curves


PANELS = (
    Panel(
        "reward",
        "Reward",
        "Other runs in grey.",
        "the metric reward",
        150,
        _compared("reward", BLUE),
    ),
    Panel(
        "parse_rate",
        "Parse rate",
        "Of attempted calls.",
        "the metric parse_rate",
        150,
        _compared("parse_rate", GREEN),
        {"range": [-0.02, 1.04], "tickformat": ".0%"},
    ),
    Panel(
        "structure",
        "Structure",
        "Share of turns in each state; blue is healthy, orange is not.",
        "the metrics structure/tool_call, structure/response, structure/polluted, structure/collapsed",
        160,
        _structure,
        {"range": [0, 1], "tickformat": ".0%"},
    ),
    Panel(
        "hazard",
        "Control-token hazard",
        f"Illegal emissions expected per turn; below {HAZARD_FLOOR:g} drawn at {HAZARD_FLOOR:g}.",
        "observations of the streams hazard:<token>",
        190,
        _hazard,
        {
            "type": "log",
            "range": [-6.2, 1.2],
            "tickvals": [1e-6, 1e-4, 1e-2, 1],
            "ticktext": ["1e-6", "1e-4", "0.01", "1"],
        },
    ),
    Panel(
        "evidence",
        "Evidence",
        "Log evidence less the detector's bound; an alarm at 0.",
        "evidence of a detector",
        160,
        _evidence,
        {
            "range": [EXCESS_RANGE[0] - 0.5, EXCESS_RANGE[1] + 1],
            "zeroline": True,
            "zerolinecolor": ALARM,
            "zerolinewidth": 1.5,
        },
    ),
)

_MARK_STYLES = {
    "alarm": ("alarm", ALARM, "triangle-down"),
    "cleared": ("cleared", GREY, "circle"),
    "intervention": ("intervention", GREEN, "diamond"),
}


def _marks(run: str) -> list[Curve]:
    """Alarms and interventions as points at the top of the panel, each with an error bar down to its foot."""
    return [
        Curve(
            run,
            trace,
            name,
            {
                "mode": "markers",
                "yaxis": "y2",
                "cliponaxis": False,
                "marker": {
                    "symbol": symbol,
                    "size": 10,
                    "color": colour,
                    "line": {"width": 1, "color": "#fff"},
                },
                "error_y": {
                    "type": "constant",
                    "symmetric": False,
                    "value": 0,
                    "valueminus": MARKS[trace],
                    "width": 0,
                    "thickness": 2,
                    "color": colour,
                },
                "hovertemplate": "<b>%{text}</b><extra></extra>",
            },
        )
        for trace, (name, colour, symbol) in _MARK_STYLES.items()
    ]


def legend(panel: Panel, run: str, runs: Runs) -> list[tuple[str, str, bool]]:
    """Name, colour and whether dashed of each line of a panel that needs telling apart."""
    lines = [(c.name, c.style["line"]) for c in panel.curves(run, runs)]
    return [(name, line["color"], line.get("dash", "solid") != "solid") for name, line in lines]


def thin(points: Sequence[Point], limit: int = LOAD_POINTS) -> list[Point]:
    """At most `limit` of the points, in order: of each bucket the lowest and the highest, so that no spike is
    lost.
    """
    if len(points) <= limit:
        return list(points)
    buckets = limit // 2
    kept: list[Point] = []
    for b in range(buckets):
        part = points[b * len(points) // buckets : (b + 1) * len(points) // buckets]
        drawn = [i for i, p in enumerate(part) if p.y is not None] or [0]
        ends = {min(drawn, key=lambda i: part[i].y or 0.0), max(drawn, key=lambda i: part[i].y or 0.0)}
        kept.extend(part[i] for i in sorted(ends))
    return kept


def _arrays(points: Sequence[Point]) -> dict[str, list[Any]]:
    return {
        "x": [p.x for p in points],
        "y": [p.y for p in points],
        "text": [escape(p.text) for p in points],
    }


def figure(panel: Panel, run: str, runs: Runs, until: Mapping[str, int]) -> dict[str, Any] | None:
    """The panel as a Plotly figure over each run's first `until[run]` points; None when the run lacks what it
    needs.
    """
    curves = panel.curves(run, runs)
    if not curves:
        return None
    data = []
    for curve in (*curves, *_marks(run)):
        own = [p for p in runs[curve.run].points[: until[curve.run]] if p.trace == curve.trace]
        points = own if curve.trace in MARKS else thin(own)
        data.append({"type": "scatter", "name": escape(curve.name), **_arrays(points), **curve.style})
    layout = base_layout(panel.height)
    layout["yaxis"] = {**layout["yaxis"], **panel.yaxis}
    return {"data": data, "layout": layout}


def extension(panel: Panel, run: str, runs: Runs, fresh: Mapping[str, Sequence[Point]]) -> list[Any] | None:
    """What `dcc.Graph.extendData` adds for the points in `fresh` (by run); None when none of them is in this
    panel.
    """
    touched, arrays = [], []
    for index, curve in enumerate((*panel.curves(run, runs), *_marks(run))):
        points = [p for p in fresh[curve.run] if p.trace == curve.trace]
        if points:
            touched.append(index)
            arrays.append(_arrays(points))
    if not touched:
        return None
    return [{name: [a[name] for a in arrays] for name in ("x", "y", "text")}, touched, LIVE_POINTS]

"""Panels of counted turns: which states they are in by their place in the rollout, why, and what follows what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from collapsewatch.queries import RunError
from collapsewatch.slices import Turns, turns
from collapsewatch.theme import STRUCTURE_COLOURS, base_layout
from collapsewatch.words import escape, percent

from .figures import Figure
from .views import View

WINDOW = 500
"""The newest steps, counted unless a range is asked for: so that a tick costs the same however long the run."""

REASONS = 12


def counted(key: str, view: View) -> tuple[int, int] | None:
    """The range of steps whose turns are counted; None before the first."""
    newest = view.runs[key].last_step
    if newest is None:
        return None
    last = newest if view.place.last is None else view.place.last
    return view.place.first if view.place.first is not None else max(1, last - WINDOW + 1), last


@dataclass(frozen=True)
class Counts:
    """One kind of panel over the turns of a range of steps; `fill` gives its traces and what its layout adds."""

    name: str
    title: str
    hint: str
    height: int
    fill: Callable[[Turns], tuple[list[dict[str, Any]], dict[str, Any]]]
    needs: str = "turns (table turns)"

    def draw(self, key: str, view: View) -> Figure | None:
        """The panel as a Plotly figure; None for a run without turns, or one that cannot be read."""
        span = counted(key, view)
        try:
            found = _found(view, key, span) if span else None
        except RunError:
            return None
        if found is None or not found.by_turn:
            return None
        data, more = self.fill(found)
        layout: dict[str, Any] = base_layout(self.height)
        del layout["yaxis2"]
        layout["hovermode"] = "closest"
        layout["xaxis"] = {**layout["xaxis"], "tickprefix": "", "fixedrange": True}
        layout["yaxis"] = {**layout["yaxis"], "fixedrange": True}
        for name, value in more.items():
            layout[name] = {**layout[name], **value} if isinstance(layout.get(name), dict) else value
        return {"data": data, "layout": layout}

    def legend(self, key: str, view: View) -> list[tuple[str, str, bool]]:
        """The colours are those of the panel above."""
        return []


def _found(view: View, key: str, span: tuple[int, int]) -> Turns:
    run, place = view.runs[key], view.place
    found: Turns = run.memo(("turns", place.first, place.last), lambda opened: turns(opened, *span), span)
    return found


def _by_turn(found: Turns) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    indices = sorted({index for index, _ in found.by_turn})
    total = {i: sum(found.by_turn.get((i, state), 0) for state in STRUCTURE_COLOURS) for i in indices}
    data = []
    for state, colour in STRUCTURE_COLOURS.items():
        counts = [found.by_turn.get((i, state), 0) for i in indices]
        shares = [n / max(1, total[i]) for n, i in zip(counts, indices, strict=True)]
        data.append(
            {
                "type": "bar",
                "name": state,
                "x": [i + 1 for i in indices],
                "y": shares,
                "text": [f"{percent(s)} of {total[i]}" for s, i in zip(shares, indices, strict=True)],
                "textposition": "none",
                "marker": {"color": colour},
                "hovertemplate": f"turn %{{x}}: {state} %{{text}}<extra></extra>",
            }
        )
    axis = {"dtick": 1, "tickprefix": "turn ", "showtickprefix": "first"}
    return data, {"barmode": "stack", "bargap": 0.15, "xaxis": axis, "yaxis": {"range": [0, 1], "tickformat": ".0%"}}


def _reasons(found: Turns) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    total = sum(found.by_turn.values())
    ranked = sorted(found.reasons.items(), key=lambda item: (item[1], item[0]))[-REASONS:]
    labels = [escape(reason.replace("_", " ")) for (_, reason), _ in ranked]
    widest = max((len(label) for label in labels), default=0)
    bar = {
        "type": "bar",
        "orientation": "h",
        "y": [f"{label} " + "\u200b" * i for i, label in enumerate(labels)],  # one reason may stand in two states
        "x": [n / total for _, n in ranked],
        "text": [percent(n / total) for _, n in ranked],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": [STRUCTURE_COLOURS.get(state, "#8A9099") for (state, _), _ in ranked]},
        "hovertemplate": "%{y}: %{text} of all turns<extra></extra>",
    }
    xaxis = {"tickformat": "~%", "showgrid": True, "rangemode": "tozero", "nticks": 5}
    return [bar], {"margin": {"l": 16 + 6 * widest, "r": 48}, "xaxis": xaxis, "yaxis": {"showgrid": False}}


def _flow(found: Turns) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    states, after = list(STRUCTURE_COLOURS), [*STRUCTURE_COLOURS, "end"]
    shares, texts = [], []
    for state in states:
        row = [found.flow.get((state, to), 0) for to in after]
        total = sum(row)
        shares.append([n / total if total else None for n in row])
        texts.append([f"{percent(n / total)}<br>{n}" if total else "" for n in row])
    heat = {
        "type": "heatmap",
        "x": after,
        "y": [f"from {name}" for name in states],
        "z": shares,
        "text": texts,
        "texttemplate": "%{text}",
        "colorscale": [[0, "rgba(0,114,178,.04)"], [1, "rgba(0,114,178,.75)"]],
        "zmin": 0,
        "zmax": 1,
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "hovertemplate": "%{y} to %{x}: %{z:.1%}<extra></extra>",
    }
    upright = {"autorange": "reversed", "showgrid": False}
    return [heat], {"margin": {"l": 100}, "xaxis": {"side": "bottom"}, "yaxis": upright}


BY_TURN = Counts("by_turn", "By turn", "States of the turns of a rollout, from its first on.", 190, _by_turn)
WHY = Counts("reasons", "Reasons", "Why turns are not sound, as shares of all turns.", 230, _reasons)
FLOW = Counts("flow", "What follows", "The state of the next turn (columns), as shares of a row.", 230, _flow)

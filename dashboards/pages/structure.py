"""Structure: which states turns are in over the steps, by their place in the rollout, why, and what follows what."""

from __future__ import annotations

from dash import dcc, html
from dash.development.base_component import Component

from ..counts import BY_TURN, FLOW, WHY, counted
from ..panels import HELD_OUT, PARSE_RATE, STRUCTURE
from ..parts import HEADING, columns, heading, live, panel
from ..views import View
from . import Page


def span(view: View, key: str) -> list[Component]:
    """Which steps are counted, and the way to those before and since an onset."""
    steps = counted(key, view)
    said = f"Counted below: steps {steps[0]} to {steps[1]}." if steps else "No step yet."
    onsets = [row["onset_step"] for row in view.runs[key].chronicle.alarms if row["tier"] == "alarm"]
    ways = [("all", view.place.at(first=None, last=None))]
    if onsets:
        ways += [
            (f"before the onset at {onsets[-1]}", view.place.at(first=None, last=max(0, onsets[-1] - 1))),
            ("since", view.place.at(first=onsets[-1], last=None)),
        ]
    links = [dcc.Link(words, href=place.href, className="cw-chip") for words, place in ways]
    return [html.P([said, *links], className="cw-span")]


PARTS = {**HEADING, "span": span}


def body(view: View) -> Component:
    """A column per run."""

    def column(key: str) -> list[Component]:
        over = [panel(drawn, key, view) for drawn in (STRUCTURE, PARSE_RATE, HELD_OUT)]
        below = [panel(drawn, key, view) for drawn in (BY_TURN, WHY, FLOW)]
        return [heading(view, key), *over, live("span", span, key, view, className="cw-card"), *below]

    return columns(view, column)


PAGE = Page(
    title="Structure",
    question="Which turns break, at which place in the dialogue, and why?",
    needs=("steps", "metrics", "evidence", "turns", "alarms", "interventions", "events"),
    body=body,
    panels=(STRUCTURE, PARSE_RATE, HELD_OUT, BY_TURN, WHY, FLOW),
    parts=PARTS,
    most=2,
)

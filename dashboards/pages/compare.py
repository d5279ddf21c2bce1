"""Compare: runs, seeds and arms over each other, by step or by how far each is from its onset."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from collapsewatch.theme import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION
from collapsewatch.words import number, plain

from ..figures import Curve, Panel, line
from ..lines import EXCESS_RANGE, HAZARD_FLOOR, Dot
from ..panels import EVIDENCE_AXIS, HAZARD_AXIS, SHARE_AXIS
from ..parts import live, nothing, panel, state_words, table
from ..views import View
from ..words import aria
from . import Page

ALL = "all"
"""Stands for the runs together, where other pages name one."""

_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
_SEED = re.compile(r"(?:^|[-_./])(?:seed|s)[-_=]?\d+(?=$|[-_./])", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\d.])(?<!\de)(?<!\de-)[-_.]?\d+$")  # of a run, not of a rate such as 0.003 or 1e-3


def arm_of(key: str) -> str:
    """The name of a run without its seed: where none is named, without the number at its end.

    >>> arm_of("demo-seed0/rl-alone"), arm_of("grpo-lr3_seed=2"), arm_of("run7"), arm_of("grpo-lr1e-3")
    ('demo/rl-alone', 'grpo-lr3', 'run', 'grpo-lr1e-3')
    """
    named = _SEED.sub("", key)
    return (named if named != key else _NUMBER.sub("", key)) or key


def onset_of(view: View, key: str) -> int | None:
    """The onset of a run's first alarm; None without one."""
    return next((row["onset_step"] for row in view.runs[key].chronicle.alarms if row["tier"] == "alarm"), None)


def _aligned(view: View) -> dict[str, int]:
    """What is taken from the steps of each run that can be aligned."""
    if view.place.more.get("align") != "onset":
        return dict.fromkeys(view.runs, 0)
    onsets = {key: onset_of(view, key) for key in view.runs}
    return {key: step for key, step in onsets.items() if step is not None}


def _colours(view: View) -> dict[str, tuple[str, str]]:
    """A colour per run, or per arm with a dash per seed."""
    if view.place.more.get("by") != "arm":
        return {
            key: (_COLOURS[i % len(_COLOURS)], ("solid", "dash", "dot")[i // 6 % 3]) for i, key in enumerate(view.runs)
        }
    arms = sorted({arm_of(key) for key in view.runs})
    return {key: (_COLOURS[arms.index(arm_of(key)) % len(_COLOURS)], "solid") for key in view.runs}


@dataclass(frozen=True)
class Overlay(Panel):
    """A line of every run in one panel; steps are counted from each run's onset if the place says so."""

    def draw(self, key: str, view: View) -> Any:
        """The panel as a Plotly figure; None when no run has the line."""
        shift = _aligned(view)
        figure = super().draw(key, view)
        if figure is not None and view.place.more.get("align") == "onset":
            for trace, curve in zip(figure["data"], self.curves(key, view), strict=True):
                trace["x"] = [x - shift[curve.run] for x in trace["x"]]
            axis = {"tickprefix": "onset ", "showtickprefix": "none", "zeroline": True, "zerolinecolor": "#E5197F"}
            axis |= {"hoverformat": "+d", "unifiedhovertitle": {"text": "%{x} steps from the onset"}, "range": None}
            figure["layout"]["xaxis"] |= axis
        return figure

    def extend(self, key: str, view: View, fresh: Any) -> Any:
        """What a tick adds."""
        shift = _aligned(view)
        moved = {
            run: {name: [Dot(d.x - shift.get(run, 0), d.y, d.said) for d in dots] for name, dots in lines.items()}
            for run, lines in fresh.items()
        }
        return super().extend(key, view, moved)


def _of_all(name: str) -> Callable[[str, View], list[Curve]]:
    def curves(_: str, view: View) -> list[Curve]:
        colours = _colours(view)
        return [
            line(key, name, key, color=colours[key][0], dash=colours[key][1], width=1.5)
            for key in _aligned(view)
            if view.has(key, name)
        ]

    return curves


def _overlay(name: str, title: str, hint: str = "", axis: dict[str, Any] | None = None, clip: Any = None) -> Overlay:
    panel_name = "compare-" + re.sub(r"\W", "-", name)
    return Overlay(panel_name, title, hint, f"the line {name}", 190, _of_all(name), axis or {}, clip, marked=False)


PANELS = (
    _overlay("reward", "Reward"),
    _overlay("parse_rate", "Parse rate", "", SHARE_AXIS),
    _overlay("hazard", "Hazard", "All control tokens together.", HAZARD_AXIS, (HAZARD_FLOOR, float("inf"))),
    _overlay("evidence:e_detector", "Evidence", "Less its bound.", EVIDENCE_AXIS, EXCESS_RANGE),
    _overlay("structure/polluted", "Polluted turns", "", SHARE_AXIS),
    _overlay("structure/collapsed", "Collapsed turns", "", SHARE_AXIS),
    _overlay("entropy", "Entropy"),
    _overlay("completions/mean_length", "Completion length", "Tokens."),
    _overlay("grad_norm", "Gradient norm", "", {"type": "log"}),
)


def runs(view: View, key: str) -> list[Component]:
    """A row per run: how it stands, its onset and alarm, its best and last reward."""
    colours = _colours(view)
    rows = []
    for name, run in view.runs.items():
        dots = [dot for dot in view.lines(name).get("reward", ()) if dot.y is not None]
        best = max(dots, key=lambda dot: dot.y or 0.0, default=None)
        alarm = next((row["step"] for row in run.chronicle.alarms if row["tier"] == "alarm"), "–")
        onset = onset_of(view, name)
        words = state_words(run)[0]
        rows.append(
            [
                html.Span([html.I(className="cw-dot", style={"background": colours[name][0]}), plain(name, 60)]),
                run.status,
                "–" if run.last_step is None else run.last_step,
                words,
                "–" if onset is None else onset,
                alarm,
                f"{best.said} at step {best.x}" if best else "–",
                number(dots[-1].y) if dots and dots[-1].y is not None else "–",
            ]
        )
    heads = ("run", "status", "step", "state", "onset", "alarm", "best reward", "last reward")
    return [table(heads, rows, "Runs compared")]


def _switch(view: View, name: str, ways: Sequence[tuple[str, str]], label: str) -> Component:
    now = view.place.more.get(name, "")
    links = [
        dcc.Link(
            words, href=view.place.at(**{name: way}).href, className="cw-chip cw-here" if way == now else "cw-chip"
        )
        for way, words in ways
    ]
    return html.Nav([html.Span(label, className="cw-hint"), *links], className="cw-chips", **aria(label))


def body(view: View) -> Component:
    """The table of runs, then small multiples."""
    if not view.runs:
        return nothing(view)
    left = [key for key in view.runs if key not in _aligned(view)]
    note = [html.P(f"Without an onset, not drawn: {plain(', '.join(left))}.", className="cw-action")] if left else []
    switches = [
        _switch(view, "align", (("", "step"), ("onset", "steps from the onset")), "Aligned on"),
        _switch(view, "by", (("", "run"), ("arm", "arm (name without its seed)")), "Coloured by"),
    ]
    return html.Div(
        [
            html.Div(switches, className="cw-switches"),
            html.Div([live("runs", runs, ALL, view), *note], className="cw-panel cw-wide"),
            html.Div([panel(drawn, ALL, view) for drawn in PANELS], className="cw-multiples"),
        ]
    )


PAGE = Page(
    title="Compare",
    question="Which run, seed or arm breaks, when, and in what order?",
    needs=("steps", "metrics", "observations", "evidence", "alarms", "events"),
    body=body,
    panels=PANELS,
    parts={"runs": runs},
    most=6,
)

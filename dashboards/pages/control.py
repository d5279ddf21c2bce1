"""Control tokens: where in the chat format each is probable, which one spikes, and what pushes it."""

from __future__ import annotations

from statistics import median
from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from collapsewatch.theme import line_styles
from collapsewatch.words import number, plain, stream_words

from ..figures import Curve, Panel, line
from ..heat import Heat, shortened
from ..lines import HAZARD_FLOOR
from ..parts import HEADING, columns, heading, live, nothing, panel, table
from ..views import View
from ..words import aria
from . import Page

SPIKES = 8
BASE_SHARE = 0.2
"""A cell's usual level is the median of this first part of what is shown."""

_HOT = ((0, "#0d0887"), (0.35, "#7e03a8"), (0.6, "#cc4778"), (0.8, "#f89540"), (1, "#f0f921"))
_COLD = ((0, "#00204d"), (0.5, "#7c7b78"), (1, "#ffea46"))


def _cells(kind: str, key: str, view: View) -> list[tuple[str, str]]:
    only = view.place.more.get("token", "")
    names = [name for name in view.names(key) if name.startswith(f"{kind}:")]
    cells = [(name, name.partition(":")[2].rpartition("@")) for name in names]
    return [(name, f"{shortened(token)} · {slot}") for name, (token, _, slot) in cells if only in ("", token)]


ILLEGAL = Heat(
    "illegal",
    "Where they are forbidden",
    "Hazard: illegal emissions expected per turn, by token and slot; the highest of each range of steps.",
    "control-token probabilities of the probe (table control)",
    lambda key, view: _cells("illegal", key, view),
    _HOT,
    "hazard",
    HAZARD_FLOOR,
)
LEGAL = Heat(
    "legal",
    "Where they are allowed",
    "Mean probability, by token and slot; the lowest of each range of steps.",
    "control-token probabilities of the probe (table control)",
    lambda key, view: _cells("legal", key, view),
    _COLD,
    "probability",
)


def _pressure(who: str) -> Panel:
    def curves(key: str, view: View) -> list[Curve]:
        prefix, only = f"logit_pressure/{who}/", view.place.more.get("token", "")
        tokens = [name.removeprefix(prefix) for name in view.names(key) if name.startswith(prefix)]
        styles = line_styles(tokens)
        return [line(key, prefix + token, token, **styles[token]) for token in tokens if only in ("", token)]

    said = {
        "self": ("Pressure from itself", "Push of the policy gradient from where the token was drawn."),
        "other": ("Pressure from others", "The same from where another token was drawn."),
    }[who]
    return Panel(
        f"pressure-{who}", *said, f"the metrics logit_pressure/{who}/<token>", 170, curves, aloud=who == "other"
    )


PRESSURES = (_pressure("self"), _pressure("other"))


def spikes(view: View, key: str) -> list[Component]:
    """The forbidden cells that have risen over their usual level, in a table; what is low throughout is not told."""
    rows: list[tuple[float, list[Any]]] = []
    for name, _ in _cells("illegal", key, view):
        dots = [dot for dot in view.lines(key).get(name, ()) if dot.y is not None]
        if len(dots) < 2:
            continue
        values = [dot.y or 0.0 for dot in dots]
        usual = max(median(values[: max(1, int(len(values) * BASE_SHARE))]), HAZARD_FLOOR)
        peak = max(dots, key=lambda dot: dot.y or 0.0)
        times = (peak.y or 0.0) / usual
        if (peak.y or 0.0) >= 1e-3 and times >= 2:
            said = stream_words(f"hazard:{name.partition(':')[2]}")
            now = values[-1]
            rows.append((peak.y or 0.0, [said, now, usual, peak.y, peak.x, f"{number(times)} ×"]))
    title = html.H3(
        [
            "Spikes",
            html.Span(
                "Forbidden cells above their usual level (of the first fifth), the highest first.",
                className="cw-hint",
            ),
        ]
    )
    if not rows:
        calm = "No forbidden cell has doubled and passed 0.1 % of the turns." if view.has_any(key, "illegal:") else ""
        return [title, html.P(calm or "Nothing to show: needs the table control.", className="cw-empty")]
    ranked = [row for _, row in sorted(rows, key=lambda row: -row[0])[:SPIKES]]
    heads = ("token and slot", "now", "usual", "highest", "at step", "rise")
    return [title, table(heads, ranked, f"Spikes of {plain(key, 80)}")]


PARTS = {**HEADING, "spikes": spikes}


def tokens(view: View) -> Component:
    """A link for each control token, to see it alone."""
    prefixes = ("illegal:", "legal:")
    names = {
        name.partition(":")[2].rpartition("@")[0]
        for key in view.runs
        for name in view.names(key)
        if name.startswith(prefixes)
    }
    only = view.place.more.get("token", "")
    links = [
        dcc.Link(
            plain(token, 40) or "all tokens",
            href=view.place.at(token=token).href,
            className="cw-chip cw-here" if token == only else "cw-chip",
        )
        for token in ("", *sorted(names))
    ]
    return html.Nav(links, className="cw-chips", **aria("Control tokens"))


def body(view: View) -> Component:
    """The tokens to choose from, then a column per run."""
    if not view.runs:
        return nothing(view)

    def column(key: str) -> list[Component]:
        read = html.Section(live("spikes", spikes, key, view), className="cw-panel")
        pair = html.Div([panel(drawn, key, view) for drawn in PRESSURES], className="cw-pair")
        return [heading(view, key), read, panel(ILLEGAL, key, view), panel(LEGAL, key, view), pair]

    return html.Div([tokens(view), columns(view, column)])


PAGE = Page(
    title="Control tokens",
    question="Which control token, in which slot, since when, and who pushes it?",
    needs=("steps", "metrics", "evidence", "control", "alarms", "interventions", "events"),
    body=body,
    panels=(ILLEGAL, LEGAL, *PRESSURES),
    parts=PARTS,
    most=2,
)

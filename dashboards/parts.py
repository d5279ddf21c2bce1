"""What pages are put together from: panels with their export, live words, and what to say where nothing is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dash import dcc, html
from dash.development.base_component import Component

from collapsewatch.theme import GRAPH_CONFIG
from collapsewatch.words import number, plain

from .chronicle import LIVE
from .figures import Figure
from .run_feed import RunFeed
from .views import View
from .words import aria, duration

QUIET_S = 10.0
"""A running run is called silent after this many seconds without a step, or five of its own steps if that is
longer.
"""

Words = Callable[[View, str], list[Component]]
"""Live words of a run: built again at every tick, sent when they have changed."""


class Drawn(Protocol):
    """What a panel must offer, of lines, of cells or of counts."""

    name: str
    title: str
    hint: str
    needs: str

    @property
    def height(self) -> int:
        """In pixels, while nothing is drawn."""

    def draw(self, key: str, view: View) -> Figure | None:
        """The whole figure, None without what it needs."""

    def legend(self, key: str, view: View) -> list[tuple[str, str, bool]]:
        """Name, colour and dash of lines that need telling apart."""


def panel(drawn: Drawn, key: str, view: View) -> Component:
    """A figure with its title, legend and export; in its place what is missing, if something is."""
    figure = drawn.draw(key, view)
    named = aria(f"{drawn.title} of {plain(key, 80)}")
    title = html.H3([drawn.title, html.Span(drawn.hint, className="cw-hint")])
    if figure is None:
        why = "Reading the run …" if view.waits(key) else f"Nothing to show: needs {drawn.needs}."
        empty = html.P(why, className="cw-empty", style={"minHeight": f"{drawn.height - 36}px"})
        return html.Section([title, empty], className="cw-panel", **named)
    height = f"{figure['layout']['height']}px"
    graph = dcc.Graph(
        id={"type": "graph", "panel": drawn.name, "run": key, "at": view.at},
        figure=figure,
        config=GRAPH_CONFIG,
        style={"height": height},
    )
    place = html.Div(graph, style={"minHeight": height})  # kept free while the browser still loads Plotly
    swatches = [_swatch(name, colour, dashed) for name, colour, dashed in drawn.legend(key, view)]
    legend = [html.Ul(swatches, className="cw-legend")] if swatches else []
    head = html.Div([title, _export(f"{drawn.name}-{key}")], className="cw-head")
    return html.Section([head, place, *legend], className="cw-panel", **named)


def _swatch(name: str, colour: str, dashed: bool) -> Component:
    style = {"borderTop": f"3px {'dashed' if dashed else 'solid'} {colour}"}
    return html.Li([html.I(className="cw-swatch", style=style), plain(name, 40)])


def _export(name: str) -> Component:
    kinds = [html.Button(kind, className="cw-export", **{"data-kind": kind.lower()}) for kind in ("PNG", "SVG", "CSV")]
    saved = {"data-name": "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:80]}
    return html.Details(
        [html.Summary("Save", **aria(f"Save {plain(name, 80)}")), html.Div(kinds)], className="cw-save", **saved
    )


def live(name: str, words: Words, key: str, view: View, **attributes: Any) -> Component:
    """A place for live words of a run."""
    part = {"type": "part", "part": name, "run": key, "at": view.at}
    return html.Div(words(view, key), id=part, **attributes)


def columns(view: View, column: Callable[[str], Sequence[Component]]) -> Component:
    """A column per run, whose parts stand level; or what to do when there is no run."""
    if not view.runs:
        return nothing(view)
    shown = []
    for key in view.runs:
        rows = column(key)
        style = {"gridRow": f"span {len(rows)}"}
        shown.append(html.Article(rows, className="cw-run", style=style, **aria(f"Run {plain(key, 80)}")))
    return html.Div(shown, className="cw-runs")


def nothing(view: View) -> Component:
    """What to do when there is no run."""
    return html.Div(
        [
            html.H2("No runs yet"),
            html.P(f"There is no run in {plain(view.feed.logdir)}; it will show here as soon as there is."),
            html.P(["To see one now: ", html.Code("collapsewatch demo")]),
        ],
        className="cw-empty cw-nothing",
    )


def title(view: View, key: str) -> list[Component]:
    """A run's name, its status, and how old its newest step is."""
    run = view.runs[key]
    age, silent = age_words(run, time.time())
    return [
        html.H2(plain(key, 80)),
        html.Span(run.status, className=f"cw-status cw-status-{run.status}"),
        html.Span(age, className="cw-age cw-silent" if silent else "cw-age"),
    ]


def state(view: View, key: str) -> list[Component]:
    """A run's alarm state in a sentence, in its colour."""
    words, kind = state_words(view.runs[key])
    return [html.P(words, className=f"cw-state cw-state-{kind}")]


def heading(view: View, key: str) -> Component:
    """The top of a run's column on every page but the first."""
    return html.Div(
        [live("title", title, key, view, className="cw-title"), live("state", state, key, view)], className="cw-card"
    )


HEADING: dict[str, Words] = {"title": title, "state": state}
"""The live words of `heading`."""


def state_words(run: RunFeed) -> tuple[str, str]:
    """The run's alarm state in one sentence, and its kind: alarm, ok or unknown."""
    told = run.chronicle
    if run.error:
        return f"cannot be read: {run.error}", "unknown"
    if told.last_step is None:
        return "no step yet", "unknown"
    if told.alarm is not None:
        return told.alarm.words, "alarm"
    if not run.judged:
        return "not judged: no detector has reported", "unknown"
    past = f", {told.alarm_count} alarm{'s' if told.alarm_count > 1 else ''} behind it" if told.alarm_count else ""
    return f"OK at step {told.last_step}{past}", "ok"


def age_words(run: RunFeed, now: float) -> tuple[str, bool]:
    """How long ago the last step was, and whether a running run has been silent for too long; `now` in Unix
    seconds.
    """
    told = run.chronicle
    if told.last_time is None:
        return "waiting for the first step", False
    age = max(0.0, now - told.last_time)
    if run.status != LIVE:
        return f"last step {duration(age)} ago", False
    if age > max(QUIET_S, 5 * (told.step_seconds or 0.0)):
        return f"training has stopped sending: nothing for {duration(age)}", True
    return "live" if age < QUIET_S else f"last step {duration(age)} ago", False


def progress(run: RunFeed) -> tuple[str, str]:
    """The step a run is at, and what is left of it or how fast it is."""
    told = run.chronicle
    if told.last_step is None:
        return "–", ""
    pace = f"{told.step_seconds:.2g} s per step" if told.step_seconds else ""
    if told.max_steps and run.status == LIVE and told.step_seconds:
        pace = f"about {duration((told.max_steps - told.last_step) * told.step_seconds)} left"
    planned = f" / {told.max_steps}" if told.max_steps else ""
    return f"{told.last_step}{planned}", pace


def fact(name: str, value: str, note: str = "") -> Component:
    """One number of a headline."""
    return html.Div([html.Dt(name), html.Dd([html.Strong(value), html.Small(note)])])


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]], label: str) -> Component:
    """A plain table that scrolls on a narrow screen; numbers stand right."""
    cells = [
        html.Tr([html.Td(number(c) if isinstance(c, float) else c, className=_aside(c)) for c in row]) for row in rows
    ]
    head = html.Thead(html.Tr([html.Th(head, scope="col") for head in heads]))
    return html.Div(html.Table([head, html.Tbody(cells)], **aria(label)), className="cw-table", tabIndex="0")


def _aside(cell: Any) -> str:
    return "cw-number" if isinstance(cell, int | float) else ""

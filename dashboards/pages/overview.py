"""Overview: how every run stands, in words and in five panels side by side, once a second.

A tick sends what is new: the words, and the points since the browser's place in each run. The body is built
again only when its shape changes (a run appears, a trace is seen for the first time, other runs are picked).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import ALL, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component

from collapsewatch.theme import GRAPH_CONFIG
from collapsewatch.words import number, plain

from ..feed import LIVE, Feed, RunFeed
from ..figures import PANELS, Panel, extension, figure, legend
from ..words import aria, duration
from . import Page

SHOWN = 4
"""Runs shown when none is picked: as many columns as fit a wide screen."""

QUIET_S = 10.0
"""A running run is called silent after this many seconds without a step, or five of its own steps if that is
longer.
"""

LOG_LINES = 60

Cursor = dict[str, Any]


def shown_runs(feed: Feed, picked: Sequence[str] | None) -> dict[str, RunFeed]:
    """The picked runs that exist, else the `SHOWN` latest, live ones before others; in the order of their names.

    Of live runs the latest begun: which one had a step last changes with every tick, and the page with it.
    """
    runs = feed.runs
    keys = [key for key in picked or () if key in runs]
    if not keys:
        live = {key for key, run in runs.items() if run.status == LIVE}
        age = {key: (run.first_time if key in live else run.last_time) or 0.0 for key, run in runs.items()}
        keys = sorted(runs, key=lambda key: (key in live, age[key]), reverse=True)[:SHOWN]
    return {key: runs[key] for key in sorted(keys)}


def shape(feed: Feed, shown: dict[str, RunFeed]) -> str:
    """What the body is built for; a tick that finds another shape builds it again."""
    seen = [(key, sorted(run.traces), bool(run.error)) for key, run in shown.items()]
    return hashlib.sha256(repr((sorted(feed.runs), seen)).encode()).hexdigest()[:16]


def cursor_of(feed: Feed, shown: dict[str, RunFeed]) -> Cursor:
    """A browser's place: the shape it shows, and per run how many points and log lines it has."""
    return {
        "shape": shape(feed, shown),
        "points": {key: len(run.points) for key, run in shown.items()},
        "lines": {key: len(run.log) for key, run in shown.items()},
    }


def state_words(run: RunFeed) -> tuple[str, str]:
    """The run's alarm state in one sentence, and its kind: alarm, ok or unknown."""
    if run.error:
        return f"cannot be read: {run.error}", "unknown"
    if run.last_step is None:
        return "no step yet", "unknown"
    if run.alarm is not None:
        return run.alarm.words, "alarm"
    if not any(trace.startswith("evidence:") for trace in run.traces):
        return "not judged: no detector has reported", "unknown"
    past = f", {run.alarm_count} alarm{'s' if run.alarm_count > 1 else ''} behind it" if run.alarm_count else ""
    return f"OK at step {run.last_step}{past}", "ok"


def age_words(run: RunFeed, now: float) -> tuple[str, bool]:
    """How long ago the last step was, and whether a running run has been silent for too long; `now` in Unix
    seconds.
    """
    if run.last_time is None:
        return "waiting for the first step", False
    age = max(0.0, now - run.last_time)
    if run.status != LIVE:
        return f"last step {duration(age)} ago", False
    if age > max(QUIET_S, 5 * (run.step_seconds or 0.0)):
        return f"no new data for {duration(age)}", True
    return "live" if age < QUIET_S else f"last step {duration(age)} ago", False


def _facts(run: RunFeed) -> list[tuple[str, str, str]]:
    reward, parsed = run.latest.get("reward"), run.latest.get("parse_rate")
    best = f"best {number(run.best[0])} at step {run.best[1]}" if run.best else ""
    pace = f"{run.step_seconds:.2g} s per step" if run.step_seconds else ""
    if run.max_steps and run.status == LIVE and run.step_seconds and run.last_step is not None:
        pace = f"about {duration((run.max_steps - run.last_step) * run.step_seconds)} left"
    planned = f" / {run.max_steps}" if run.max_steps else ""
    broken = sum(run.latest.get(state, 0.0) for state in ("polluted", "collapsed"))
    return [
        ("Step", "–" if run.last_step is None else f"{run.last_step}{planned}", pace),
        ("Reward", "–" if reward is None else number(reward), best),
        ("Parse rate", "–" if parsed is None else f"{parsed:.0%}", "of attempted calls"),
        ("Broken turns", "–" if "polluted" not in run.latest else f"{broken:.0%}", "polluted or collapsed"),
    ]


def card(run: RunFeed, now: float) -> list[Component]:
    """The headline of a run: status, alarm state, last action, numbers, progress, age of the data."""
    words, kind = state_words(run)
    age, silent = age_words(run, now)
    facts = [
        html.Div([html.Dt(name), html.Dd([html.Strong(value), html.Small(note)])]) for name, value, note in _facts(run)
    ]
    progress = []
    if run.max_steps and run.last_step is not None:
        label = f"step {run.last_step} of {run.max_steps}"
        progress = [html.Progress(value=str(run.last_step), max=str(run.max_steps), **aria(label))]
    return [
        html.Div(
            [
                html.H2(plain(run.key, 80)),
                html.Span(run.status, className=f"cw-status cw-status-{run.status}"),
                html.Span(age, className="cw-age cw-silent" if silent else "cw-age"),
            ],
            className="cw-title",
        ),
        html.P(words, className=f"cw-state cw-state-{kind}", role="status"),
        html.P(run.action.words if run.action else "no intervention", className="cw-action"),
        html.Dl(facts, className="cw-facts"),
        *progress,
    ]


def log_lines(run: RunFeed) -> list[Component]:
    """The last `LOG_LINES` things that happened to a run, newest first."""
    # Tables are read one after the other, so that the order of arrival is not quite the order of events.
    newest = sorted(run.log, key=lambda entry: entry.step)[: -LOG_LINES - 1 : -1]
    return [
        html.Li([html.Span(f"step {entry.step}", className="cw-when"), entry.words], className=f"cw-{entry.kind}")
        for entry in newest
    ] or [html.Li("Nothing has happened yet.", className="cw-note")]


def _panel(panel: Panel, key: str, shown: dict[str, RunFeed], until: dict[str, int]) -> Component:
    drawn = figure(panel, key, shown, until)
    if drawn is None:
        content: list[Component] = [html.P(f"Nothing to show yet: needs {panel.needs}.", className="cw-empty")]
    else:
        entries = legend(panel, key, shown) if panel.name in ("structure", "hazard", "evidence") else []
        swatches = [
            html.Li(
                [
                    html.I(className="cw-swatch", style={"borderTop": f"3px {'dashed' if d else 'solid'} {c}"}),
                    n,
                ]
            )
            for n, c, d in ((plain(name, 40), colour, dashed) for name, colour, dashed in entries)
        ]
        graph = dcc.Graph(
            id={"type": "overview-graph", "panel": panel.name, "run": key},
            figure=drawn,
            config=GRAPH_CONFIG,
            style={"height": f"{panel.height}px"},
        )
        content = [graph, *([html.Ul(swatches, className="cw-legend")] if swatches else [])]
    title = html.H3([panel.title, html.Span(panel.hint, className="cw-hint")])
    return html.Section([title, *content], className="cw-panel", **aria(f"{panel.title} of {plain(key, 80)}"))


def _column(key: str, shown: dict[str, RunFeed], until: dict[str, int], now: float) -> Component:
    head = html.Div(card(shown[key], now), id={"type": "overview-card", "run": key}, className="cw-card")
    panels = [_panel(panel, key, shown, until) for panel in PANELS]
    log = html.Ol(log_lines(shown[key]), id={"type": "overview-log", "run": key}, className="cw-log", tabIndex="0")
    return html.Article(
        [
            head,
            html.Div(panels[:2], className="cw-pair"),
            *panels[2:],
            html.Section([html.H3("Log"), log], className="cw-panel"),
        ],
        className="cw-run",
    )


def columns(feed: Feed, shown: dict[str, RunFeed], cursor: Cursor) -> list[Component]:
    """One column per run over the points the cursor counts, or what to do when there is no run."""
    if not shown:
        return [
            html.Div(
                [
                    html.H2("No runs yet"),
                    html.P(f"There is no run in {plain(feed.logdir)}; it will show here as soon as there is."),
                    html.P(["To see one now: ", html.Code("collapsewatch demo")]),
                ],
                className="cw-empty cw-nothing",
            )
        ]
    now = time.time()
    return [_column(key, shown, cursor["points"], now) for key in shown]


def body(feed: Feed) -> Component:
    """The page as the runs stand now."""
    shown = shown_runs(feed, None)
    cursor = cursor_of(feed, shown)
    marks = (("▼", "alarm"), ("●", "cleared"), ("◆", "intervention"))
    return html.Div(
        [
            dcc.Interval(id="overview-tick", interval=1000),
            dcc.Store(id="overview-cursor", data=cursor),
            html.Div(
                [
                    dmc.MultiSelect(
                        id="overview-pick",
                        data=sorted(feed.runs),
                        value=[],
                        placeholder=f"Runs: the latest {SHOWN}",
                        searchable=True,
                        clearable=True,
                        size="xs",
                        className="cw-pick",
                        **aria("Runs to show"),
                    ),
                    html.Ul(
                        [html.Li([html.B(sign, className=f"cw-mark-{name}"), name]) for sign, name in marks],
                        className="cw-legend",
                    ),
                ],
                className="cw-toolbar",
            ),
            html.Div(columns(feed, shown, cursor), id="overview-body", className="cw-runs"),
        ]
    )


def tick(feed: Feed, picked: Sequence[str] | None, cursor: Cursor, graphs: Sequence[Any], logs: Sequence[Any]) -> Any:
    """What one tick changes, for the cards, logs and graphs (their ids) that stand in the browser."""
    shown = shown_runs(feed, picked)
    now = cursor_of(feed, shown)
    cards = len(logs)
    if now["shape"] != cursor["shape"]:
        kept = [no_update] * cards, [no_update] * cards, [no_update] * len(graphs)
        return columns(feed, shown, now), now, sorted(feed.runs), *kept
    fresh = {key: run.points[cursor["points"][key] : now["points"][key]] for key, run in shown.items()}
    panels = {panel.name: panel for panel in PANELS}
    clock = time.time()
    return (
        no_update,
        now if now != cursor else no_update,
        no_update,
        [card(shown[i["run"]], clock) for i in logs],
        [log_lines(shown[i["run"]]) if now["lines"] != cursor["lines"] else no_update for i in logs],
        [extension(panels[i["panel"]], i["run"], shown, fresh) or no_update for i in graphs],
    )


def register(app: Dash, feed: Feed) -> None:
    """Adds the tick to an app."""

    @app.callback(
        Output("overview-body", "children"),
        Output("overview-cursor", "data"),
        Output("overview-pick", "data"),
        Output({"type": "overview-card", "run": ALL}, "children"),
        Output({"type": "overview-log", "run": ALL}, "children"),
        Output({"type": "overview-graph", "panel": ALL, "run": ALL}, "extendData"),
        Input("overview-tick", "n_intervals"),
        Input("overview-pick", "value"),
        State("overview-cursor", "data"),
        prevent_initial_call=True,
    )
    def on_tick(_: int, picked: list[str] | None, cursor: Cursor) -> Any:
        feed.refresh()
        outputs = ctx.outputs_list
        return tick(feed, picked, cursor, *([o["id"] for o in outputs[index]] for index in (5, 4)))


PAGE = Page(
    title="Overview",
    needs=("steps", "metrics", "observations", "evidence", "alarms", "interventions", "events"),
    body=body,
    register=register,
)

"""Overview: how every run stands, in words and in five panels side by side."""

from __future__ import annotations

from dash import dcc, html
from dash.development.base_component import Component

from collapsewatch.words import number, plain

from ..lines import OVERVIEW
from ..panels import EVIDENCE, HAZARD, PARSE_RATE, REWARD, STRUCTURE
from ..parts import HEADING, columns, fact, live, panel, progress
from ..places import Place
from ..views import View
from ..words import aria
from . import Page

LOG_LINES = 60


def state(view: View, key: str) -> list[Component]:
    """The alarm state in a sentence, with the way to what is behind it; the last intervention."""
    told = view.runs[key].chronicle
    (said,) = HEADING["state"](view, key)
    if told.alarm is not None:
        said.children = [said.children, " ", dcc.Link("Why?", href=Place("alarms", (key,)).href, className="cw-why")]
    found = [entry.words for entry in told.log if entry.words.startswith("finding: ")]
    also = [html.P(f"Also {found[-1].removeprefix('finding: ')}.", className="cw-action")] if found else []
    return [said, html.P(told.action.words if told.action else "no intervention", className="cw-action"), *also]


def facts(view: View, key: str) -> list[Component]:
    """Step, reward, parse rate and broken turns, and how far the run is."""
    run = view.runs[key]
    step, pace = progress(run)
    reward, parsed = run.last("reward"), run.last("parse_rate")
    dots = [dot for dot in view.lines(key).get("reward", ()) if dot.y is not None]
    best = max(dots, key=lambda dot: dot.y or 0.0, default=None)
    states = [run.last(f"structure/{name}") for name in ("polluted", "collapsed")]
    broken = None if None in states else sum(share or 0.0 for share in states)
    shown = [
        fact("Step", step, pace),
        fact("Reward", "–" if reward is None else number(reward), f"best {best.said} at step {best.x}" if best else ""),
        fact("Parse rate", "–" if parsed is None else f"{parsed:.0%}", "of attempted calls"),
        fact("Broken turns", "–" if broken is None else f"{broken:.0%}", "polluted or collapsed"),
    ]
    done = []
    if run.chronicle.max_steps and run.last_step is not None:
        most = run.chronicle.max_steps
        done = [html.Progress(value=str(run.last_step), max=str(most), **aria(f"step {run.last_step} of {most}"))]
    return [html.Dl(shown, className="cw-facts"), *done]


def log_lines(view: View, key: str) -> list[Component]:
    """The last `LOG_LINES` things that happened to a run, newest first."""
    # Tables are read one after the other, so that the order of arrival is not quite the order of events.
    newest = sorted(view.runs[key].chronicle.log, key=lambda entry: entry.step)[: -LOG_LINES - 1 : -1]
    lines = [
        html.Li([html.Span(f"step {entry.step}", className="cw-when"), entry.words], className=f"cw-{entry.kind}")
        for entry in newest
    ] or [html.Li("Nothing has happened yet.", className="cw-note")]
    return [html.Ol(lines, className="cw-log", tabIndex="0", **aria(f"Log of {plain(key, 80)}"))]


PARTS = {"title": HEADING["title"], "state": state, "facts": facts, "log": log_lines}


def body(view: View) -> Component:
    """A column per run: the headline, the panels, the log."""

    def column(key: str) -> list[Component]:
        head = [
            live(name, PARTS[name], key, view, **({"className": "cw-title"} if name == "title" else {}))
            for name in ("title", "state", "facts")
        ]
        pair = [panel(REWARD, key, view), panel(PARSE_RATE, key, view)]
        log = html.Section([html.H3("Log"), live("log", log_lines, key, view)], className="cw-panel")
        rest = [panel(drawn, key, view) for drawn in (HAZARD, STRUCTURE, EVIDENCE)]
        return [html.Div(head, className="cw-card"), html.Div(pair, className="cw-pair"), *rest, log]

    return columns(view, column)


PAGE = Page(
    title="Overview",
    question="How does every run stand, and does one need me?",
    needs=OVERVIEW,
    body=body,
    panels=(REWARD, PARSE_RATE, HAZARD, STRUCTURE, EVIDENCE),
    parts=PARTS,
)

"""Alarms: what drove each, since when, who did it, what was applied and what that changed."""

from __future__ import annotations

from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from collapsewatch.offenders import offenders
from collapsewatch.queries import RunError
from collapsewatch.records import Alarm, Tier
from collapsewatch.slices import levels
from collapsewatch.words import amount, number, plain, stream_words

from ..panels import EVIDENCE
from ..parts import HEADING, columns, heading, live, panel, table
from ..places import Place
from ..views import View
from ..words import drivers
from . import Page

SHOWN = 8
"""Alarms that are told, the newest first."""

TAIL = 10
"""Steps before an alarm, and at the end of its time, whose means are compared."""

CHANGED = ("reward", "parse_rate", "polluted", "collapsed", "hazard")

Row = dict[str, Any]


def episodes(rows: list[Row]) -> list[tuple[Row, Row | None]]:
    """Each alarm with the row that ended it, None while it stands; newest first. A watch is no alarm."""
    found: list[tuple[Row, Row | None]] = []
    open_at: dict[str, int] = {}
    watched: set[str] = set()
    for row in rows:
        tier, detector = row["tier"], row["detector"]
        if tier == Tier.WATCH:
            watched.add(detector)
        elif tier == Tier.ALARM:
            watched.discard(detector)
            open_at[detector] = len(found)
            found.append((row, None))
        elif tier in (Tier.CLEARED, Tier.REBASELINED) and detector in open_at and detector not in watched:
            index = open_at.pop(detector)
            found[index] = (found[index][0], row)
    return found[::-1]


def told(view: View, key: str) -> list[Component]:
    """The alarms of a run, a card each."""
    run = view.runs[key]
    found = episodes(run.chronicle.alarms)
    if not found:
        waiting = "The run has raised no alarm." if run.judged else "Not judged yet: no detector has reported."
        return [html.P(waiting, className="cw-empty cw-panel")]
    more = len(found) - SHOWN
    cards = [_card(view, key, row, end) for row, end in found[:SHOWN]]
    return cards + ([html.P(f"{more} earlier alarms are in the log.", className="cw-empty")] if more > 0 else [])


def _card(view: View, key: str, row: Row, end: Row | None) -> Component:
    stands = "still standing" if end is None else f"{plain(end['tier'], 20)} at step {end['step']}"
    title = html.H3(
        [f"Alarm at step {row['step']}", html.Span(f"{plain(row['detector'], 40)}, {stands}", className="cw-hint")]
    )
    kind = plain((row["kind"] or "alarm").replace("_", " "), 60)
    evidence = f"Log evidence {_level(row['log_e'])}, bound {_level(row['log_bound'])}."
    facts = f"Since step {row['onset_step']}: {kind}. {evidence}"
    return html.Section(
        [title, html.P(facts), _drivers(row), *_applied(view, key, row, end), *_offenders(view, key, row)],
        className="cw-panel cw-episode",
    )


def _drivers(row: Row) -> Component:
    rows = [
        [
            stream_words(d.stream),
            html.Meter(value=f"{d.share:.4f}", max="1", title=f"{d.share:.0%}"),
            f"{d.share:.0%}",
            amount(d.stream, d.level),
            amount(d.stream, d.baseline),
            amount(d.stream, d.tolerance),
        ]
        for d in drivers(row["drivers"])
    ]
    return table(("driven by", "part", "share", "level", "usual", "tolerated"), rows, "Drivers of the alarm")


def _applied(view: View, key: str, row: Row, end: Row | None) -> list[Component]:
    run = view.runs[key]
    asked = [a for a in run.chronicle.applied if a["trigger_step"] == row["step"]]
    done = [a for a in asked if a["status"] == "applied"]
    if not asked:
        return [html.P("Nothing was applied.", className="cw-action")]
    steps = [a["step"] for a in done]
    names = ", ".join(sorted({plain(a["name"], 40) for a in asked}))
    where = f" from step {min(steps)} to {max(steps)}" if steps else ""
    said = html.P(f"Applied: {names}, {len(done)} times{where}.", className="cw-action")
    last = run.last_step or row["step"]
    until = last if end is None else end["step"]
    asked_of = ((max(0, row["step"] - TAIL + 1), row["step"]), (max(row["step"] + 1, until - TAIL + 1), until))
    try:
        # Together, for the answer may be that of the step before.
        spans, changed = run.memo(
            ("levels", row["step"], row["detector"]),
            lambda opened: (asked_of, levels(opened, CHANGED, asked_of)),
            asked_of,
        )
    except RunError:
        return [said]
    told = [name for name in CHANGED if None not in changed[name]]
    rows = [[stream_words(name).replace("_", " "), *map(_level, changed[name])] for name in told]
    heads = ("what it changed", f"steps {spans[0][0]} to {spans[0][1]}", f"steps {spans[1][0]} to {spans[1][1]}")
    return [said, table(heads, rows, "Before and after")]


def _offenders(view: View, key: str, row: Row) -> list[Component]:
    found = drivers(row["drivers"])
    alarm = Alarm(row["step"], Tier.ALARM, row["detector"], tuple(found), row["onset_step"], 0.0, 0.0)
    try:
        worst = view.runs[key].memo(("offenders", row["step"], row["detector"]), lambda run: offenders(run, alarm))
    except RunError:
        return []
    if not worst:
        return [html.P("No rollouts of these steps were kept.", className="cw-action")]
    rows = [
        [
            dcc.Link(
                f"step {o.step}, rollout {o.rollout}",
                href=Place(
                    "rollouts", (key,), more={"step": str(o.step), "rank": str(o.rank), "rollout": str(o.rollout)}
                ).href,
            ),
            o.reasons.replace("_", " ") or o.structure,
            o.reward,
            o.hazard,
        ]
        for o in worst
    ]
    return [table(("rollouts behind it", "why", "reward", "hazard"), rows, "Rollouts behind the alarm")]


def _level(value: float | None) -> str:
    return "–" if value is None else number(value)


PARTS = {**HEADING, "alarms": told}


def body(view: View) -> Component:
    """A column per run: its evidence over the steps, then every alarm."""

    def column(key: str) -> list[Component]:
        return [heading(view, key), panel(EVIDENCE, key, view), live("alarms", told, key, view, className="cw-stack")]

    return columns(view, column)


PAGE = Page(
    title="Alarms",
    question="What drove an alarm, who did it, what was applied, and did it help?",
    needs=("steps", "evidence", "alarms", "interventions", "events", "turns", "rollouts", "observations", "metrics"),
    body=body,
    panels=(EVIDENCE,),
    parts=PARTS,
    most=2,
)
